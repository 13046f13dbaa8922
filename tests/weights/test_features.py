"""Vectors of clips and crops: what they are of, on disk and in memory, by one process and by two; no tower moves."""

import fcntl
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from avssl import distributed
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.sampling import Key
from avssl.evaluate.harness import Labels, evaluate_split
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import read_splits
from avssl.files import folder_lock
from avssl.media.decode import read_frames
from avssl.training.loop import train
from avssl.transforms.video import center_crop, spread_crops
from avssl.transforms.views import Spread, View, apply_views
from avssl.weights.features import ClipVectors, Rows, calibrated, clip_vectors
from avssl.weights.load import load_run, untrained, with_data
from tests.support.ranks import on_ranks
from tests.support.runs import config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "avid"
    assert not train(config(clip_set, folder, "run.max_steps=1"))
    return folder


def same(one: ClipVectors, two: ClipVectors, *, atol: float = 0.0) -> None:
    assert one.ids.tolist() == two.ids.tolist()
    assert one.errors == two.errors
    for flag in ("readable", "has_audio", "has_video"):
        assert np.array_equal(getattr(one, flag), getattr(two, flag))
    for modality, maps in one.vectors.items():
        assert list(maps) == list(two.vectors[modality])
        for name, value in maps.items():
            np.testing.assert_allclose(value, two.vectors[modality][name], rtol=0, atol=atol)
        np.testing.assert_allclose(one.embedding[modality], two.embedding[modality], rtol=0, atol=atol)


def test_crops_are_spread_over_the_long_side() -> None:
    wide, tall = (spread_crops(width=w, height=h, num=3) for w, h in ((80, 40), (40, 80)))
    assert wide[:, 3].tolist() == [35 / 80] * 3
    assert wide[:, 1].tolist() == [0, pytest.approx((1 - 35 / 80) / 2), 1 - 35 / 80]
    assert len(set(wide[:, 0].tolist())) == 1
    np.testing.assert_allclose(tall[:, [1, 0, 3, 2]], wide)
    assert spread_crops(width=81, height=40, num=1).tolist() == [center_crop(width=81, height=40).tolist()]


def test_crops_of_a_clip_come_out_of_one_opened_file(run: Path, clip_set: Manifest) -> None:
    data = with_data(load_run(run), num_workers=0).data
    views = [*(View(f"crop {i}", when=Spread(i, 3)) for i in range(3)), View("audio", recipe="audio")]
    sample = ClipDataset(clip_set, data, views, num_eval_clips=2)[Key(0, 1, 1)]
    width, height = (int(clip_set.column(name)[1]) for name in ("width", "height"))
    for view, crop in zip(views, spread_crops(width=width, height=height, num=3), strict=False):
        wanted = read_frames(
            clip_set.path(1),
            start=sample.start["crop 0"],
            duration=data.num_frames / data.fps,
            fps=data.fps,
            crop=tuple(crop),
            size=(data.size, data.size),
        )
        assert np.array_equal(sample.video[view.name], wanted.data)
        assert sample.start[view.name] == sample.start["crop 0"]


