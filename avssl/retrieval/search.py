"""Finding neighbours in a store: within a modality, across modalities, or by agreement of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from avssl.retrieval.store import Store

Modality = Literal["video", "audio"]


@dataclass(frozen=True)
class Query:
    """What is searched for: vectors of one clip, and its row of the store when it is in the set."""

    vectors: dict[str, np.ndarray]  # {video, audio: (D,)}; audio is missing for a clip without sound
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
    """Row of a clip given by id, by path relative to the set's folder, or by a path on disk; None when it is not in the set."""
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
    vectors = {name: matrix[row] for name, matrix in store.vectors.items() if name != "audio" or store.has_audio[row]}
    return Query(vectors, row, store.paths[row])


def search(store: Store, query: Query, *, source: Modality, target: Modality, k: int) -> list[Neighbour]:
    """The k clips whose `target` side is nearest by cosine to the query's `source` side, the query itself left out.

    Raises:
        ValueError: a side without sound is asked for, k < 1, or trunk features across modalities.
    """
    if store.meta.kind != "embedding" and source != target:
        raise ValueError(
            f"{source} to {target} needs head outputs, and these are trunk features, which do not share a space: extract without --features"
        )
    return _best(store, query, _cosine(store, query, source, target), _usable(store, target), k)


def search_agreement(store: Store, query: Query, *, k: int) -> list[Neighbour]:
    """The k clips most alike in picture AND sound: by the smaller of the video and the audio cosine (AVID-CMA's consensus)."""
    score = np.minimum(_cosine(store, query, "video", "video"), _cosine(store, query, "audio", "audio"))
    return _best(store, query, score, _usable(store, "audio"), k)


def _usable(store: Store, target: Modality) -> np.ndarray:
    return store.has_audio if target == "audio" else np.ones(len(store.ids), dtype=bool)


def _cosine(store: Store, query: Query, source: Modality, target: Modality) -> np.ndarray:
    if source not in query.vectors:
        raise ValueError(f"{query.name} has no sound, so nothing can be found from its {source}: ask with --from video --to video")
    matrix, vector = store.vectors[target], query.vectors[source]
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(vector)
    return matrix @ vector / np.maximum(lengths, 1e-12)


def _best(store: Store, query: Query, score: np.ndarray, usable: np.ndarray, k: int) -> list[Neighbour]:
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    usable = usable.copy()
    if query.row is not None:
        usable[query.row] = False
    order = np.argsort(-np.where(usable, score, -np.inf), kind="stable")[: min(k, int(usable.sum()))]
    return [
        Neighbour(int(row), int(store.ids[row]), store.paths[row], store.labels[row], float(score[row])) for row in order
    ]
