"""Fine-tuning: cross-entropy on labeled rows, an encoder that rests during the warm-up, and runs that continue."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from avssl.config import ConfigError, from_dict
from avssl.data.manifest import Manifest, write_manifest
from avssl.logs import read_log
from avssl.methods import build_method
from avssl.methods.finetune import Finetune
from avssl.structs import Batch, Instances, Progress
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.training.setup import usable_instances
from avssl.weights.load import load_run
from tests.support.runs import config, equal_models

pytestmark = pytest.mark.slow
ROWS = 6
TARGET = torch.tensor([0, 2, 1, -1, 0, 2])


def build(**options: object) -> Finetune:
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": "finetune", **options},
        "run": {"dir": "none"},
    }
    every = torch.ones(ROWS, dtype=torch.bool)
    return build_method(from_dict(given, source="test"), Instances(every, every, every, TARGET, ["a", "b", "c"]))


def batch(ids: list[int], **has: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    flags = {"has_audio": torch.ones(len(ids)) > 0, "has_video": torch.ones(len(ids)) > 0} | has
    views = ("video", "audio")
    return Batch(
        video={"video": torch.randn(ROWS, 3, 2, 32, 32, generator=generator)[: len(ids)]},
        audio={"audio": torch.randn(ROWS, 1, 32, 24, generator=generator)[: len(ids)]},
        ids=torch.tensor(ids),
        start={view: torch.zeros(len(ids), dtype=torch.float64) for view in views},
        params={},
        padded={view: torch.zeros(len(ids)) > 0 for view in views},
        **flags,
    )


def at(epoch: int, step: int = 0) -> Progress:
    return Progress(epoch, step, 100)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_the_loss_is_cross_entropy_over_what_is_labeled_and_there(modality: str) -> None:
    method = build(modality=modality, warmup_epochs=0).eval()
    assert set(method.encoders) == {modality}
    here = {f"has_{modality}": torch.tensor([True, True, False, True, True, True])}
    seen = batch([0, 1, 2, 3, -1, 5], **here)  # 2 lacks the modality, 3 has no label, the fifth could not be read
    done = method(seen, at(9))
    with torch.no_grad():
        logits = method.classifier(method.encoders[modality](getattr(seen, modality)[modality]))
    kept = [0, 1, 5]
    torch.testing.assert_close(done.loss, F.cross_entropy(logits[kept], TARGET[kept]))
    right = (logits[kept].argmax(dim=1) == TARGET[kept]).float().mean()
    torch.testing.assert_close(done.logs["accuracy"], right)
    assert done.embeddings[modality].ids.tolist() == [0, 1, -1, 3, -1, 5]
    nothing = method(batch([-1, -1]), at(9))
    assert nothing.loss.item() == 0
    nothing.loss.backward()


def test_dropout_is_that_of_the_step() -> None:
    method = build(dropout=0.5, warmup_epochs=0).train()
    x = torch.ones(ROWS, method.classifier.in_dim)
    first, again, other = (method.drop(x, at(0, step)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert 0.3 < (first == 0).float().mean() < 0.7
    assert torch.equal(method.eval().drop(x, at(0, 1)), x)


def test_the_encoder_is_frozen_while_the_classifier_warms_up() -> None:
    method = build(warmup_epochs=2).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    start = {name: value.clone() for name, value in method.state_dict().items()}

    def step(epoch: int) -> set[str]:
        """One step; which entries moved."""
        before = {name: value.clone() for name, value in method.state_dict().items()}
        method(batch([0, 1, 2, 4, 5]), at(epoch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}

    for epoch in (0, 1):
        assert {name.split(".")[0] for name in step(epoch)} == {"classifier"}
        assert method.encoders["video"].training
    assert method.find_unused_parameters
    assert not build(warmup_epochs=0).find_unused_parameters
    assert not [p for p in method.encoders.parameters() if p in optimizer.state]  # Adam has seen no zeros
    moved = step(2)
    assert all(name in moved for name, _ in method.named_parameters())
    assert any("running_mean" in name for name in moved)
    assert start.keys() == method.state_dict().keys()


@pytest.mark.parametrize(
    "options, match",
    [
        ({"modality": "both"}, "modality=both in method finetune: expected one of video, audio"),
        ({"dropout": 1.0}, "dropout=1.0 in method finetune: expected a number of at least 0 and below 1"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1 in method finetune: expected a whole number of at least 0"),
    ],
)
def test_wrong_options(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(**options)


def test_it_is_no_part_of_joint() -> None:
    given = {"data": {"manifest": "none"}, "run": {"dir": "none"}}
    given["method"] = {"name": "joint", "parts": {"finetune": {}, "infonce": {}}}
    every = torch.ones(ROWS, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"method.parts.finetune.name=finetune learns labels, and is no part"):
        build_method(from_dict(given, source="test"), Instances(every, every, every))


def tuned(manifest: Manifest, folder: Path, *, max_steps: int | None = None) -> bool:
    wanted = config(manifest, folder, "optim.lr=3e-3", "optim.epochs=3")
    run = wanted.run.replace(max_steps=max_steps)
    return train(wanted.replace(method={"name": "finetune", "warmup_epochs": 1}, run=run))


def test_a_run_stopped_in_its_warm_up_goes_on_bit_equal_and_knows_its_classes(
    clip_set: Manifest, tmp_path: Path
) -> None:
    assert tuned(clip_set, tmp_path / "whole")
    for stop in (2, 7):  # in the warm-up of 6 steps, and behind it
        assert not tuned(clip_set, tmp_path / "stopped", max_steps=stop)
    assert tuned(clip_set, tmp_path / "stopped")
    assert equal_models(tmp_path / "whole" / "last.pt", tmp_path / "stopped" / "last.pt")
    losses = [line["loss"] for line in read_log(tmp_path / "whole" / "log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]
    run = load_run(tmp_path / "whole")
    assert run.classifier.classes == ("0", "1")
    assert run.classifier.stage == "pool"
    assert not run.classifier.training
    saved = load_checkpoint(tmp_path / "whole" / "last.pt")["instances"]
    assert saved["classes"] == ["0", "1"]
    assert saved["target"].tolist() == [int(label) for label in clip_set.column("label")]


@pytest.mark.parametrize("column, word", [("label", "mended"), ("split", "train"), ("label", None)])
def test_labels_mended_between_stop_and_resume_are_refused(
    column: str, word: str | None, clip_set: Manifest, tmp_path: Path
) -> None:
    table = pq.read_table(clip_set.root / "manifest.parquet")
    write_manifest(tmp_path / "m.parquet", table, root=clip_set.root)
    here = config(clip_set, tmp_path / "run", f"data.manifest={tmp_path / 'm.parquet'}", "run.max_steps=1")
    here = here.replace(method={"name": "finetune"})
    assert not train(here)
    values = table.column(column).to_pylist()
    mended = table.set_column(table.column_names.index(column), column, pa.array([word, *values[1:]], pa.string()))
    write_manifest(tmp_path / "m.parquet", mended, root=clip_set.root)
    going_on = here.replace(run=here.run.replace(max_steps=2))
    with pytest.raises(ConfigError, match=r"labels or splits in .*m.parquet are not those .*run was started with: put"):
        train(going_on)
    write_manifest(tmp_path / "m.parquet", table, root=clip_set.root)
    assert not train(going_on)


def test_all_classes_of_a_clip_are_learned() -> None:
    target = torch.tensor([[0, 2], [1, -1], [2, 1], [-1, -1], [0, -1], [2, -1]])
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": "finetune", "warmup_epochs": 0},
        "run": {"dir": "none"},
    }
    every = torch.ones(ROWS, dtype=torch.bool)
    method = build_method(
        from_dict(given, source="test"), Instances(every, every, every, target, ["a", "b", "c"])
    ).eval()
    assert method.classifier.multi_label
    seen = batch([0, 1, 2, 3, -1, 5])
    done = method(seen, at(9))
    with torch.no_grad():
        logits = method.classifier(method.encoders["video"](seen.video["video"]))
    kept = [0, 1, 2, 5]
    truth = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 1]])
    torch.testing.assert_close(done.loss, F.binary_cross_entropy_with_logits(logits[kept], truth))
    right = truth[torch.arange(4), logits[kept].argmax(dim=1)].mean()
    torch.testing.assert_close(done.logs["accuracy"], right)


def test_a_set_with_several_classes_per_clip_keeps_them_all(clip_set: Manifest, tmp_path: Path) -> None:
    table = pq.read_table(clip_set.root / "manifest.parquet")
    more = pa.array([["loud"] if row % 3 == 0 else None for row in range(len(table))], pa.list_(pa.string()))
    manifest = Manifest(table.append_column("labels", more), clip_set.root)
    found = usable_instances(manifest, config(clip_set, tmp_path / "run").replace(method={"name": "finetune"}))
    assert found.classes == ["0", "1", "loud"]
    labels = clip_set.column("label")
    assert found.target.tolist() == [[int(labels[row]), 2 if row % 3 == 0 else -1] for row in range(len(table))]


def test_only_labeled_clips_are_trained_on(
    clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def relabeled(labels: list[str | None], name: str) -> Manifest:
        table = pq.read_table(clip_set.root / "manifest.parquet")
        place = table.column_names.index("label")
        pq.write_table(table.set_column(place, "label", pa.array(labels, pa.string())), tmp_path / name)
        return Manifest(pq.read_table(tmp_path / name), clip_set.root)

    train_rows = clip_set.valid("train")
    some = [str(label) if row % 3 else None for row, label in enumerate(clip_set.column("label"))]
    wanted = config(clip_set, tmp_path / "run").replace(method={"name": "finetune"})
    found = usable_instances(relabeled(some, "some.parquet"), wanted)
    assert found.valid.tolist() == [bool(ok and row % 3) for row, ok in enumerate(train_rows)]
    assert (found.target[found.valid] >= 0).all()
    here = [f"data.manifest={tmp_path / 'some.parquet'}", f"data.root={clip_set.root}", "run.max_steps=1"]
    assert not train(config(clip_set, tmp_path / "run", *here).replace(method={"name": "finetune"}))
    lost = int(train_rows.sum() - found.valid.sum())
    printed = capsys.readouterr().err
    assert "of 18 rows, 2 classes, " in printed
    assert f"; {lost} without a label left out" in printed
    only_in_test = [
        str(label) if not ok else "0" for label, ok in zip(clip_set.column("label"), train_rows, strict=True)
    ]
    for labels, count in ((only_in_test, r"1 of them \(0\)"), ([None] * len(clip_set), r"0 of them \(none\)")):
        with pytest.raises(
            ConfigError, match=f"finetune learns labels, and the usable clips .* have {count}: at least"
        ):
            usable_instances(relabeled(labels, "few.parquet"), wanted)
    assert usable_instances(clip_set, config(clip_set, tmp_path / "run")).target is None  # nothing of a label is kept
    assert np.array_equal(clip_set.valid("train"), train_rows)
