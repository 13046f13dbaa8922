"""Neighbours by looking at every clip, against the definition in plain numpy."""

from pathlib import Path

import numpy as np
import pytest

from avssl.retrieval.search import (
    WAYS,
    contrast,
    described,
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


def test_contrast_takes_what_leads_in_one_side_only(store: Store, vectors: dict, has: dict) -> None:
    both = has["video"] & has["audio"]
    row = int(np.flatnonzero(both)[4])
    query = query_of_row(store, row)
    found = contrast(store, query, k=6)
    near = cosines(vectors, {modality: query.vectors[modality].double().numpy() for modality in has})
    look, sound = near["video", "video"], near["audio", "audio"]
    others = np.arange(NUM) != row
    assert found.positives.rows.tolist() == rank(store, query, way="agreement", depth=6).rows.tolist()
    for ranking, own, other, modality in (
        (found.looks_alike, look, sound, "video"),
        (found.sounds_alike, sound, look, "audio"),
    ):
        near_rows = sorted(np.flatnonzero(has[modality] & others), key=lambda i: -own[i])[:50]
        lead = {i: own[i] - other[i] for i in near_rows if both[i] and own[i] > other[i]}
        assert ranking.rows.tolist() == sorted(lead, key=lambda i: (-lead[i], i))[:6]
        assert np.allclose(ranking.scores, [lead[i] for i in ranking.rows.tolist()], atol=1e-5)


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