def test_vectors_are_the_encoders_outputs_and_nothing_of_them_moves(run: Path, clip_set: Manifest) -> None:
    pretrained = load_run(run)
    before = distributed.digest(torch.nn.ModuleDict({"e": pretrained.encoders, "h": pretrained.heads}).state_dict())
    rows = np.arange(6)
    found = clip_vectors(pretrained, clip_set, rows, num_clips=2, num_crops=3, maps=True)
    after = distributed.digest(torch.nn.ModuleDict({"e": pretrained.encoders, "h": pretrained.heads}).state_dict())
    assert before == after
    assert found.vectors["video"]["pool"].shape == (6, 6, pretrained.encoders["video"].dim)
    assert found.vectors["audio"]["pool"].shape == (6, 2, pretrained.encoders["audio"].dim)
    assert list(found.vectors["video"]) == ["conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    silent = ~clip_set.has_audio[rows]
    assert silent.any()
    assert not found.vectors["audio"]["pool"][silent].any()
    assert np.array_equal(found.has_audio, ~silent)
    center = clip_vectors(pretrained, clip_set, rows, num_clips=2)
    np.testing.assert_allclose(  # the second of three crops is the center
        found.vectors["video"]["pool"].reshape(6, 2, 3, -1)[:, :, 1], center.vectors["video"]["pool"], atol=1e-5
    )
    with torch.inference_mode():
        pool = torch.from_numpy(found.vectors["video"]["pool"])
        embedding = torch.nn.functional.normalize(pretrained.heads["video"](pool.flatten(0, 1)), dim=1)
    np.testing.assert_allclose(found.embedding["video"].reshape(len(embedding), -1), embedding.numpy(), atol=1e-5)


def test_kept_vectors_are_those_of_memory_and_are_computed_once(
    run: Path, clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained, rows = load_run(run), np.arange(18)
    fresh = clip_vectors(pretrained, clip_set, rows, num_clips=1, maps=True)
    same(fresh, clip_vectors(pretrained, clip_set, rows, num_clips=1, maps=True, folder=tmp_path))
    assert not list(tmp_path.glob(".*.partial"))
    monkeypatch.setattr("avssl.weights.features.build_loader", None)
    same(fresh, clip_vectors(pretrained, clip_set, rows, num_clips=1, maps=True, folder=tmp_path))
    pooled = clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=tmp_path)  # part of what is there
    assert np.array_equal(pooled.vectors["video"]["pool"], fresh.vectors["video"]["pool"])
    for other in (with_data(pretrained, size=48), with_data(pretrained, num_frames=3), untrained(pretrained)):
        with pytest.raises(TypeError):  # other vectors: they would have to be computed
            clip_vectors(other, clip_set, rows, num_clips=1, folder=tmp_path)
    with pytest.raises(TypeError):
        clip_vectors(pretrained, clip_set, rows[1:], num_clips=1, maps=True, folder=tmp_path)


def test_vectors_are_computed_anew_when_the_manifest_says_something_else_of_a_file(
    run: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    pretrained, rows = load_run(run), np.arange(6)
    before = clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=tmp_path)
    place = clip_set.table.column_names.index("has_audio")
    mute = Manifest(clip_set.table.set_column(place, "has_audio", pa.array([False] * 18)), clip_set.root)
    assert mute.hash == clip_set.hash
    after = clip_vectors(pretrained, mute, rows, num_clips=1, folder=tmp_path)
    assert before.has_audio.any()
    assert not after.has_audio.any()


def test_random_weights_get_the_statistics_of_training_clips(run: Path, clip_set: Manifest) -> None:
    rows = np.flatnonzero(clip_set.valid("train"))
    random = untrained(load_run(run))
    before = {name: value.clone() for name, value in random.encoders.state_dict().items()}
    hash_before = random.weights_hash
    found = calibrated(random, clip_set, rows)
    assert found.weights_hash != hash_before  # or vectors of before would be taken for its
    for name, value in found.encoders.state_dict().items():
        moved = any(word in name for word in ("running_", "num_batches"))
        assert torch.equal(value, before[name]) != moved, name
    assert not any(module.training for module in found.encoders.modules())
    again = calibrated(untrained(load_run(run)), clip_set, rows)
    assert again.weights_hash == found.weights_hash
    for modality in ("video", "audio"):  # of the clips that have it: the first layer's output is standardized
        view = View(modality, recipe=modality)
        has = [row for row in rows if modality == "video" or clip_set.has_audio[row]]
        data = ClipDataset(clip_set, found.data, [view], num_eval_clips=1)
        batch = apply_views(collate([data[Key(0, int(row), 0)] for row in has]), [view], found.data)
        encoder, seen = found.encoders[modality], []
        norm = next(each for each in encoder.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm))
        norm.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out.clone()))
        with torch.inference_mode():
            encoder(getattr(batch, modality)[modality])
        assert abs(float(seen[0].mean())) < 1e-3
        assert float(seen[0].std()) == pytest.approx(1, abs=0.02)


def test_broken_weights_are_told(run: Path, clip_set: Manifest) -> None:
    pretrained = load_run(run)
    with torch.no_grad():
        pretrained.encoders["audio"].conv1[0].weight[:] = torch.nan
    with pytest.raises(ValueError, match=r"the audio encoder of .*last.pt gives NaN or infinity"):
        clip_vectors(pretrained, clip_set, np.arange(3), num_clips=1)


def test_a_stopped_computation_leaves_nothing_that_is_taken_for_whole(
    run: Path, clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained, rows = load_run(run), np.arange(18)
    monkeypatch.setattr("avssl.weights.features.BATCH_CLIPS", 4)
    whole = clip_vectors(pretrained, clip_set, rows, num_clips=1)
    calls = []

    def stops(batch: object, *rest: object) -> object:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return apply_views(batch, *rest)

    monkeypatch.setattr("avssl.weights.features.apply_views", stops)
    with pytest.raises(KeyboardInterrupt):
        clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=tmp_path)
    monkeypatch.setattr("avssl.weights.features.apply_views", apply_views)
    same(whole, clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=tmp_path))


