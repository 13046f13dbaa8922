"""Approximate search over many clips: FAISS proposes candidates, which search.py scores exactly.

There is an inverted file for video, for audio, and for both concatenated: for unit vectors min(v, a) <= (v + a) / 2, so
the inner product over [v ; a] / sqrt(2) ranks by an upper bound of the agreement. As few lists are visited as reach
RECALL_AIM on a sample. Candidates do not depend on the number of results, so that pages fit together.

Letters: n clips, m of them, D dimensions.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from avssl.files import POLL_SECONDS, WriteError, atomic_write, digest, folder_lock
from avssl.mining.index import faiss_threads
from avssl.retrieval.search import Query, Way, query_modalities, query_of_row, rank_each, result_modalities, ways_of
from avssl.retrieval.store import Store
from avssl.structs import MODALITIES

EXACT_BELOW = 50_000  # clips: exact search takes milliseconds
MAX_DEPTH, MAX_DEPTH_BOTH = 1000, 100  # neighbors taken from the index; beyond, exact search
NUM_CANDIDATES, NUM_CANDIDATES_BOTH = 1128, 8192  # candidates: more, since 8 bits and the bound are inexact
RECALL_AIM = 0.99
SAMPLE_QUERIES = 100  # for measuring recall
SAMPLE_TOGETHER = 20  # queries per pass over all clips
TRAINING_PER_LIST = 40  # training vectors per list
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Measured:
    """Settings and recall measured while building."""

    state: str  # digest of the embeddings
    num_visited: dict[str, int]  # {way: lists that a search visits}
    recall: dict[str, float]  # {way: recall of the true neighbors down to the largest depth}
    seconds: float  # that building took


class NeighborIndex:
    """See the module docstring. Thread-safe."""

    def __init__(self, spaces: dict[str, faiss.Index], measured: Measured) -> None:
        self.spaces = spaces  # {video, audio, both: FAISS index, ids are positions in the store}
        self.measured = measured

    @staticmethod
    def max_depth(way: Way) -> int:
        """As `Narrowing`."""
        return MAX_DEPTH_BOTH if way == "agreement" else MAX_DEPTH

    def candidates(self, query: Query, way: Way) -> np.ndarray | None:
        """As `Narrowing`."""
        space = self.spaces[_space(way)]
        with faiss_threads(1):  # searches are short and run concurrently
            rows = _visit(space, query, way, self.measured.num_visited[way])
        return rows if len(rows) > self.max_depth(way) or len(rows) == space.ntotal else None


def open_index(store: Store, folder: Path, *, info: Callable[[str], None]) -> NeighborIndex:
    """Read the index of these embeddings from a folder, or (re)build it there, one process at a time; `info` receives
    progress messages."""
    try:
        with folder_lock(folder, file="index", wait=lambda: time.sleep(POLL_SECONDS)):
            return _open_index(store, folder, info)
    except WriteError:  # a folder that can only be read
        return _open_index(store, folder, info)


def _open_index(store: Store, folder: Path, info: Callable[[str], None]) -> NeighborIndex:
    record = folder / "index.json"
    if record.exists():
        why = "the embeddings changed since it was built"
        try:
            noted = json.loads(record.read_text())
            files, measured = noted.pop("files"), Measured(**noted)
            names = {_space(way) for way in measured.num_visited}
            complete = set(measured.num_visited) == set(measured.recall) == set(ways_of(store))
            if measured.state == store.digest() and complete:
                paths = {name: folder / f"{name}.faiss" for name in names}
                if files != {name: _digest(path) for name, path in paths.items()}:  # FAISS might crash
                    raise ValueError("it is damaged")
                return NeighborIndex({name: faiss.read_index(str(path)) for name, path in paths.items()}, measured)
        except (
            AttributeError,
            KeyError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # FAISS raises RuntimeError
            why = f"it cannot be read ({str(error).splitlines()[0]})"
        info(f"the index in {folder} is built again: {why}")
    index = build_index(store, info=info)
    try:
        record.unlink(missing_ok=True)  # an interrupted write leaves no valid index
        for name, space in index.spaces.items():
            with atomic_write(folder / f"{name}.faiss") as temporary:
                faiss.write_index(space, str(temporary))
        files = {name: _digest(folder / f"{name}.faiss") for name in index.spaces}
        with atomic_write(record) as temporary:
            temporary.write_text(json.dumps(asdict(index.measured) | {"files": files}) + "\n")
    except (OSError, WriteError) as error:
        info(f"the index is kept in memory only: {error}")
    return index


def _digest(path: Path) -> str:
    return digest(np.memmap(path, np.uint8, "r").data)


def build_index(store: Store, *, info: Callable[[str], None]) -> NeighborIndex:
    """Build the index for all ways to search these embeddings, and measure its recall."""
    since, ways = time.perf_counter(), ways_of(store)
    spaces, num_visited, recall = {}, {}, {}
    for name in sorted({_space(way) for way in ways}):
        rows = np.flatnonzero(store.has_all(_modalities(name)))
        info(f"index over {name}, {len(rows):,} clips")
        spaces[name] = _build(store, name, rows)
    for way in ways:
        num_visited[way], recall[way] = _tune(store, spaces[_space(way)], way)
    measured = Measured(store.digest(), num_visited, recall, time.perf_counter() - since)
    return NeighborIndex(spaces, measured)


def _space(way: str) -> str:
    return "both" if way == "agreement" else result_modalities(way)[0]


def _modalities(space: str) -> tuple[str, ...]:
    return MODALITIES if space == "both" else (space,)


def _vectors(store: Store, space: str, rows: np.ndarray) -> np.ndarray:
    """(m, D) or, of both, (m, 2 D) unit vectors."""
    modalities = [store.vectors[modality].take(rows) for modality in _modalities(space)]
    return (torch.cat(modalities, dim=1) / len(modalities) ** 0.5).numpy()


def _build(store: Store, space: str, rows: np.ndarray) -> faiss.Index:
    """8 bits per number: candidates are scored again from the embeddings."""
    num_lists = min(len(rows), round(2 * len(rows) ** 0.5))
    num_training = min(len(rows), TRAINING_PER_LIST * num_lists)
    sample = np.random.default_rng(0).choice(rows, num_training, replace=False)
    training = _vectors(store, space, np.sort(sample))
    index = faiss.index_factory(training.shape[1], f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(training)
    for first in range(0, len(rows), BLOCK_ROWS):
        block = rows[first : first + BLOCK_ROWS]
        index.add_with_ids(_vectors(store, space, block), block)
    return index


def _visit(space: faiss.Index, query: Query, way: Way, num_visited: int) -> np.ndarray:
    """(m,) positions of the best clips by the index."""
    vectors = [query.vectors[modality] for modality in query_modalities(way)]
    vector = torch.cat(vectors).numpy()[None] / len(vectors) ** 0.5
    wanted = min(NUM_CANDIDATES_BOTH if way == "agreement" else NUM_CANDIDATES, space.ntotal)
    _, rows = space.search(vector, wanted, params=faiss.SearchParametersIVF(nprobe=num_visited))
    return rows[0][rows[0] >= 0]


def _tune(store: Store, space: faiss.Index, way: Way) -> tuple[int, float]:
    """Number of lists to visit, and the recall with them."""
    usable = np.flatnonzero(store.has_all(query_modalities(way)))
    rows = np.random.default_rng(1).choice(usable, min(SAMPLE_QUERIES, len(usable)), replace=False)
    queries = [query_of_row(store, int(row)) for row in rows]
    groups = [queries[first : first + SAMPLE_TOGETHER] for first in range(0, len(queries), SAMPLE_TOGETHER)]
    depth = NeighborIndex.max_depth(way)
    true = [each.rows for group in groups for each in rank_each(store, group, way=way, depth=depth)]
    num_visited = 1
    while True:
        found = [_visit(space, query, way, num_visited) for query in queries]
        hits = sum(int(np.isin(wanted, got).sum()) for wanted, got in zip(true, found, strict=True))
        recall = hits / max(sum(len(wanted) for wanted in true), 1)
        if recall >= RECALL_AIM or num_visited == space.nlist:
            return num_visited, recall
        num_visited = min(2 * num_visited, space.nlist)
