"""Finding neighbours in a store: within a modality, across modalities, or by agreement of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from avssl.mining.index import FlatIndex
from avssl.retrieval.store import Store

Modality = Literal["video", "audio"]


@dataclass(frozen=True)
class Query:
    """What is searched for: vectors of one clip, and its row of the store when it is in the set."""

    vectors: dict[str, np.ndarray]  # {video, audio: (D,)}; without the side that a clip does not have
    row: int | None  # position in the store, left out of the answer
    name: str


@dataclass(frozen=True)
class Neighbour:
    row: int
    id: int
    path: str
    label: str | None
    score: float  # cosine, or the smaller of both cosines


def find_row(store: Store, query: str) -> int | None:
    """Row of a clip given by id, by path relative to the set's folder, or by a path on disk; None when it is not in
    the set.
    """
    if query.isdigit() and not Path(query).exists():
        found = np.flatnonzero(store.ids == int(query))
        if len(found) == 0:
            raise ValueError(f"id {query} is not in these embeddings (ids {store.ids.min()} to {store.ids.max()})")
        return int(found[0])
    if query in store.paths:
        return store.paths.index(query)
    wanted = Path(query).resolve()
    root = Path(store.meta.root).resolve()
    if wanted.is_relative_to(root) and wanted.relative_to(root).as_posix() in store.paths:
        return store.paths.index(wanted.relative_to(root).as_posix())
    return None


def query_of_row(store: Store, row: int) -> Query:
    vectors = {name: matrix[row] for name, matrix in store.vectors.items() if _usable(store, name)[row]}
    return Query(vectors, row, store.paths[row])


def search(store: Store, query: Query, *, source: Modality, target: Modality, k: int) -> list[Neighbour]:
    """The k clips whose `target` side is nearest by cosine to the query's `source` side, the query itself left out.

    Raises:
        ValueError: the query has no `source` side, k is not between 1 and the number of other clips that have the
            target side, or trunk features across modalities.
    """
    if store.meta.kind != "embedding" and source != target:
        raise ValueError(
            f"{source} to {target} needs head outputs, and these are trunk features, which do not share a space: "
            f"extract without --features"
        )
    vector = _side(query, source)
    rows = np.flatnonzero(_usable(store, target))
    _check_number(k, rows, query)
    index = FlatIndex(torch.from_numpy(_unit(store.vectors[target][rows])))
    wanted = min(k + 1, len(rows))  # one more, since the query itself may be among them
    scores, places = index.search(torch.from_numpy(_unit(vector[None])), k=wanted)
    found = [(int(rows[place]), score) for score, place in zip(scores[0].tolist(), places[0].tolist(), strict=True)]
    return [_neighbour(store, row, score) for row, score in found if row != query.row][:k]


def search_agreement(store: Store, query: Query, *, k: int) -> list[Neighbour]:
    """The k clips most alike in picture AND sound: by the smaller of the video and the audio cosine (AVID-CMA's
    consensus).

    Raises:
        ValueError: the query lacks a side, or k is not between 1 and the number of other clips with both.
    """
    cosines = [
        _unit(store.vectors[name]) @ _unit(_side(query, name)[None])[0] for name in ("video", "audio")
    ]  # (n,) each
    score = np.minimum(*cosines)
    usable = store.has_audio & store.has_video
    score[~usable] = -np.inf
    if query.row is not None:
        score[query.row] = -np.inf
    _check_number(k, np.flatnonzero(usable), query)
    order = np.argsort(-score, kind="stable")[:k]
    return [_neighbour(store, int(row), float(score[row])) for row in order]


def _check_number(k: int, rows: np.ndarray, query: Query) -> None:
    """Refuse more neighbours than there are clips to choose from, at the positions `rows` of the store."""
    others = int((rows != query.row).sum()) if query.row is not None else len(rows)
    if not 1 <= k <= others:
        raise ValueError(f"k={k}, but these embeddings hold {others} other clips to choose from: give 1 to {others}")


def _usable(store: Store, side: str) -> np.ndarray:
    return store.has_audio if side == "audio" else store.has_video


def _side(query: Query, source: str) -> np.ndarray:
    if source not in query.vectors:
        missing, other = ("sound", "video") if source == "audio" else ("picture", "audio")
        raise ValueError(
            f"{query.name} has no {missing}, so nothing can be found from its {source}: ask with --from {other} --to "
            f"{other}"
        )
    return query.vectors[source]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _neighbour(store: Store, row: int, score: float) -> Neighbour:
    return Neighbour(row, int(store.ids[row]), store.paths[row], store.labels[row], score)