def test_a_second_call_waits_for_the_first_and_finds_what_that_found(
    run: Path, clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained, rows = load_run(run), np.arange(18)
    first, folder = tmp_path / "first", tmp_path / "kept"
    whole = clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=first)
    folder.mkdir()

    def finish() -> None:
        """What the call that holds the lock does in its own time."""
        for path in first.iterdir():
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
        lock.close()

    monkeypatch.setattr("avssl.weights.features._compute", None)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        later = threading.Timer(0.5, finish)
        later.start()
        same(whole, clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=folder))
        later.join()


def test_damaged_vectors_are_computed_again(run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    pretrained, rows = load_run(run), np.arange(4)
    whole = clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=tmp_path)
    (home,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name, broken in (("video.pool.npy", b"x" * 99), ("audio.pool.npy", b""), ("errors-0.json", b"{")):
        (home / name).unlink()  # what is mapped from it stays
        (home / name).write_bytes(broken)
        same(whole, clip_vectors(pretrained, clip_set, rows, num_clips=1, folder=tmp_path))


def test_an_unreadable_clip_has_zeros_and_a_reason(run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    shutil.copytree(clip_set.root, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set" / "manifest.parquet")
    lost = tmp_path / "set" / str(manifest.column("path")[4])
    whole = lost.read_bytes()
    lost.write_bytes(b"gone")
    how = {"num_clips": 2, "folder": tmp_path / "kept"}
    found = clip_vectors(load_run(run), manifest, np.arange(8), **how)
    assert found.readable.tolist() == [i != 4 for i in range(8)]
    assert list(found.errors) == [4]
    assert str(manifest.column("path")[4]) in found.errors[4]
    assert not found.vectors["video"]["pool"][4].any()
    assert not found.has_video[4]
    assert not found.has_audio[4]
    assert found.videos().ids.tolist() == [0, 1, 2, 3, 5, 6, 7]
    same(found, clip_vectors(load_run(run), manifest, np.arange(8), **how))  # the reason is kept too
    lost.write_bytes(whole)
    mended = clip_vectors(load_run(run), manifest, np.arange(8), **how)
    assert mended.readable.all()
    assert not mended.errors


def test_wrong_numbers(run: Path, clip_set: Manifest) -> None:
    for name in ("num_clips", "num_crops"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            clip_vectors(load_run(run), clip_set, [0], **({"num_clips": 1} | {name: 0}))


def test_rows_are_read_by_index_slice_and_pairs() -> None:
    array = np.arange(24).reshape(4, 3, 2)
    rows = Rows(array, np.array([3, 1]))
    assert rows.shape == (2, 3, 2)
    assert len(rows) == 2
    assert np.array_equal(rows[np.array([1])], array[[1]])
    assert np.array_equal(rows[0:2], array[[3, 1]])
    assert np.array_equal(rows[np.array([0, 1]), np.array([2, 0])], array[[3, 1], [2, 0]])
    assert np.array_equal(np.asarray(rows), array[[3, 1]])


def _one_of_two(run: str, manifest: str, folder: str) -> None:
    rank = distributed.rank()
    pretrained = load_run(run)

    def find(folder: Path) -> ClipVectors:
        return clip_vectors(pretrained, read_manifest(manifest), np.arange(18), num_clips=8, maps=True, folder=folder)

    assert find(Path(folder)).readable.all()  # what the other process has found is here too
    torch.distributed.barrier()
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=2))
    (Path(folder) / "waited_for" / f"{rank}").touch()
    assert find(Path(folder) / "waited_for").readable.all()


@pytest.mark.processes
def test_two_processes_find_what_one_finds(run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    arguments = (str(run), str(clip_set.root / "manifest.parquet"), str(tmp_path))
    late = tmp_path / "waited_for"

    def finish() -> None:
        """Hold the lock for longer than the ranks wait for each other."""
        with folder_lock(late):
            while not (late / "1").exists():
                time.sleep(0.1)
            time.sleep(4)
            shutil.copytree(kept := next(tmp_path.glob("[!w]*")), late / kept.name)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(finish)
        on_ranks(2, _one_of_two, *arguments)
        holding.result()
    (kept,) = tmp_path.glob("[!w]*")
    assert len(list(kept.glob("errors-*.json"))) == 2
    pretrained = load_run(run)
    found = [
        clip_vectors(pretrained, clip_set, np.arange(18), num_clips=8, maps=True, folder=folder)
        for folder in (None, tmp_path)
    ]
    same(*found, atol=1e-5)
    splits = read_splits(clip_set)
    said = [
        evaluate_split(
            "knn", each, Labels(clip_set, splits), splits[0], Options(k=3), device=pretrained.device
        ).outcomes
        for each in found
    ]
    for way, outcome in said[0].items():
        assert np.array_equal(outcome.predicted, said[1][way].predicted)
