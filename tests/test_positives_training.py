"""Temporal neighbours, tracked patches, the walk and the joint run, from clips to checkpoint: samples out of one opened
file, stopping and resuming, silent clips, starting a joint run from AVID, and what one encoder alone gives later.
"""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from experiment import accuracies

from avssl.config import Config, ConfigError, from_dict, with_overrides
from avssl.data import dataset as dataset_module
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.data.tracks import TracksError, write_tracks
from avssl.evaluate.harness import count_missing
from avssl.evaluate.splits import read_splits
from avssl.logs import read_log
from avssl.media.decode import read_frames
from avssl.methods import build_method
from avssl.retrieval.search import query_of_row, search
from avssl.retrieval.write import write_store
from avssl.structs import Instances, Progress
from avssl.training.checkpoint import CheckpointError, load_checkpoint
from avssl.training.loop import train
from avssl.training.optim import build_optimizer
from avssl.training.setup import training_clips, usable_instances
from avssl.training.step import train_step
from avssl.transforms.views import apply_views
from avssl.weights.features import clip_vectors, extract
from avssl.weights.load import load_run
from tests.support.clips import SECONDS
from tests.support.runs import TINY, Call, Waits, equal_models

pytestmark = pytest.mark.slow
DATA = [line for line in TINY if not line.startswith("method.")]
HEAD = {"hidden_dim": 16, "embedding_dim": 8}
CMA = HEAD | {"num_negatives": 4, "num_positives": 2, "num_negatives_within": 3, "mine_every": 1, "mine_from_epoch": 1}
NEIGHBOUR = HEAD | {"num_clips": 3, "negatives": ["batch", "queue"], "queue_size": 10, "momentum": 0.9}
NO_TRACK = 9  # row of the manifest that no track was found in


def recipes(tracks: str) -> dict[str, dict]:
    return {
        "neighbour": NEIGHBOUR | {"name": "neighbour", "momentum_schedule": "cosine"},
        "patch": HEAD | {"name": "patch", "tracks": tracks, "num_tracks": 2, "frames": "any"},
        "walk": HEAD | {"name": "walk"},
        "joint": {
            "name": "joint",
            "parts": {"avid_cma": CMA, "neighbour": NEIGHBOUR, "patch": HEAD | {"tracks": tracks}, "walk": HEAD},
        },
    }


def config(manifest: Manifest, folder: Path, method: dict, *overrides: str) -> Config:
    lines = [f"data.manifest={manifest.root / 'manifest.parquet'}", f"run.dir={folder}", *DATA]
    lines += ["data.patch_size=32", "data.patch_grid=2", "data.num_frames=3", *overrides]
    return from_dict(with_overrides({"method": method}, lines), source="test")


