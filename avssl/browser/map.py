"""A map of embeddings: clips as points in the plane by PCA or UMAP, in clusters to color them by.

Letters: n drawn clips, D dimensions.
"""

import importlib.util
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from avssl.files import WriteError, atomic_write
from avssl.retrieval.search import QueryError
from avssl.retrieval.store import Store
from avssl.structs import MODALITIES

Method = Literal["pca", "umap"]
MAX_POINTS = 5000
CLIPS_PER_CLUSTER, MAX_CLUSTERS = 20, 10
UMAP_NEIGHBORS = 15


@dataclass(frozen=True)
class Map:
    """Where each drawn clip lies."""

    rows: np.ndarray  # (n,) positions in the store, rising
    places: dict[str, np.ndarray]  # {video, audio: (n, 2) float64 in [0, 1], NaN where a clip lacks the modality}
    clusters: np.ndarray  # (n,) int64
    note: str  # how it was made


def has_umap() -> bool:
    return importlib.util.find_spec("umap") is not None


def open_map(store: Store, folder: Path, *, method: Method, info: Callable[[str], None]) -> Map:
    """Read the map of these embeddings from a folder, or draw it and save it there; `info` receives warnings. Raises
    QueryError as `draw_map`."""
    path, state = folder / f"map-{method}.npz", store.digest()
    if path.exists():
        why = "the embeddings changed since it was drawn"
        try:
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["state"]) == state:
                    places = {modality: kept[modality] for modality in MODALITIES}
                    return Map(kept["rows"], places, kept["clusters"], str(kept["note"]))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            why = f"it cannot be read ({error})"
        info(f"the map in {path} is drawn again: {why}")
    drawn = draw_map(store, method=method)
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            facts = {"state": state, "note": drawn.note, "rows": drawn.rows, "clusters": drawn.clusters}
            np.savez(file, **facts, **drawn.places)
    except WriteError as error:
        info(f"the map is kept in memory only: {error}")
    return drawn


def draw_map(store: Store, *, method: Method) -> Map:
    """Map of up to MAX_POINTS random clips (fixed seed). Raises QueryError: UMAP is not installed."""
    if method == "umap" and not has_umap():
        raise QueryError("UMAP is not installed: pip install 'avssl[umap]', or look at the map by PCA")
    num = min(len(store), MAX_POINTS)
    rows = np.sort(np.random.default_rng(0).choice(len(store), num, replace=False))
    vectors = {modality: store.vectors[modality].take(rows).numpy() for modality in MODALITIES}
    places, notes = {}, []
    for modality in MODALITIES:
        present = store.has[modality][rows]
        places[modality] = np.full((num, 2), np.nan)
        if not present.any():
            continue
        if method == "umap":
            found = _umap(vectors[modality][present])
        else:
            found, share = _pca(vectors[modality][present])
            notes.append(f"{modality}: the first two components hold {share:.0%} of the variance")
        places[modality][present] = _to_unit_square(found)
    drawn = f"{num:,} of {len(store):,} clips, drawn at random" if num < len(store) else f"all {num:,} clips"
    words = f"UMAP ({UMAP_NEIGHBORS} neighbors, cosine)" if method == "umap" else "PCA"
    return Map(rows, places, _cluster(vectors), "; ".join([f"{words} of {drawn}", *notes]))


def _pca(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """(n, 2) first two components, each with its largest weight positive, and their share of the variance."""
    centered = vectors - vectors.mean(axis=0)
    _, sizes, components = np.linalg.svd(centered, full_matrices=False)
    components = components[:2]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
    found = np.zeros((len(vectors), 2))
    found[:, : len(components)] = centered @ components.T
    return found, float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-12))


def _umap(vectors: np.ndarray) -> np.ndarray:
    """(n, 2)"""
    import umap  # an extra, and seconds to import

    if len(vectors) <= UMAP_NEIGHBORS:
        return _pca(vectors)[0]
    model = umap.UMAP(n_neighbors=UMAP_NEIGHBORS, metric="cosine", random_state=0, n_jobs=1)
    return model.fit_transform(vectors)


def _to_unit_square(places: np.ndarray) -> np.ndarray:
    """The same scale on both axes, centered."""
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5


def _cluster(vectors: dict[str, np.ndarray]) -> np.ndarray:
    """k-means over both modalities of each clip; clusters by falling size."""
    both = np.ascontiguousarray(
        np.concatenate([vectors[modality] for modality in MODALITIES], axis=1), dtype=np.float32
    )
    num = int(np.clip(len(both) // CLIPS_PER_CLUSTER, 1, MAX_CLUSTERS))
    kmeans = faiss.Kmeans(both.shape[1], num, niter=20, seed=0, min_points_per_centroid=1)
    kmeans.train(both)
    _, found = kmeans.index.search(both, 1)
    order = np.argsort(-np.bincount(found[:, 0], minlength=num), kind="stable")
    return np.argsort(order)[found[:, 0]]
