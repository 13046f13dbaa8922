"""Search for neighbors in a store: within a modality, across modalities, or by agreement.

Letters: n clips, m of them, Q queries, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.retrieval.store import Store
from avssl.structs import MODALITIES

Way = Literal["v2v", "v2a", "a2v", "a2a", "agreement"]
WAYS: tuple[Way, ...] = get_args(Way)
MODALITY_OF = {"v": "video", "a": "audio"}
ROUNDING_ROWS = 64  # extra clips that are scored again in float64, since rounding may have put them behind
SIMILAR_FRACTION, SIMILAR_CLIPS = 0.05, (50, 1000)  # that count as similar in a modality; at least, at most


class QueryError(ValueError):
    """A query that these embeddings cannot answer."""


@dataclass(frozen=True)
class Query:
    """Vectors of one clip, and its row of the store if it is in the set."""

    vectors: dict[str, Tensor]  # {video, audio: (D,) unit length}; without the modality that the clip does not have
    row: int | None  # position in the store, excluded from the results
    name: str


@dataclass(frozen=True)
class Neighbor:
    row: int
    id: int
    path: str
    start: float | None  # seconds of the part of its file that the clip is; None = from the beginning
    end: float | None  # None = to the end
    label: str | None
    score: float  # cosine, or the smaller of both cosines
    video: float | None  # cosine of the video vectors; None where either clip has none
    audio: float | None  # of the audio vectors, likewise


@dataclass(frozen=True)
class Ranking:
    """Clips in order."""

    rows: np.ndarray  # (m,) int64 positions in the store, best first; equal scores by the smaller position
    scores: np.ndarray  # (m,) float32
    exact: bool  # every clip was scored

    def __getitem__(self, part: slice) -> "Ranking":
        return Ranking(self.rows[part], self.scores[part], self.exact)


@dataclass(frozen=True)
class Contrast:
    """Positives by agreement, and clips that are similar in one modality only: more than 95 % of the pairs of the set
    in that one, and less than half of them in the other; best first."""

    positives: Ranking  # similar in both modalities
    looks_alike: Ranking  # similar in video only; scores are differences of the cosines
    sounds_alike: Ranking  # the reverse


class Narrowing(Protocol):
    """An index that proposes candidates."""

    def candidates(self, query: Query, way: Way) -> np.ndarray | None:
        """(m,) positions in the store, in any order, more than `max_depth`; None when there are too few."""

    def max_depth(self, way: Way) -> int:
        """How many neighbors come from the candidates; beyond, every clip is scored."""


def find_row(store: Store, query: str) -> int | None:
    """Row of a clip given by id, path relative to the set's folder or the end of one (a file's name), or path on disk;
    None when it is not in the set.

    Raises:
        QueryError: no clip has that id, or several clips are parts of that file or end so.
    """
    if query.isdigit() and not Path(query).exists():
        row = store.row(int(query))
        if row is None:
            raise QueryError(f"id {query} is not in these embeddings (ids {store.ids.min()} to {store.ids.max()})")
        return row
    paths = [query]
    wanted, root = Path(query).resolve(), Path(store.meta.root).resolve()
    if wanted.is_relative_to(root):
        paths.append(wanted.relative_to(root).as_posix())
    column = store.table.column("path")
    rows = np.flatnonzero(pc.is_in(column, pa.array(paths, pa.string()))).tolist()
    if not rows and not Path(query).exists():
        rows = np.flatnonzero(pc.ends_with(column, f"/{query}")).tolist()
    if len(rows) > 1:
        parts = ", ".join(f"{store.ids[row]} ({name_of(store, row)})" for row in rows[:3])
        raise QueryError(f"{query} is {len(rows)} clips of these embeddings: give the id of one, such as {parts}")
    return rows[0] if rows else None


def name_of(store: Store, row: int) -> str:
    """The path of a clip, and the seconds of a part of a file."""
    seconds = _seconds(store, row)
    return f"{store.path(row)} ({seconds})" if seconds else store.path(row)


def _seconds(store: Store, row: int) -> str:
    start, end = store.part(row)
    if start is None and end is None:
        return ""
    return f"{start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"


def query_of_row(store: Store, row: int) -> Query:
    vectors = {
        modality: store.vectors[modality].take(np.array([row]))[0]
        for modality in MODALITIES
        if store.has[modality][row]
    }
    return Query(vectors, row, name_of(store, row))


def query_of_vectors(vectors: Mapping[str, np.ndarray], name: str) -> Query:
    """A clip outside of the set: {video, audio: (D,)} of the modalities that it has."""
    unit = {modality: F.normalize(torch.as_tensor(vector).float(), dim=0) for modality, vector in vectors.items()}
    return Query(unit, None, name)


def ways_of(store: Store) -> tuple[Way, ...]:
    """The ways to search these embeddings; encoder features of video and audio share no space."""
    return tuple(
        way
        for way in WAYS
        if store.has_all(query_modalities(way)).any()
        and store.has_all(result_modalities(way)).any()
        and (store.meta.kind == "embedding" or way not in ("v2a", "a2v"))
    )


def pairs_of(way: Way) -> tuple[tuple[str, str], ...]:
    """(modality of the query, of the clips) pairs that are compared; the score is the smallest cosine."""
    return (
        tuple((modality, modality) for modality in MODALITIES)
        if way == "agreement"
        else ((MODALITY_OF[way[0]], MODALITY_OF[way[-1]]),)
    )


def query_modalities(way: Way) -> tuple[str, ...]:
    """Sides that a query needs."""
    return tuple(source for source, _ in pairs_of(way))


def result_modalities(way: Way) -> tuple[str, ...]:
    """Sides that an answer has."""
    return tuple(target for _, target in pairs_of(way))


def search(store: Store, query: Query | int | Mapping[str, np.ndarray], *, way: Way, k: int) -> list[Neighbor]:
    """The k clips nearest to the query.

    Args:
        query: also the position of a row, or vectors {video, audio: (D,)} of a clip outside of the set.

    Raises:
        QueryError: as `rank`, or k is not between 1 and the number of other clips that have the modality.
    """
    if isinstance(query, Mapping):
        query = query_of_vectors(query, "the query")
    elif isinstance(query, int | np.integer):
        query = query_of_row(store, int(query))
    ranking = rank(store, query, way=way, depth=max(k, 1))
    if not 1 <= k <= len(ranking.rows):
        others = len(_choosable(store, query, way))
        hint = f"give 1 to {others}" if others else "extract more clips"
        raise QueryError(f"k={k}, but these embeddings hold {others or 'no'} other clips to choose from: {hint}")
    return described(store, query, ranking)


def rank(
    store: Store, query: Query, *, way: Way, depth: int, label: str | None = None, index: Narrowing | None = None
) -> Ranking:
    """The `depth` clips nearest to the query, or as many as there are, without the query itself.

    Args:
        way: modality of the query to modality of the clips; agreement: by the smaller of the video and the audio
            cosine (AVID-CMA's consensus).
        label: of the clips to choose from; None = all. With a label every clip that has it is scored.
        index: proposes candidates; None = score all clips.

    Raises:
        QueryError: the query lacks a modality that is asked for, or the features share no space.
    """
    check_way(store, query, way)
    if index is None or label is not None:
        return _rank_among(store, query, way, _choosable(store, query, way, label=label), depth, exact=True)
    near = index.candidates(query, way)
    if near is None:
        return rank(store, query, way=way, depth=depth)
    near = np.sort(near[near != query.row])
    first = _rank_among(store, query, way, near, min(depth, index.max_depth(way)), exact=False)
    if depth <= len(first.rows):
        return first
    # Deeper, every clip is scored; earlier results keep their order, so that pages neither repeat nor miss a clip.
    all_of_them = rank(store, query, way=way, depth=depth)
    further = ~np.isin(all_of_them.rows, first.rows)
    rows = np.concatenate([first.rows, all_of_them.rows[further]])[:depth]
    scores = np.concatenate([first.scores, all_of_them.scores[further]])[:depth]
    return Ranking(rows, scores, exact=False)


def _rank_among(store: Store, query: Query, way: Way, rows: np.ndarray, depth: int, *, exact: bool) -> Ranking:
    """The nearest of these sorted rows (m,)."""
    if len(rows) > depth + ROUNDING_ROWS:
        rows = np.sort(_best(rows, _coarse_scores(store, query, way, rows), depth + ROUNDING_ROWS, exact=True).rows)
    scores = [_cosines(store, query.vectors[source], target, rows) for source, target in pairs_of(way)]
    return _best(rows, np.minimum.reduce(scores), depth, exact=exact)


def rank_each(store: Store, queries: Sequence[Query], *, way: Way, depth: int) -> list[Ranking]:
    """`rank` of several queries in one pass over all clips; memory for one float per query and clip."""
    tables = [
        store.vectors[target].cosines(torch.stack([query.vectors[source] for query in queries])).numpy()
        for source, target in pairs_of(way)
    ]
    scores = np.minimum.reduce(tables)  # (Q, n)
    rankings = []
    for query, row in zip(queries, scores, strict=True):
        rows = _choosable(store, query, way)
        rankings.append(_best(rows, row[rows], depth, exact=True))
    return rankings


def contrast(
    store: Store, query: Query, *, k: int, label: str | None = None, index: Narrowing | None = None
) -> Contrast:
    """The k positives by agreement, and of the nearest 5 % (50 to 1,000 clips) in one modality at most k that
    `Contrast` means, those first that lead most over the cosine of the other one.

    Raises:
        QueryError: as `rank`.
    """
    check_way(store, query, "agreement")
    usable = int(store.has_all(MODALITIES).sum())
    depth = int(np.clip(round(SIMILAR_FRACTION * usable), *SIMILAR_CLIPS))
    lists = {}
    for modality, other in (MODALITIES, MODALITIES[::-1]):
        near = rank(store, query, way="v2v" if modality == "video" else "a2a", depth=depth, label=label, index=index)
        rows = np.sort(near.rows[store.has[other][near.rows]])
        own, others = (_cosines(store, query.vectors[name], name, rows) for name in (modality, other))
        fits = (own > store.pair_cosines[modality][1]) & (others < store.pair_cosines[other][0])
        lists[modality] = _best(rows[fits], (own - others)[fits], k, exact=near.exact)
    return Contrast(
        positives=rank(store, query, way="agreement", depth=k, label=label, index=index),
        looks_alike=lists["video"],
        sounds_alike=lists["audio"],
    )


def described(store: Store, query: Query, ranking: Ranking) -> list[Neighbor]:
    """Clips of a ranking with path, label and cosines."""
    cosines = {modality: _cosines(store, vector, modality, ranking.rows) for modality, vector in query.vectors.items()}
    found = []
    for place, row in enumerate(ranking.rows.tolist()):
        near = {modality: None for modality in MODALITIES}
        near |= {modality: float(values[place]) for modality, values in cosines.items() if store.has[modality][row]}
        score = float(ranking.scores[place])
        facts = (store.path(row), *store.part(row), store.label(row), score)
        found.append(Neighbor(row, int(store.ids[row]), *facts, **near))
    return found


def _choosable(store: Store, query: Query, way: Way, *, label: str | None = None) -> np.ndarray:
    """(m,) sorted positions of the other clips that can be results."""
    usable = store.has_all(result_modalities(way))
    if label is not None:
        usable = usable & store.with_label(label)
    rows = np.flatnonzero(usable)
    return rows if query.row is None else rows[rows != query.row]


def check_way(store: Store, query: Query, way: Way) -> None:
    """Raise QueryError when this search is not possible for a query."""
    if way in ("v2a", "a2v") and store.meta.kind != "embedding":
        raise QueryError(
            f"{MODALITY_OF[way[0]]} to {MODALITY_OF[way[-1]]} needs head outputs, but these are encoder "
            "features, which share no space: extract without --features"
        )
    for modality in query_modalities(way):
        if modality not in query.vectors:
            other = "video" if modality == "audio" else "audio"
            raise QueryError(
                f"{query.name} has no {modality}, so nothing can be found from it: search from {other} to {other}"
            )


def _cosines(store: Store, vector: Tensor, modality: str, rows: np.ndarray) -> np.ndarray:
    """(m,) float32 cosines of a unit vector (D,) to a few rows (m,) of a modality, summed in float64."""
    return (store.vectors[modality].take(rows).double() @ vector.double()).float().numpy()


def _coarse_scores(store: Store, query: Query, way: Way, rows: np.ndarray) -> np.ndarray:
    """(m,) float32 scores of many clips, up to rounding."""
    found = []
    for source, target in pairs_of(way):
        vector, vectors = query.vectors[source], store.vectors[target]
        few = len(rows) < len(store) // 4  # else one pass over all is faster than gathering
        found.append((vectors.take(rows) @ vector if few else vectors.cosines(vector[None])[0][rows]).numpy())
    return np.minimum.reduce(found)


def _best(rows: np.ndarray, scores: np.ndarray, k: int, *, exact: bool) -> Ranking:
    """The k rows with the largest scores, out of sorted rows."""
    if k < len(rows):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[scores >= least], scores[scores >= least]
    order = np.argsort(-scores, kind="stable")[:k]
    return Ranking(rows[order], scores[order], exact)
