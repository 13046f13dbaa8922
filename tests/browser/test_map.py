"""Places of clips on the map."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from avssl.browser import map as module
from avssl.browser.map import draw_map, open_map
from tests.support.stores import random_vectors, write


def test_pca_places_follow_the_two_largest_directions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num = 400
    spread = np.array([5.0, 2.0, 0.1, 0.1])
    vectors = {"video": rng.normal(size=(num, 4)) * spread + [0, 0, 40, 0], "audio": rng.normal(size=(num, 4))}
    has = {"video": np.ones(num, dtype=bool), "audio": np.arange(num) % 5 > 0}
    store = write(tmp_path, vectors, has=has)
    drawn = draw_map(store, method="pca")
    assert drawn.rows.tolist() == list(range(num))
    assert "all 400 clips" in drawn.note
    unit = vectors["video"] / np.linalg.norm(vectors["video"], axis=1, keepdims=True)
    for axis in (0, 1):
        assert abs(np.corrcoef(drawn.places["video"][:, axis], unit[:, axis])[0, 1]) > 0.99
    assert np.isnan(drawn.places["audio"]).any(axis=1).tolist() == (~has["audio"]).tolist()
    for places in drawn.places.values():
        low, high = np.nanmin(places, axis=0), np.nanmax(places, axis=0)
        assert (high - low).max() == pytest.approx(1)  # one scale for both axes
        assert np.allclose((low + high) / 2, 0.5)
    assert np.array_equal(draw_map(store, method="pca").places["video"], drawn.places["video"])


def test_clusters_are_groups_of_clips_largest_first(tmp_path: Path) -> None:
    sizes = (150, 30, 60)
    group = np.repeat(range(3), sizes)
    vectors = {modality: np.eye(8)[group] + 0.01 * random_vectors(240, 8)[modality] for modality in ("video", "audio")}
    clusters = draw_map(write(tmp_path, vectors), method="pca").clusters
    assert np.bincount(clusters).tolist() == sorted(np.bincount(clusters).tolist(), reverse=True)
    for cluster in np.unique(clusters):  # k-means may cut a group, and joins none
        assert len(np.unique(group[clusters == cluster])) == 1


def test_very_many_clips_are_drawn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", 50)
    drawn = draw_map(write(tmp_path, random_vectors(2000, 4)), method="pca")
    assert len(np.unique(drawn.rows)) == 50
    assert drawn.rows.max() > 1000
    assert "50 of 2,000 clips, drawn at random" in drawn.note


@pytest.mark.parametrize("num", [1, 2, 3])
def test_hardly_any_clips(tmp_path: Path, num: int) -> None:
    drawn = draw_map(write(tmp_path, random_vectors(num, 4)), method="pca")
    assert np.isfinite(drawn.places["video"]).all()


def test_a_map_is_kept_until_the_embeddings_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"video": np.ones(40, dtype=bool), "audio": np.arange(40) % 5 > 0}
    store, said = write(tmp_path / "e", random_vectors(40, 4), has=has), []
    path, ask = tmp_path / "kept" / "map-pca.npz", {"method": "pca", "info": said.append}
    drawn = open_map(store, tmp_path / "kept", **ask)
    with monkeypatch.context() as patched:
        patched.setattr(module, "draw_map", None)  # is not called
        again = open_map(store, tmp_path / "kept", **ask)
    assert again.note == drawn.note
    assert np.array_equal(again.rows, drawn.rows)
    assert np.array_equal(again.clusters, drawn.clusters)
    for modality in ("video", "audio"):
        assert np.array_equal(again.places[modality], drawn.places[modality], equal_nan=True)
    assert said == []
    changed = write(tmp_path / "e", random_vectors(41, 4))
    assert len(open_map(changed, tmp_path / "kept", **ask).rows) == 41
    assert said.pop() == f"the map in {path} is drawn again: the embeddings changed since it was drawn"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(broken)
        assert len(open_map(changed, tmp_path / "kept", **ask).rows) == 41
        assert "cannot be read" in said.pop()
        assert len(open_map(changed, tmp_path / "kept", **ask).rows) == 41
        assert said == []  # it was written again
    (tmp_path / "file").touch()
    assert len(open_map(changed, tmp_path / "file", **ask).rows) == 41
    assert "kept in memory only" in said.pop()


def test_umap_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(tmp_path, random_vectors(40, 4))
    monkeypatch.setattr(module, "has_umap", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'avssl\[umap\]'"):
        draw_map(store, method="umap")

    class Fake:
        def __init__(self, **settings: object) -> None:
            assert settings["metric"] == "cosine"

        def fit_transform(self, vectors: np.ndarray) -> np.ndarray:
            return vectors[:, 2:4] * 10

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Fake))
    monkeypatch.setattr(module, "has_umap", lambda: True)
    drawn = draw_map(store, method="umap")
    assert drawn.note.startswith("UMAP")
    unit = store.vectors["audio"].take(drawn.rows).numpy()
    assert abs(np.corrcoef(drawn.places["audio"][:, 0], unit[:, 2])[0, 1]) > 0.999
