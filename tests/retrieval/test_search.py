"""Neighbors by looking at every clip, against the definition in plain numpy."""

from pathlib import Path

import numpy as np
import pytest

from avssl.cli import search as command
from avssl.retrieval.search import (
    WAYS,
    QueryError,
    contrast,
    described,
    find_row,
    pairs_of,
    query_of_row,
    query_of_vectors,
    rank,
    rank_each,
    search,
    ways_of,
)
from avssl.retrieval.store import Store
from tests.support.stores import random_vectors, write

NUM, DIM = 90, 6


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    return random_vectors(NUM, DIM)


@pytest.fixture(scope="module")
def has() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    video = rng.random(NUM) < 0.8
    return {"video": video, "audio": ~video | (rng.random(NUM) < 0.7)}


@pytest.fixture(scope="module")
def store(vectors: dict, has: dict, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("store"), vectors, has=has, labels=[f"{i % 4}" for i in range(NUM)])


def cosines(vectors: dict, query: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """{(side of the query, side of the clips): (n,)} in float64."""
    unit = {
        modality: values.astype(np.float16).astype(float)
        / np.linalg.norm(values.astype(np.float16).astype(float), axis=1)[:, None]
        for modality, values in vectors.items()
    }
    return {(own, modality): unit[modality] @ query[own] for own in query for modality in unit}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", [None, "2"])
def test_order_is_that_of_the_definition(store: Store, vectors: dict, has: dict, way: str, label: str | None) -> None:
    asked = np.flatnonzero(has["video"] & has["audio"])[:10]
    for row in asked.tolist():
        query = query_of_row(store, row)
        near = cosines(vectors, {modality: query.vectors[modality].double().numpy() for modality in has})
        if way == "agreement":
            score, usable = np.minimum(near["video", "video"], near["audio", "audio"]), has["video"] & has["audio"]
        else:
            score, usable = near[pairs_of(way)[0]], has[pairs_of(way)[0][1]].copy()
        usable &= np.arange(NUM) != row
        if label is not None:
            usable &= np.arange(NUM) % 4 == 2
        order = sorted(np.flatnonzero(usable), key=lambda i: (-score[i], i))
        found = rank(store, query, way=way, depth=NUM, label=label)
        assert found.rows.tolist() == order
        assert np.allclose(found.scores, score[order], atol=1e-5)
        assert found.exact
        assert rank(store, query, way=way, depth=3, label=label).rows.tolist() == order[:3]
        if label is None:
            together = rank_each(store, [query_of_row(store, int(asked[0])), query], way=way, depth=5)[1]
            assert together.rows.tolist() == order[:5]


def test_equal_scores_come_by_the_smaller_row(tmp_path: Path) -> None:
    same = {modality: np.repeat(np.eye(4), 5, axis=0) for modality in ("video", "audio")}
    store = write(tmp_path, same)
    assert rank(store, query_of_row(store, 7), way="v2v", depth=7).rows.tolist() == [5, 6, 8, 9, 0, 1, 2]


def test_scores_of_both_spaces_are_told_where_there_are_any(store: Store, has: dict) -> None:
    row = int(np.flatnonzero(has["video"] & ~has["audio"])[0])
    query = query_of_row(store, row)
    for found in search(store, query, way="v2v", k=5):
        assert found.video == pytest.approx(found.score, abs=1e-6)
        assert found.audio is None
    row = int(np.flatnonzero(has["video"] & has["audio"])[0])
    query = query_of_row(store, row)
    for found in described(store, query, rank(store, query, way="v2a", depth=NUM)):
        assert (found.video is None) == (not has["video"][found.row])
        assert found.audio is not None


def test_a_query_from_outside_needs_no_unit_vectors(store: Store) -> None:
    inside = query_of_row(store, 3)
    outside = query_of_vectors(
        {modality: 7 * vector.numpy() for modality, vector in inside.vectors.items()}, "mine.mp4"
    )
    assert rank(store, outside, way="v2v", depth=1).rows.tolist() == [3]
    assert rank(store, inside, way="v2v", depth=1).rows[0] == rank(store, outside, way="v2v", depth=2).rows[1]


def test_contrast_takes_what_stands_out_in_one_side_only(store: Store, vectors: dict, has: dict) -> None:
    both, num_found = has["video"] & has["audio"], 0
    typical = {}
    for modality, rows in has.items():
        unit = vectors[modality][rows].astype(np.float16).astype(float)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        typical[modality] = np.quantile((unit @ unit.T)[np.triu_indices(len(unit), 1)], [0.5, 0.95])
    for row in np.flatnonzero(both)[:20].tolist():
        query = query_of_row(store, row)
        found = contrast(store, query, k=6)
        near = cosines(vectors, {modality: query.vectors[modality].double().numpy() for modality in has})
        others = both & (np.arange(NUM) != row)
        assert found.positives.rows.tolist() == rank(store, query, way="agreement", depth=6).rows.tolist()
        for ranking, own, other in ((found.looks_alike, "video", "audio"), (found.sounds_alike, "audio", "video")):
            lead = near[own, own] - near[other, other]
            fits = others & (near[own, own] > typical[own][1]) & (near[other, other] < typical[other][0])
            assert ranking.rows.tolist() == sorted(np.flatnonzero(fits), key=lambda i: (-lead[i], i))[:6]
            assert np.allclose(ranking.scores, lead[ranking.rows], atol=1e-5)
            num_found += fits.sum()
    assert num_found


def test_what_hardly_differs_is_no_contrast(tmp_path: Path) -> None:
    """Where video and audio say the same, nothing looks alike and sounds different."""
    vectors = np.random.default_rng(0).normal(size=(200, 6))
    same = write(tmp_path / "same", {"video": vectors, "audio": vectors + 0.01})
    one = write(tmp_path / "one", {"video": vectors[:1], "audio": vectors[:1]})
    for store, rows in ((same, range(20)), (one, [0])):
        for row in rows:
            found = contrast(store, query_of_row(store, row), k=8)
            assert len(found.looks_alike.rows) == len(found.sounds_alike.rows) == 0


def test_the_end_of_a_path_is_enough_where_no_other_ends_so(tmp_path: Path) -> None:
    paths = ["copies-000.tar/dog/a.mp4", "copies-000.tar/cat/a.mp4", "copies-001.tar/cat/ba.mp4"]
    store = write(tmp_path, random_vectors(3, 4), paths=paths)
    assert (find_row(store, "dog/a.mp4"), find_row(store, "ba.mp4"), find_row(store, paths[1])) == (0, 2, 1)
    assert find_row(store, "og/a.mp4") is None
    with pytest.raises(QueryError, match=r"a.mp4 is 2 clips of .* 0 \(copies-000.tar/dog/a.mp4\), 1 \("):
        find_row(store, "a.mp4")


def test_parts_of_a_file_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parts = [(None, 1.5), (1.5, 3.0), (3.0, None), (None, None)]
    paths = ["a.mp4"] * 3 + ["b.mp4"]
    store = write(tmp_path, random_vectors(4, 4), paths=paths, parts=parts, ids=[3, 4, 7, 9])
    with pytest.raises(
        QueryError, match=r"a.mp4 is 3 clips of .* 3 \(a.mp4 \(0 s to 1.5 s\)\), 4 \(a.mp4 \(1.5 s to 3"
    ):
        find_row(store, "a.mp4")
    assert (find_row(store, "4"), find_row(store, "b.mp4"), find_row(store, "c.mp4")) == (1, 3, None)
    query = query_of_row(store, 1)
    assert (query.name, query_of_row(store, 3).name) == ("a.mp4 (1.5 s to 3 s)", "b.mp4")
    found = search(store, query, way="v2v", k=3)
    assert {(each.id, each.start, each.end) for each in found} == {(3, None, 1.5), (7, 3.0, None), (9, None, None)}
    assert command.main([str(tmp_path), "--query", "4", "--k", "3"]) == 0
    lines = sorted(line.split(maxsplit=3)[1:] for line in capsys.readouterr().out.splitlines()[1:])
    assert lines == [["3", "-", "a.mp4 (0 s to 1.5 s)"], ["7", "-", "a.mp4 (3 s to the end)"], ["9", "-", "b.mp4"]]


def test_a_set_of_one_clip_has_no_neighbors(tmp_path: Path) -> None:
    store = write(tmp_path, random_vectors(1, 4))
    with pytest.raises(QueryError, match="hold no other clips to choose from: extract more clips"):
        search(store, query_of_row(store, 0), way="v2v", k=1)


def test_what_cannot_be_asked_is_said(store: Store, has: dict, tmp_path: Path) -> None:
    silent = query_of_row(store, int(np.flatnonzero(~has["audio"])[0]))
    blind = query_of_row(store, int(np.flatnonzero(~has["video"])[0]))
    for query, ways, lack in (
        (silent, ("a2v", "a2a", "agreement"), "audio"),
        (blind, ("v2v", "v2a", "agreement"), "video"),
    ):
        for way in ways:
            with pytest.raises(ValueError, match=f"has no {lack}"):
                rank(store, query, way=way, depth=3)
        with pytest.raises(ValueError, match=f"has no {lack}"):
            contrast(store, query, k=3)
    features = write(tmp_path, random_vectors(9, 4), kind="features")
    assert ways_of(features) == ("v2v", "a2a", "agreement")
    assert ways_of(store) == WAYS
    with pytest.raises(ValueError, match="extract without --features"):
        rank(features, query_of_row(features, 0), way="v2a", depth=3)
    with pytest.raises(ValueError, match="k=9, but these embeddings hold 8 other clips"):
        search(features, query_of_row(features, 0), way="v2v", k=9)
    assert rank(features, query_of_row(features, 0), way="v2v", depth=3, label="none").rows.tolist() == []
