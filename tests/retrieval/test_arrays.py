"""A store of anybody's embeddings: searched, asked by the tools and shown like one that a run made."""

import json
from pathlib import Path

import numpy as np
import pytest

import avssl
from avssl.cli import browse, search
from avssl.retrieval import store as stores
from avssl.retrieval.store import StoreError
from avssl.retrieval.write import store_of_arrays

NUM, DIM = 50, 12
PATHS = [f"clip{row}.mp4" for row in range(NUM)]


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    video, audio = np.random.default_rng(seed).normal(size=(2, NUM, DIM)).astype(np.float32)
    video[3], audio[[4, 5]] = 0, 0  # clips that lack one
    return 7 * video, audio


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@pytest.fixture(params=[1024, 16], ids=["one shard", "several"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stores, "SHARD_ROWS", request.param)
    video, audio = arrays()
    labels = [None if row == 0 else str(row % 3) for row in range(NUM)]
    store_of_arrays(tmp_path / "e", PATHS, video=video, audio=audio, labels=labels, root=tmp_path)
    return tmp_path / "e"


@pytest.mark.parametrize("way", ["v2v", "a2a", "v2a", "a2v", "agreement"])
def test_neighbours_are_those_of_the_arrays(folder: Path, way: str) -> None:
    store, (video, audio) = avssl.read_store(folder), arrays()
    vectors = {"v": unit(video), "a": unit(audio)}
    pairs = ["vv", "aa"] if way == "agreement" else [way[0] + way[-1]]
    scores = np.minimum.reduce([vectors[target] @ vectors[source][10] for source, target in pairs])
    lacks = {"v": [3], "a": [4, 5]}
    scores[[10, *(row for _, target in pairs for row in lacks[target])]] = -2
    expected = np.argsort(-scores)[:8]
    for query in (10, {"video": video[10], "audio": audio[10]}):
        found = avssl.search(store, query, way=way, k=8 + (query != 10))
        found = [each for each in found if each.id != 10][:8]
        assert len({each.id for each in found}) == 8
        np.testing.assert_allclose(scores[[each.id for each in found]], scores[expected], atol=2e-3)  # kept in 16 bits
        np.testing.assert_allclose([each.score for each in found], scores[expected], atol=2e-3)
    assert all(each.path == PATHS[each.id] and each.label == (str(each.id % 3) if each.id else None) for each in found)


def test_tools_take_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([str(folder), "--query", "clip7.mp4", "--from", "audio", "--to", "video", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["neighbors"]) == 10
    (folder.parent / "other.mp4").write_bytes(b"")
    assert search.main([str(folder), "--query", str(folder.parent / "other.mp4")]) == 2
    assert "of arrays, not of a run" in capsys.readouterr().err
    (store,) = browse.open_stores([folder], None)
    assert store.meta.root == str(folder.parent)


def test_one_modality_and_two_spaces(tmp_path: Path) -> None:
    video, audio = arrays()
    store = store_of_arrays(tmp_path / "video", PATHS, video=video)
    assert not store.has["audio"].any()
    assert len(avssl.search(store, 0, way="v2v", k=5)) == 5
    apart = store_of_arrays(tmp_path / "apart", PATHS, video=video, audio=audio[:, :5], shared=False)
    assert len(avssl.search(apart, 0, way="agreement", k=5)) == 5
    with pytest.raises(ValueError, match="share no space"):
        avssl.search(apart, 0, way="v2a", k=5)


def test_lengths_do_not_matter_and_labels_may_be_an_array(tmp_path: Path) -> None:
    video, _ = arrays()
    labels = np.array([str(row % 2) for row in range(NUM)])
    one = store_of_arrays(tmp_path / "one", PATHS, video=video, labels=labels)
    huge = store_of_arrays(tmp_path / "huge", PATHS, video=np.float32(1e30) * video, labels=labels)
    assert huge.has["video"].sum() == NUM - 1
    found = [[each.id for each in avssl.search(store, np.int64(7), way="v2v", k=5)] for store in (one, huge)]
    assert found[0] == found[1]
    assert huge.label(5) == "1"


def test_what_is_no_set_of_vectors_is_refused(tmp_path: Path) -> None:
    video, audio = arrays()
    with_nan = video.copy()
    with_nan[6, 2] = np.nan
    for given, message in (
        ({}, "expected video, audio or both"),
        ({"video": video[:9]}, r"50 paths, vectors .*\(9, 12\)"),
        ({"video": video[0]}, "expected video, audio or both"),
        ({"video": video, "audio": audio[:, :5]}, "give shared=False"),
        ({"video": with_nan}, "video holds NaN or infinity in 1 rows, such as row 6"),
        ({"video": video, "labels": ["a"]}, "1 labels of 50 paths"),
    ):
        with pytest.raises(ValueError, match=message):
            store_of_arrays(tmp_path / "e", PATHS, **given)
    assert not (tmp_path / "e").exists()
    store_of_arrays(tmp_path / "e", PATHS, video=video)
    with pytest.raises(StoreError, match="holds embeddings"):
        store_of_arrays(tmp_path / "e", PATHS, video=video)
