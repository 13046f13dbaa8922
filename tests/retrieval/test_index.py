"""The approximate index: what it finds beside the exact search, and when it is built again."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.retrieval import index as module
from avssl.retrieval.index import NeighborIndex, open_index
from avssl.retrieval.search import WAYS, contrast, query_of_row, rank, result_modalities
from avssl.retrieval.store import Store, read_store
from tests.support.stores import random_vectors, write

NUM, DIM = 6000, 16


@pytest.fixture(scope="module", params=["spread", "clustered"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    rng = np.random.default_rng(3)
    has = {modality: rng.random(NUM) < 0.9 for modality in ("video", "audio")}
    vectors = random_vectors(NUM, DIM)
    if request.param == "clustered":
        classes = rng.integers(60, size=NUM)
        centers = {modality: 3 * rng.normal(size=(60, DIM)) for modality in vectors}
        vectors = {modality: centers[modality][classes] + values for modality, values in vectors.items()}
    return write(tmp_path_factory.mktemp("big"), vectors, has=has, labels=["a", "b"] * (NUM // 2))


@pytest.fixture(scope="module")
def index(store: Store, tmp_path_factory: pytest.TempPathFactory) -> NeighborIndex:
    return open_index(store, tmp_path_factory.mktemp("browser"), info=lambda text: None)


@pytest.fixture(scope="module")
def rows(store: Store) -> list[int]:
    return np.flatnonzero(store.has["video"] & store.has["audio"])[1000:1040].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_the_index_finds_what_it_says(store: Store, index: NeighborIndex, rows: list[int], way: str) -> None:
    depth, hits = index.max_depth(way), []
    torch.set_num_threads(2)
    for row in rows:
        query = query_of_row(store, row)
        exact, found = (rank(store, query, way=way, depth=depth, index=used) for used in (None, index))
        assert (exact.exact, found.exact, len(found.rows)) == (True, False, depth)
        assert row not in found.rows
        for modality in result_modalities(way):
            assert store.has[modality][found.rows].all()
        same = np.isin(found.rows, exact.rows)
        scores = dict(zip(exact.rows.tolist(), exact.scores.tolist(), strict=True))
        # what it finds is scored exactly
        assert np.allclose(found.scores[same], [scores[each] for each in found.rows[same].tolist()], atol=1e-6)
        hits.append(same.mean())
    assert torch.get_num_threads() == 2  # which FAISS may share
    assert np.mean(hits) == pytest.approx(index.measured.recall[way], abs=0.02)
    space = index.spaces["both" if way == "agreement" else result_modalities(way)[0]]
    assert np.mean(hits) > module.RECALL_AIM - 0.02 or index.measured.num_visited[way] == space.nlist


@pytest.mark.parametrize("way", WAYS)
def test_pages_hold_every_clip_once(store: Store, index: NeighborIndex, rows: list[int], way: str) -> None:
    query, offset, shown = query_of_row(store, rows[0]), 0, []
    everything = rank(store, query, way=way, depth=NUM)
    while True:
        page = rank(store, query, way=way, depth=offset + 240, index=index).rows[offset:]
        shown += page.tolist()
        if not len(page):
            break
        offset += 240
    assert len(shown) == len(set(shown))
    assert set(shown) == set(everything.rows.tolist())
    first = everything.rows[: index.max_depth(way)]
    assert np.isin(first, shown[: len(first) + 1]).mean() > 0.9


def test_the_lists_of_agreement_are_those_of_the_exact_search(
    store: Store, index: NeighborIndex, rows: list[int]
) -> None:
    same = {"positives": [], "looks_alike": [], "sounds_alike": []}
    for row in rows:
        exact, found = (contrast(store, query_of_row(store, row), k=8, index=used) for used in (None, index))
        for name, hits in same.items():
            hits.append(np.isin(getattr(exact, name).rows, getattr(found, name).rows).mean())
    assert all(np.mean(hits) > 0.95 for hits in same.values()), same


def test_a_label_asks_every_clip_that_has_it(store: Store, index: NeighborIndex, rows: list[int]) -> None:
    query = query_of_row(store, rows[0])
    found, exact = (rank(store, query, way="v2v", depth=NUM, label="a", index=used) for used in (index, None))
    assert found.exact
    assert found.rows.tolist() == exact.rows.tolist()


@pytest.mark.slow
def test_an_index_is_kept(store: Store, rows: list[int], tmp_path: Path) -> None:
    said: list[str] = []
    built = open_index(store, tmp_path, info=said.append)
    assert len(said) == 3
    moved = dataclasses.replace(store, meta=dataclasses.replace(store.meta, root="elsewhere", run="other"))
    for again in (store, read_store(store.folder), moved):
        read = open_index(again, tmp_path, info=said.append)
        assert read.measured == built.measured
        assert len(said) == 3  # not built again
        query = query_of_row(store, rows[0])
        found = [rank(store, query, way="v2a", depth=30, index=used).rows.tolist() for used in (read, built)]
        assert found[0] == found[1]


@pytest.mark.slow
def test_an_index_of_other_vectors_is_built_again(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    few = write(tmp_path / "few", random_vectors(600, DIM))
    open_index(few, tmp_path / "browser", info=said.append)
    before = few.digest()
    file = tmp_path / "few" / "shard-00000.video.npy"
    os.utime(file, ns=(0, 0))
    assert few.digest() != before
    open_index(few, tmp_path / "browser", info=said.append)
    assert "embeddings changed since" in said[3]
    count = len(said)
    (tmp_path / "browser" / "index.json").unlink()  # as if killed while the files were written
    open_index(few, tmp_path / "browser", info=said.append)
    assert len(said) == count + 3
    count = len(said)
    file = tmp_path / "browser" / "video.faiss"
    whole = file.read_bytes()
    for broken in (b"broken", whole[:-9] + bytes(9), whole[: len(whole) // 2]):  # FAISS reads the second
        file.write_bytes(broken)
        open_index(few, tmp_path / "browser", info=said.append)
        assert "cannot be read" in said[count]
        assert file.read_bytes() == whole
        count = len(said)
    record = tmp_path / "browser" / "index.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"recall": {}}))
    open_index(few, tmp_path / "browser", info=said.append)
    assert len(said) == count + 4


def test_lopsided_sets_have_an_index_too(tmp_path: Path) -> None:
    vectors = random_vectors(400, DIM)
    apart = {"video": np.arange(400) < 399, "audio": np.arange(400) == 399}  # no clip with both, one with sound
    store = write(tmp_path / "e", vectors, has=apart)
    index = open_index(store, tmp_path / "browser", info=lambda text: None)
    assert set(index.measured.recall) == {"v2v", "v2a", "a2v", "a2a"}
    assert rank(store, query_of_row(store, 0), way="v2a", depth=5, index=index).rows.tolist() == [399]
    assert len(rank(store, query_of_row(store, 399), way="a2v", depth=5, index=index).rows) == 5


def test_one_tower_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    vectors = random_vectors(300, DIM) | {"audio": np.zeros((300, DIM))}
    blind = {"video": np.ones(300, dtype=bool), "audio": np.zeros(300, dtype=bool)}
    store = write(tmp_path / "deaf", vectors, has=blind)
    said: list[str] = []
    (tmp_path / "file").write_text("no folder")
    index = open_index(store, tmp_path / "file" / "browser", info=said.append)
    assert set(index.measured.recall) == {"v2v"}
    assert "kept in memory only" in said[-1]
    assert len(rank(store, query_of_row(store, 0), way="v2v", depth=5, index=index).rows) == 5
