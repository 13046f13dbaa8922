"""The probe of a run and its watch for collapse: right by hand, and the training does not notice them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl import distributed
from avssl.config import ConfigError
from avssl.data.manifest import Manifest, write_manifest
from avssl.logs import COLLAPSE_STEPS, read_log
from avssl.mining.votes import knn_votes
from avssl.objectives.negatives import Bank
from avssl.structs import Embedded, Instances, Step
from avssl.training import loop, probe
from avssl.training.probe import CollapseWatch, OnlineProbe, describe_probe, encode_clips
from avssl.weights.features import extract
from avssl.weights.load import load
from tests.support.clips import manifest_of
from tests.support.runs import config, equal_models
from tests.support.tiny import everything, vector_batch

NUM, CPU = 60, torch.device("cpu")


def clips(*, groups: np.ndarray | None = None, unlabeled: int = 0) -> Manifest:
    labels = [None] * unlabeled + [str(row % 3) for row in range(unlabeled, NUM)]
    names = [f"g{row if groups is None else groups[row]}" for row in range(NUM)]
    return manifest_of(
        [
            {"path": f"{row:02d}.mp4", "label": label, "split": "train", "group": name}
            for row, (label, name) in enumerate(zip(labels, names, strict=True))
        ]
    )


def features_of_classes(*, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 * F.one_hot(torch.arange(NUM) % 3, 16) + spread * torch.randn(NUM, 16, generator=generator)


def add(online: OnlineProbe, ids: torch.Tensor, **features: torch.Tensor) -> None:
    step = Step(torch.zeros(()), features={modality: x[ids] for modality, x in features.items()})
    online.add(step, vector_batch(ids))


def of_set(manifest: Manifest, instances: Instances | None = None) -> OnlineProbe:
    return OnlineProbe(manifest, instances or everything(NUM), seed=0, device=CPU)


def test_leave_one_out_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    x, truth = torch.randn(40, 8, generator=generator), F.one_hot(torch.arange(40) % 4).bool()
    groups = torch.arange(40) // 2
    found = knn_votes(x, truth, x, k=5, groups=(groups, groups))
    for row in range(40):
        rest = groups != groups[row]
        assert torch.allclose(found[row], knn_votes(x[rest], truth[rest], x[row : row + 1], k=5)[0], atol=1e-6)
    alone = torch.zeros(40, dtype=torch.long)
    assert not knn_votes(x, truth, x, groups=(alone, alone)).any()


def test_the_probe_tells_classes_from_noise() -> None:
    online, rows = of_set(clips()), torch.arange(NUM)
    for part in rows.split(16):
        add(online, part, video=features_of_classes(spread=0.1), audio=features_of_classes(spread=100.0))
    found = online.pop({})
    assert found["probe/video"] == found["probe/both"] == 1
    assert found["probe/audio"] < 0.6
    assert found["probe/chance"] == pytest.approx(1 / 3)
    assert online.pop({}) == {}  # starts anew
    (line,) = describe_probe(found, 4)
    assert "epoch 4" in line
    assert "video 1.000" in line
    assert describe_probe({}, 4) == []


def test_a_clip_is_the_mean_of_its_outputs_and_groups_do_not_vote() -> None:
    pairs = torch.arange(NUM) // 3 * 3  # the clip that is nearest shares the group, and has another class
    x = F.one_hot(pairs, NUM).float() + 0.01 * F.one_hot(torch.arange(NUM) % 3, NUM)
    together, apart = of_set(clips(groups=np.arange(NUM) // 3)), of_set(clips())
    for online in (together, apart):
        add(online, torch.arange(NUM), video=x + 3)
        add(online, torch.arange(NUM), video=x - 3)  # their mean is not that of either
    assert together.pop({})["probe/video"] > apart.pop({})["probe/video"]


def test_rows_without_label_or_modality_and_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, x = clips(unlabeled=9), features_of_classes(spread=4.0)
    whole, first, second = (of_set(manifest) for _ in range(3))
    rows = torch.arange(NUM)
    for online, part in ((whole, rows), (first, rows[::2]), (second, rows[1::2])):
        add(online, part, video=x)
    add(first, torch.tensor([-1, -1]), video=x)  # files that could not be read
    other = dict(second._sums)
    monkeypatch.setattr(distributed, "all_reduce", lambda sums: sums + other["video"])
    on_two = first.pop({})
    monkeypatch.undo()
    assert on_two == whole.pop({})

    silent = of_set(manifest)
    step = Step(torch.zeros(()), features={"audio": x})
    silent.add(step, vector_batch(rows, has_audio=torch.zeros(NUM, dtype=torch.bool)))
    assert silent.pop({}) == {}
    assert of_set(clips(unlabeled=NUM)).pop({}) == {}


def test_a_resumed_probe_goes_on_unless_other_rows_are_labeled() -> None:
    x, whole, first = features_of_classes(spread=4.0), of_set(clips()), of_set(clips())
    add(whole, torch.arange(NUM), video=x)
    add(first, torch.arange(40), video=x)
    resumed, relabeled = of_set(clips()), of_set(clips(unlabeled=1))
    for online in (resumed, relabeled):
        online.load(first.state())
    add(resumed, torch.arange(40, NUM), video=x)
    assert resumed.pop({}) == whole.pop({})
    assert relabeled.pop({}) == {}


def test_memory_banks_vote_too() -> None:
    valid = torch.arange(NUM) != 5
    bank = Bank(valid, 16, view=0, generator=torch.Generator())
    bank.z.copy_(F.normalize(features_of_classes(spread=0.1), dim=1))
    bank.z[5] = bank.z[6]  # a row of another class that is not valid
    found = of_set(clips(unlabeled=2)).pop({"video": bank})
    assert found["probe/video_bank"] == 1
    assert set(found) == {"probe/video_bank", "probe/chance"}


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_CLIPS", 30)
    online = of_set(clips())
    add(online, torch.arange(NUM), video=features_of_classes(spread=0.1))
    assert online._sums["video"].shape[0] == 31
    assert online.pop({})["probe/video"] == 1


def test_validation_clips_are_named_by_training_clips() -> None:
    names = [*(str(row % 3) for row in range(NUM)), "0", "1", "2", "other", "0"]
    rows = [
        {"path": f"{row:02d}.mp4", "label": name, "split": "val" if row >= NUM else "train", "group": f"g{row}"}
        for row, name in enumerate(names)
    ]
    valid = torch.arange(len(rows)) < NUM
    instances = Instances(valid=valid, has_audio=torch.ones_like(valid), has_video=torch.ones_like(valid))
    online = OnlineProbe(manifest_of(rows), instances, seed=0, device=CPU, asked=range(NUM, NUM + 5))
    add(online, torch.arange(NUM), video=features_of_classes(spread=0.1))
    asked = 5 * F.one_hot(torch.tensor([0, 1, 0, 0, 0]), 16).float()  # right, right, wrong, unknown, nothing of it
    asked[4] = 0
    found = online.pop({}, {"video": asked, "audio": asked})
    assert found["probe/val_video"] == 0.5
    assert found["probe/video"] == 1
    assert set(found) == {"probe/video", "probe/val_video", "probe/chance"}  # no clip of the epoch has audio


def with_validation(clip_set: Manifest, folder: Path) -> Path:
    """The manifest with every third row in split val."""
    table = clip_set.table
    splits = ["val" if row % 3 == 0 else "train" for row in range(len(table))]
    path = folder / "with_val.parquet"
    write_manifest(path, table.set_column(table.schema.get_field_index("split"), "split", [splits]), root=clip_set.root)
    return path


@pytest.mark.slow
def test_validation_clips_of_a_run(clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = f"data.manifest={with_validation(clip_set, tmp_path)}"
    assert loop.train(config(clip_set, tmp_path / "without", split))
    capsys.readouterr()
    for workers in (0, 1):
        folder = tmp_path / f"with{workers}"
        assert loop.train(config(clip_set, folder, split, "run.probe_clips=4", f"data.num_workers={workers}"))
        assert capsys.readouterr().err.count("4 validation clips took") == 2  # epochs
        lines = [line for line in read_log(folder / "log.jsonl") if "probe/val_video" in line]
        assert [line["epoch"] for line in lines] == [0, 1]
        assert all(line["probe/val_both"] in (0, 0.25, 0.5, 0.75, 1) for line in lines)
        assert equal_models(folder, tmp_path / "without")
    with pytest.raises(ConfigError, match="split val"):
        loop.train(config(clip_set, tmp_path / "none", "run.probe_clips=4"))


def test_encoding_equals_extraction_and_leaves_the_mode(clip_set: Manifest, tmp_path: Path) -> None:
    assert loop.train(config(clip_set, tmp_path, "optim.epochs=1"))
    run, rows = load(tmp_path), np.arange(len(clip_set))
    run.encoders["video"].train()
    found, errors = encode_clips(run.encoders, clip_set, rows, run.data, device=CPU)
    assert errors == []
    assert run.encoders["video"].training
    assert not run.encoders["audio"].training
    run.encoders.eval()
    extracted = extract(run, clip_set, rows, num_clips=1)
    assert not extracted.has_audio.all()
    for modality, x in found.items():
        unit = F.normalize(torch.from_numpy(extracted.features[modality]), dim=1)
        assert torch.allclose(x, unit * torch.from_numpy(extracted.has(modality))[:, None], atol=1e-5)


@pytest.mark.slow
def test_training_logs_it_and_does_not_notice(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loop.train(config(clip_set, tmp_path / "with"))
    shown = capsys.readouterr().err
    assert shown.count("nearest neighbors name the class") == 2  # epochs
    lines = [line for line in read_log(tmp_path / "with" / "log.jsonl") if "probe/video" in line]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(0 <= line[f"probe/{name}"] <= 1 for line in lines for name in ("video", "audio", "both", "chance"))
    monkeypatch.setattr(OnlineProbe, "add", lambda *_: None)
    assert loop.train(config(clip_set, tmp_path / "without"))
    assert "both " not in capsys.readouterr().err  # the banks alone vote
    assert equal_models(tmp_path / "with", tmp_path / "without")


def test_a_collapse_is_told_once_it_has_stayed() -> None:
    z = F.normalize(torch.ones(8, 4), dim=1)
    embedded = Embedded(z, torch.arange(8), torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.float64))
    done = Step(torch.zeros(()), embeddings={"video": embedded})
    watch = CollapseWatch()
    assert watch.look(20, {"video_rank": 1.5, "video_std": 0.5}, done) == []
    assert watch.look(COLLAPSE_STEPS, {"video_rank": 5.0, "video_std": 0.5}, done) == []  # it has left
    assert watch.look(300, {"video_rank": 1.4, "video_std": 0.01}, done) == []
    told = watch.look(300 + COLLAPSE_STEPS, {"video_rank": 1.4, "video_std": 0.01}, done)
    assert len(told) == 2
    assert "effective rank 1.4 of at most 4, since step 300" in told[0]
    assert "spread 0.01 of 1" in told[1]
    assert watch.look(900, {"video_rank": 1.4, "video_std": 0.01}, done) == []
    assert watch.look(901, {"video_rank": 3.0, "video_std": 0.5}, done) == []
    assert watch.look(902, {"video_rank": 1.0, "video_std": 0.5}, done) == []
    assert len(watch.look(1200, {"video_rank": 1.0, "video_std": 0.5}, done)) == 1  # again