@pytest.fixture(scope="module")
def tracks(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One track per clip, every second clip has two; one clip has none."""
    path = tmp_path_factory.mktemp("tracks") / "tracks.parquet"
    times = [0.1, 0.3, 0.5, 0.7]
    boxes = [[[0.1 * i, 0.2, 0.5, 0.6] for i in range(4)], [[0.0, 0.4, 0.4, 0.4]] * 4]
    rows = [
        {"id": id, "track": number, "times": times, "boxes": boxes[number], "confidence": [1.0] * 4, "reason": None}
        for id in range(len(clip_set.column("path")))
        for number in range(1 + id % 2)
        if id != NO_TRACK
    ]
    rows.append({"id": NO_TRACK, "track": -1, "times": [], "boxes": [], "confidence": [], "reason": "no motion"})
    write_tracks(path, rows, manifest_hash=clip_set.hash, options={})
    return str(path)


@pytest.fixture
def settings(clip_set: Manifest, tmp_path: Path, tracks: str) -> Callable[..., Config]:
    def made(name: str, *overrides: str, folder: str = "run") -> Config:
        return config(clip_set, tmp_path / folder, recipes(tracks)[name], *overrides)

    return made


def samples_of(manifest: Manifest, settings: Config) -> ClipDataset:
    return training_clips(manifest, settings, build_method(settings, usable_instances(manifest, settings)))


def test_all_views_of_a_sample_come_out_of_one_opened_file(clip_set: Manifest, settings: Callable[..., Config]) -> None:
    clips = samples_of(clip_set, settings("joint"))
    names = ["video", "audio", "video.1", "video.2", "patch.0.0", "patch.0.1", "walk"]
    assert [view.name for view in clips.views] == names
    with mock.patch.object(dataset_module, "read_clip", side_effect=dataset_module.read_clip) as reading:
        sample = clips[Key(0, 1, 0)]
    assert reading.call_count == 1
    shapes = {view: value.shape for view, value in sample.video.items()}
    assert shapes == {
        **{view: (3, 32, 32, 3) for view in ("video", "video.1", "video.2", "walk")},
        **{view: (1, 32, 32, 3) for view in ("patch.0.0", "patch.0.1")},
    }
    assert sample.start["walk"] == sample.start["video"]
    assert len({sample.start[view] for view in ("video", "video.1", "video.2")}) > 1
    assert all(0 <= value < SECONDS for value in sample.start.values())
    assert sample.params["walk"]["cells"].shape == (3, 4, 4)


def test_a_patch_is_what_the_track_says(clip_set: Manifest, settings: Callable[..., Config]) -> None:
    for seed in range(4):
        clips = samples_of(clip_set, settings("patch", f"run.seed={seed}"))
        sample = clips[Key(0, 5, 0)]
        assert sorted(sample.target["track"]) == [0, 1]
        for place, number in enumerate(sample.target["track"]):
            track = clips.tracks.of(5)[number]
            for view in (f"patch.{place}.0", f"patch.{place}.1"):
                frame = int(np.argmin(np.abs(track.times - sample.start[view])))
                box = tuple(track.boxes[frame])
                expected = read_frames(
                    clips.manifest.path(5), start=track.times[frame], duration=0.2, fps=5, crop=box, size=(32, 32)
                )
                assert np.array_equal(sample.video[view], expected.data)
                assert sample.start[view] == expected.start


def test_a_clip_without_a_track_has_empty_places(clip_set: Manifest, settings: Callable[..., Config]) -> None:
    sample = samples_of(clip_set, settings("patch"))[Key(0, NO_TRACK, 0)]
    assert sample.target["track"].tolist() == [-1, -1]
    assert sample.has_video
    assert sample.error is None
    assert not any(value.any() for value in sample.video.values())
    assert samples_of(clip_set, settings("patch"))[Key(0, 4, 0)].target["track"].tolist() == [0, -1]


def test_what_a_sample_draws_depends_on_its_key_alone(clip_set: Manifest, settings: Callable[..., Config]) -> None:
    clips = samples_of(clip_set, settings("joint"))
    keys = [Key(1, 1, 0), Key(0, 2, 1), Key(1, 1, 0)]
    one, other, again = (clips[key] for key in keys)
    for group in ("video", "audio"):
        for view, value in getattr(one, group).items():
            assert np.array_equal(value, getattr(again, group)[view]), view
    assert one.start == again.start != other.start


@pytest.mark.parametrize("name", ["neighbour", "patch", "walk", "joint"])
def test_stopping_at_every_step_changes_nothing(settings: Callable[..., Config], tmp_path: Path, name: str) -> None:
    whole, parts = settings(name, folder="whole"), "data.clips_per_video=1"
    whole = settings(name, parts, folder="whole")
    assert train(whole)
    step = 0
    while not train(settings(name, parts, f"run.max_steps={step + 1}", folder="parts")):
        step += 1
    assert step == 5
    assert equal_models(tmp_path / "whole", tmp_path / "parts")
    lines = [line for line in read_log(tmp_path / "whole" / "log.jsonl") if "loss" in line]
    assert np.isfinite([line["loss"] for line in lines]).all()
    if name == "joint":
        assert {f"{part}/loss" for part in whole.method["parts"]} <= set(lines[-1])
        assert (load_checkpoint(tmp_path / "whole")["model"]["parts.avid_cma.sets"] >= 0).any()
        mined = [line for line in read_log(tmp_path / "whole" / "log.jsonl") if "avid_cma/mining/exact" in line]
        assert all({"avid_cma/mining/precision", "avid_cma/mining/chance"} <= line.keys() for line in mined)
    if name in ("patch", "joint"):
        assert 0 < lines[-1]["patch/frac_tracked" if name == "joint" else "frac_tracked"] <= 1


@pytest.mark.parametrize("name", ["neighbour", "patch", "walk", "joint"])
def test_a_step_never_makes_the_host_wait(clip_set: Manifest, settings: Callable[..., Config], name: str) -> None:
    chosen = settings(name, "optim.clip_norm=1.0", "data.batch_size=4")
    method = build_method(chosen, usable_instances(clip_set, chosen)).train()
    optimizer = build_optimizer(method.named_parameters(), chosen.optim)
    clips = training_clips(clip_set, chosen, method)
    batch = collate([clips[Key(0, id, 0)] for id in (7, NO_TRACK, 10, 11)])
    method.on_epoch(1)
    for step in range(2):  # the first ones ask whether log_z and the sets are there
        train_step(method, optimizer, batch, chosen, Progress(1, step, 4))
    with Waits() as waits:
        train_step(method, optimizer, batch.to(torch.device("cpu")), chosen, Progress(1, 2, 4))
    assert waits.seen == []


def test_silent_clips_train_the_parts_that_need_no_sound(clip_set: Manifest, settings: Callable[..., Config]) -> None:
    chosen = settings("joint")
    method = build_method(chosen, usable_instances(clip_set, chosen)).train()
    optimizer = build_optimizer(method.named_parameters(), chosen.optim)
    clips = training_clips(clip_set, chosen, method)
    silent = int(np.flatnonzero(clip_set.valid("train") & ~clip_set.has_audio)[0])
    batch = collate([clips[Key(0, silent, number)] for number in range(4)])
    assert not batch.has_audio.any()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(apply_views(batch, method.views, chosen.data), Progress(0, 0, 4))
    done, _ = train_step(method, optimizer, batch, chosen, Progress(0, 1, 4))
    logs = {name: float(value) for name, value in done.logs.items()}
    assert logs["avid_cma/loss"] == 0
    assert min(logs["patch/loss"], logs["walk/loss"]) > 0
    assert logs["patch/frac_tracked"] == 1
    after = method.state_dict()
    assert not torch.equal(after["encoders.video.conv1.0.weight"], before["encoders.video.conv1.0.weight"])
    assert torch.equal(after["parts.avid_cma.banks.audio.z"], before["parts.avid_cma.banks.audio.z"])
    assert (after["parts.neighbour.queue.ids"] == silent).any()


def test_no_view_is_encoded_twice(clip_set: Manifest, settings: Callable[..., Config]) -> None:
    chosen = settings("joint")
    method = build_method(chosen, usable_instances(clip_set, chosen))
    clips = training_clips(clip_set, chosen, method)
    batch = apply_views(collate([clips[Key(0, id, 0)] for id in range(4)]), method.views, chosen.data)
    calls = []
    for name, encoder in method.encoders.items():
        encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    method(batch, Progress(0, 0, 1))
    assert sorted(calls) == ["audio"] + ["video"] * 6  # video, two further clips, two patches, the grid


def test_a_joint_run_starts_from_a_run_of_one_of_its_parts(
    clip_set: Manifest, settings: Callable[..., Config], tmp_path: Path
) -> None:
    cma = config(clip_set, tmp_path / "cma", CMA | {"name": "avid_cma"})
    assert train(cma)
    assert train(settings("joint", f"model.init={tmp_path / 'cma'}", "optim.lr=0", "optim.weight_decay=0"))
    before, after = (load_checkpoint(tmp_path / name)["model"] for name in ("cma", "run"))
    weights = [name for name in before if name.startswith("heads.") or "weight" in name]
    for name in weights:
        joint = name if name.startswith("encoders.") else f"parts.avid_cma.{name}"
        assert torch.equal(before[name], after[joint]), name
    assert torch.equal(after["parts.avid_cma.log_z"], before["log_z"])
    other = config(clip_set, tmp_path / "other", CMA | {"name": "avid_cma", "embedding_dim": 4})
    assert train(other)
    with pytest.raises(CheckpointError, match=r"model\.init=.*other: .*, here "):
        train(settings("joint", f"model.init={tmp_path / 'other'}", folder="refused"))


def test_one_encoder_alone_is_evaluated_and_searched_by_video(
    clip_set: Manifest, settings: Callable[..., Config], tmp_path: Path
) -> None:
    assert train(settings("neighbour"))
    run = load_run(tmp_path / "run")
    assert set(run.method.encoders) == {"video"}
    vectors = clip_vectors(run, clip_set, np.arange(len(clip_set)), num_clips=1)
    found = vectors.videos()
    assert found.has_video.all()
    assert not found.has_audio.any()
    (split,) = read_splits(clip_set)
    assert set(accuracies("knn", vectors, clip_set, split)) == {"video"}
    assert "without_audio" not in count_missing([(vectors, split.test)])  # the run hears none, so it leaves none out
    store = write_store(tmp_path / "e", run, clip_set, manifest_path=Path("m"), num_clips=1)
    query = query_of_row(store, 0)
    assert len(search(store, query, way="v2v", k=3)) == 3
    with pytest.raises(ValueError, match="hold no other clips"):
        search(store, query, way="v2a", k=1)


def test_tools_say_that_a_run_hears_nothing(
    clip_set: Manifest, settings: Callable[..., Config], tmp_path: Path, call: Call
) -> None:
    assert train(settings("patch"))
    path, out = clip_set.root / "manifest.parquet", tmp_path / "e"
    done = call("tools/embed.py", tmp_path / "run", path, "--out", out, "--workers", 0, "--num-clips", 1)
    assert done.out.startswith("18 clips, video only, as the run has no audio encoder, 0 not read")
    asked = ("tools/search.py", out, "--query", 0, "--k", 3)
    call(*asked, "--from", "video", "--to", "audio").refused("has no audio encoder: use --from video --to video")
    call(*asked, "--by", "agreement").refused("has no audio encoder")
    assert call(*asked, "--from", "video", "--to", "video").code == 0
    call("tools/mine.py", tmp_path / "run", "--k", 2, "--out", tmp_path / "s").refused("has no memory banks")


def test_a_joint_run_is_evaluated_by_both_sides(
    settings: Callable[..., Config], clip_set: Manifest, tmp_path: Path
) -> None:
    assert train(settings("joint"))
    run = load_run(tmp_path / "run")
    assert run.method.head("audio") is run.method.parts["avid_cma"].heads["audio"]
    found = extract(run, clip_set, np.flatnonzero(clip_set.valid("test")), num_clips=1)
    assert set(found.embedding) == {"video", "audio"}
    assert found.has_audio.sum() == len(found.ids) - 1


@pytest.mark.parametrize("name", ["neighbour", "patch", "walk"])
def test_single_frames_go_through_a_2d_encoder(
    settings: Callable[..., Config], clip_set: Manifest, tmp_path: Path, name: str
) -> None:
    frames = ["data.num_frames=1"] if name == "neighbour" else []
    encoder = ["model.video=resnet18_frames", "model.video_depth=null", "model.video_width=1"]
    assert train(settings(name, *frames, *encoder, "run.max_steps=1")) is False
    run = load_run(tmp_path / "run")
    assert extract(run, clip_set, [0, 1], num_clips=2).features["video"].shape == (2, 512)


def test_tracks_of_another_manifest_are_refused(
    clip_set: Manifest, settings: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "other.parquet"
    write_tracks(path, [], manifest_hash="0" * 64, options={})
    with pytest.raises(TracksError, match="belong to another manifest"):
        train(config(clip_set, tmp_path / "run", HEAD | {"name": "patch", "tracks": str(path)}))
    with pytest.raises(TracksError, match=r"tracks nowhere\.parquet do not exist: write it with avssl track"):
        train(config(clip_set, tmp_path / "run", HEAD | {"name": "patch", "tracks": "nowhere.parquet"}))


def table(path: Path, manifest: Manifest, rows: list[dict]) -> str:
    whole = {"track": 0, "times": [0.1, 0.7], "boxes": [[0.2, 0.2, 0.5, 0.5]] * 2, "confidence": [1.0, 1.0]}
    write_tracks(path, [whole | {"reason": None} | row for row in rows], manifest_hash=manifest.hash, options={})
    return str(path)


def test_a_run_belongs_to_what_its_tracks_say_not_to_where_they_lie(clip_set: Manifest, tmp_path: Path) -> None:
    rows = [{"id": row} for row in range(6, 18)]
    one, moved = (table(tmp_path / name, clip_set, rows) for name in ("one", "moved"))
    other = table(tmp_path / "other", clip_set, rows[1:])

    def run(tracks: str, *overrides: str) -> bool:
        parts = {"parts": {"neighbour": NEIGHBOUR, "patch": HEAD | {"tracks": tracks}}}
        return train(config(clip_set, tmp_path / "run", {"name": "joint"} | parts, *overrides))

    assert not run(one, "run.max_steps=1")
    with pytest.raises(ConfigError, match=r"the tracks in .*other are not those that the run in .* was trained on"):
        run(other)
    assert run(moved)
    parts = {"name": "joint", "parts": {"neighbour": NEIGHBOUR, "patch": HEAD | {"tracks": one, "temperature": 0.3}}}
    with pytest.raises(ConfigError, match=r"method\.parts\.patch\.temperature=0\.3, but the run in"):
        train(config(clip_set, tmp_path / "run", parts))


def test_tracks_that_do_not_fit_the_manifest_are_refused(clip_set: Manifest, tmp_path: Path) -> None:
    cases = {
        "late": ([{"id": 7, "times": [100.0, 101.0]}], r"a frame at second 100 of row 7, which lasts from 0 to 1\.2"),
        "many": ([{"id": 99}], r"are of row 99, but the manifest has 18 rows: write them anew"),
        "test": ([{"id": 0}], r"no clip with data\.split=train has a track in .*test: mine that split"),
        "none": (
            [{"id": 7, "track": -1, "times": [], "boxes": [], "confidence": [], "reason": "lost"}],
            "no clip with data.split=train has a track",
        ),
    }
    for name, (rows, message) in cases.items():
        path = table(tmp_path / name, clip_set, rows)
        with pytest.raises(ValueError, match=message):
            train(config(clip_set, tmp_path / "run", HEAD | {"name": "patch", "tracks": path}))


@pytest.mark.parametrize(
    "name, override, message",
    [
        ("walk", "data.num_frames=2", r"data\.num_frames=2: a walk there and back needs at least 3 frames"),
        ("walk", "data.patch_size=64", r"data\.patch_size=64 must be at least 1 and at most data\.size=32"),
        ("neighbour", "data.gray=3", r"data\.gray=3 in .*: expected a number from 0 to 1"),
        ("neighbour", "data.fps=0", r"data\.fps=0 .* expected a number of at least 0\.01"),
    ],
)
def test_values_of_views_are_refused_before_any_worker_starts(
    settings: Callable[..., Config], name: str, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        train(settings(name, override, "data.num_workers=1"))


@pytest.mark.parametrize("name", ["neighbour", "patch", "walk"])
def test_a_split_without_video_is_refused(clip_set: Manifest, settings: Callable[..., Config], name: str) -> None:
    sound_only = Instances(torch.ones(4) > 0, has_audio=torch.ones(4) > 0, has_video=torch.zeros(4) > 0)
    with pytest.raises(ValueError, match=r"this split has (0|no) usable clip"):
        build_method(settings(name), sound_only)


@pytest.mark.parametrize(
    "parts, message",
    [
        ({}, r"method\.parts names 0 methods: method joint needs two or more"),
        ({"avid": {}, "neighbor": {}}, r"method\.parts\.neighbor\.name=neighbor is unknown: did you mean neighbour"),
        (
            {"avid": {}, "neighbour": {"num_clip": 2}},
            r"unknown key num_clip in method\.parts\.neighbour: did you mean num_clips",
        ),
        ({"avid": {}, "patch": {}}, r"tracks not set in method\.parts\.patch"),
        (
            {"avid": {}, "neighbour": {"far": "x"}},
            r"far=x in method\.parts\.neighbour: expected one of negative, ignore",
        ),
        (
            {"avid": {}, "neighbour": {"weight": float("nan")}},
            r"method\.parts\.neighbour\.weight=\.nan: expected a positive",
        ),
        ({"avid": {}, "values": {"name": "neighbour"}}, r"method\.parts\.values: values is a word of PyTorch's"),
        ({"avid": {}, "near": {"name": ["neighbour"]}}, r"method\.parts\.near\.name=\['neighbour'\] is unknown"),
        ({"avid": {}, "neighbour": {"weight": 0}}, r"method\.parts\.neighbour\.weight=0: expected a positive number"),
        ({"avid": {}, "joint": {}}, r"method\.parts\.joint=\{\}: expected the options of a method other than joint"),
        ({"avid": {}, "near": 3}, r"method\.parts\.near=3: expected the options of a method"),
        ({"avid": {}, "a/b": {"name": "neighbour"}}, r"method\.parts\.a/b: a part is named with letters, digits and _"),
    ],
)
def test_parts_that_cannot_be_are_refused(clip_set: Manifest, tmp_path: Path, parts: dict, message: str) -> None:
    chosen = config(clip_set, tmp_path, {"name": "joint", "parts": parts})
    with pytest.raises(ConfigError, match=message):
        build_method(chosen, usable_instances(clip_set, chosen))


def test_parts_that_take_tracks_differently_are_refused(clip_set: Manifest, tmp_path: Path, tracks: str) -> None:
    parts = {"ends": {"name": "patch", "tracks": tracks}, "any": {"name": "patch", "tracks": tracks, "frames": "any"}}
    chosen = config(clip_set, tmp_path, {"name": "joint", "parts": parts})
    method = build_method(chosen, usable_instances(clip_set, chosen))
    with pytest.raises(ValueError, match="one sample shows the tracks of one table, taken in one way"):
        training_clips(clip_set, chosen, method)
