"""The approximate index: what it finds beside the exact search, and when it is built again."""

import os
from pathlib import Path

import numpy as np
import pytest

from avssl.retrieval import index as module
from avssl.retrieval.index import digest, open_index
from avssl.retrieval.search import WAYS, query_of_row, rank
from avssl.retrieval.store import Store, read_store
from tests.retrieval.stores import random_vectors, write

NUM, DIM = 6000, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    has = {side: np.random.default_rng(number).random(NUM) < 0.9 for number, side in enumerate(("video", "audio"))}
    return write(tmp_path_factory.mktemp("big"), random_vectors(NUM, DIM), has=has, labels=["a", "b"] * (NUM // 2))


def test_the_index_finds_what_it_says_and_is_kept(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    index = open_index(store, tmp_path, say=said.append)
    assert len(said) == 3
    recall = {}
    rows = np.flatnonzero(store.has["video"] & store.has["audio"])[1000:1080]
    for way in WAYS:
        hits = []
        for row in rows.tolist():
            query = query_of_row(store, row)
            exact, found = (rank(store, query, way=way, depth=10, index=used) for used in (None, index))
            assert (exact.exact, found.exact) == (True, False)
            assert row not in found.rows
            assert all(store.has[side][found.rows].all() for side in (("video", "audio") if way == "agreement" else ()))
            same = np.isin(found.rows, exact.rows)
            scores = dict(zip(exact.rows.tolist(), exact.scores.tolist(), strict=True))
            # what it finds is scored exactly
            assert np.allclose(found.scores[same], [scores[each] for each in found.rows[same].tolist()], atol=1e-5)
            hits.append(same.mean())
        recall[way] = np.mean(hits)
        assert recall[way] == pytest.approx(index.measured.recall[way], abs=0.05)
        assert (
            index.measured.recall[way] >= module.RECALL_AIM
            or index.measured.num_visited[way] == index.spaces["video"].nlist
        )

    assert open_index(store, tmp_path, say=said.append).measured == index.measured
    assert len(said) == 3  # read, not built
    again = open_index(read_store(store.folder), tmp_path, say=said.append)
    query = query_of_row(store, int(rows[0]))
    assert (
        rank(store, query, way="v2a", depth=30, index=again).rows.tolist()
        == rank(store, query, way="v2a", depth=30, index=index).rows.tolist()
    )


def test_labels_and_deep_pages_look_at_every_clip(store: Store, tmp_path: Path) -> None:
    index = open_index(store, tmp_path, say=lambda text: None)
    query = query_of_row(store, 17)
    assert rank(store, query, way="v2v", depth=10, label="a", index=index).exact
    assert rank(store, query, way="v2v", depth=module.MAX_DEPTH + 1, index=index).exact
    assert not rank(store, query, way="v2v", depth=module.MAX_DEPTH, index=index).exact


def test_an_index_of_other_vectors_is_built_again(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    few = write(tmp_path / "few", random_vectors(600, DIM))
    open_index(few, tmp_path / "browser", say=said.append)
    before = digest(few)
    file = tmp_path / "few" / "shard-00000.video.npy"
    os.utime(file, ns=(0, 0))
    assert digest(few) != before
    open_index(few, tmp_path / "browser", say=said.append)
    assert "embeddings changed since" in said[3]
    count = len(said)
    (tmp_path / "browser" / "index.json").unlink()  # as if killed while the files were written
    open_index(few, tmp_path / "browser", say=said.append)
    assert len(said) == count + 3
    (tmp_path / "browser" / "video.faiss").write_bytes(b"broken")
    open_index(few, tmp_path / "browser", say=said.append)
    assert "cannot be read" in said[count + 3]


def test_one_tower_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    vectors = random_vectors(300, DIM) | {"audio": np.zeros((300, DIM))}
    blind = {"video": np.ones(300, dtype=bool), "audio": np.zeros(300, dtype=bool)}
    store = write(tmp_path / "deaf", vectors, has=blind)
    said: list[str] = []
    (tmp_path / "file").write_text("no folder")
    index = open_index(store, tmp_path / "file" / "browser", say=said.append)
    assert set(index.measured.recall) == {"v2v"}
    assert "kept in memory only" in said[-1]
    assert len(rank(store, query_of_row(store, 0), way="v2v", depth=5, index=index).rows) == 5
