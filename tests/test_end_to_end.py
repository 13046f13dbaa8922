"""From a manifest to neighbors and metrics with the library's own calls, on clips made here."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment import accuracies

from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.splits import read_splits
from avssl.retrieval.search import WAYS, find_row, pairs_of, query_of_row, search
from avssl.retrieval.store import StoreError, read_store
from avssl.retrieval.write import write_store
from avssl.training.loop import train
from avssl.weights.features import Extracted, clip_vectors, extract
from avssl.weights.load import load_run, with_data
from tests.support.runs import config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "avid"
    assert train(config(clip_set, folder, "optim.epochs=3"))
    return folder


def test_extracted_clips_are_unit_vectors_without_augmentation(run: Path, clip_set: Manifest) -> None:
    rows = np.flatnonzero(clip_set.valid("test"))
    found, again = (extract(load_run(run), clip_set, rows, num_clips=2) for _ in range(2))
    assert found.ids.tolist() == rows.tolist()
    for name in ("video", "audio"):
        lengths = np.linalg.norm(found.embedding[name], axis=1)
        wanted = found.has_audio if name == "audio" else np.ones(len(rows), dtype=bool)
        assert np.allclose(lengths, wanted, atol=1e-5)
        assert np.array_equal(found.features[name], again.features[name])
    assert found.has_audio.tolist() == clip_set.has_audio[rows].tolist()
    workers = extract(with_data(load_run(run), num_workers=1), clip_set, rows, num_clips=2)
    assert np.array_equal(workers.embedding["video"], found.embedding["video"])
    with pytest.raises(ValueError, match="num_clips=0 must be at least 1"):
        extract(load_run(run), clip_set, rows, num_clips=0)


def test_random_weights_are_the_same_towers_untrained(run: Path, clip_set: Manifest) -> None:
    trained, random = load_run(run), load_run(run, trained=False)
    assert trained.weights_hash != random.weights_hash
    assert random.weights_hash == load_run(run, trained=False).weights_hash


@pytest.mark.parametrize("protocol", ["knn", "logistic"])
def test_accuracies_of_every_modality(run: Path, clip_set: Manifest, protocol: str) -> None:
    (split,) = read_splits(clip_set)
    assert (len(split.train), len(split.test)) == (12, 6)
    found = accuracies(protocol, clip_vectors(load_run(run), clip_set, np.arange(18), num_clips=1), clip_set, split)
    assert set(found) == {"video", "audio", "both"}
    assert (found["video"]["num"], found["video"]["chance"]) == (6, 0.5)
    if protocol == "logistic":  # with 12 videos, all of them are among the 20 nearest
        assert found["audio"]["mean"] > 0.9  # two tones: any working audio path tells them apart
    with pytest.raises(ValueError, match="no labeled clip has split=val"):
        read_splits(clip_set, test_split="val")


def test_store_is_written_once_continued_and_searched(
    run: Path, clip_set: Manifest, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("avssl.retrieval.store.SHARD_ROWS", 5)
    loaded = load_run(run)

    def write() -> object:
        return write_store(tmp_path / "e", loaded, clip_set, manifest_path=Path("m.parquet"), num_clips=1)

    store = write()
    assert len(store) == 18
    shards = sorted((tmp_path / "e").glob("*.parquet"))
    before = [shard.stat().st_mtime_ns for shard in shards]
    shards[2].unlink()
    with pytest.raises(StoreError, match="1 of 4 shards are missing"):
        read_store(tmp_path / "e")
    again = write()
    assert [shard.stat().st_mtime_ns for i, shard in enumerate(shards) if i != 2] == before[:2] + before[3:]
    everything = np.arange(18)
    units = {modality: again.vectors[modality].take(everything) for modality in ("video", "audio")}
    assert torch.equal(store.vectors["video"].take(everything), units["video"])

    query = query_of_row(again, find_row(again, str(again.ids[3])))
    assert find_row(again, again.path(3)) == 3
    assert find_row(again, str(clip_set.root / again.path(3))) == 3
    for way in WAYS:
        source, target = pairs_of(way)[-1]
        others = 17 - (2 if target == "audio" else 0)
        found = search(again, query, way=way, k=others)
        assert len(found) == others
        with pytest.raises(ValueError, match=rf"k={others + 1}, but these embeddings hold {others} other clips"):
            search(again, query, way=way, k=others + 1)
        assert 3 not in [entry.row for entry in found]
        scores = [entry.score for entry in found]
        assert scores == sorted(scores, reverse=True)
        best = found[0]
        cosine = {modality: float(units[modality][best.row] @ query.vectors[modality]) for modality in units}
        across = float(units[target][best.row] @ query.vectors[source])
        assert best.score == pytest.approx(min(cosine.values()) if way == "agreement" else across, abs=1e-5)
        assert best.video == pytest.approx(cosine["video"], abs=1e-5)
        assert best.audio is None or best.audio == pytest.approx(cosine["audio"], abs=1e-5)
        assert (best.audio is None) == (not again.has["audio"][best.row])
    silent = query_of_row(again, int(np.flatnonzero(~again.has["audio"])[0]))
    with pytest.raises(ValueError, match="has no audio, so nothing can be found from it"):
        search(again, silent, way="a2v", k=3)
    with monkeypatch.context() as patched:

        def too_large(*given: object, **named: object) -> Extracted:
            found = extract(*given, **named)
            return dataclasses.replace(found, features={modality: x * 1e9 for modality, x in found.features.items()})

        patched.setattr("avssl.retrieval.write.extract", too_large)
        with pytest.raises(StoreError, match=r"5 clips have vectors that 16 bits cannot hold, such as row 0"):
            write_store(tmp_path / "l", loaded, clip_set, manifest_path=Path("m"), kind="features", num_clips=1)
    with pytest.raises(StoreError, match="num_clips=1, now 2"):
        write_store(tmp_path / "e", loaded, clip_set, manifest_path=Path("m.parquet"), num_clips=2)
    features = write_store(tmp_path / "f", loaded, clip_set, manifest_path=Path("m"), kind="features", num_clips=1)
    with pytest.raises(ValueError, match="extract without --features"):
        search(features, query_of_row(features, 0), way="v2a", k=3)


def test_evaluation_never_replaces_an_unreadable_clip(run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    shutil.copytree(clip_set.root, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set" / "manifest.parquet")
    (tmp_path / "set" / str(manifest.column("path")[4])).write_bytes(b"gone")
    found = extract(load_run(run), manifest, np.arange(8), num_clips=2)
    assert found.ids.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert len(found.embedding["video"]) == 7
    assert list(found.errors) == [4]
    assert str(manifest.column("path")[4]) in found.errors[4]
    store = write_store(tmp_path / "e", load_run(run), manifest, manifest_path=Path("m"), num_clips=1)
    assert len(store) == 17
    assert list(store.errors) == [str(manifest.column("path")[4])]
