"""Approximate search for embeddings of very many clips: FAISS narrows them down, search.py scores what is left exactly.

An inverted file over the pictures, one over the sounds, and one over both side by side: for unit vectors
min(v, a) <= (v + a) / 2, so an inner product over [v ; a] / sqrt(2) ranks by an upper bound of the agreement. How many
lists are visited is chosen for each way by measuring: as few as find RECALL_AIM of the true neighbours of a sample.

The files lie beside the embeddings and are built again when those change.

Letters: n clips, m of them, D dimensions.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from avssl.files import WriteError, whole_file
from avssl.retrieval.search import Query, Way, query_of_row, rank, rank_each, sides_of, ways_of
from avssl.retrieval.store import Store
from avssl.structs import MODALITIES

EXACT_BELOW = 50_000  # clips: up to here looking at every one takes milliseconds
MAX_DEPTH = 1000  # neighbours asked for; deeper, every clip is looked at
RECALL_AIM = 0.99
SAMPLE_QUERIES, SAMPLE_K = 100, 10  # recall is measured on this many clips, among this many neighbours
SAMPLE_TOGETHER = 20  # of them in one pass over all clips
TRAINING_PER_LIST = 40  # vectors that place each list
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Measured:
    """What building found out."""

    state: str  # digest of the embeddings that the index is of
    num_visited: dict[str, int]  # {way: lists that a search visits}
    recall: dict[str, float]  # {way: share of the SAMPLE_K true neighbours that are found}
    seconds: float  # that building took


class NeighbourIndex:
    """See the module. Searches may run in several threads at once."""

    def __init__(self, spaces: dict[str, faiss.Index], measured: Measured) -> None:
        self.spaces = spaces  # {video, audio, both: what FAISS has, ids are positions in the store}
        self.measured = measured

    def candidates(self, query: Query, way: Way, *, depth: int) -> np.ndarray | None:
        """As `Narrowing`; None beyond MAX_DEPTH."""
        faiss.omp_set_num_threads(1)  # of this thread: one search is short, and others run beside it
        return None if depth > MAX_DEPTH else _visit(self.spaces, query, way, depth, self.measured.num_visited[way])


def open_index(store: Store, folder: Path, *, say: Callable[[str], None]) -> NeighbourIndex:
    """Read the index of these embeddings from a folder, or build it there.

    Args:
        say: is told what is built, and why, and when it could not be written down.
    """
    record, why = folder / "index.json", ""
    if record.exists():
        try:
            measured = Measured(**json.loads(record.read_text()))
            names = {_space(way) for way in measured.num_visited}
            if measured.state == digest(store):
                return NeighbourIndex(
                    {name: faiss.read_index(str(folder / f"{name}.faiss")) for name in names}, measured
                )
            why = "the embeddings changed since it was built"
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # RuntimeError: FAISS's only kind
            why = f"it cannot be read ({str(error).splitlines()[0]})"
        say(f"the index in {folder} is built again: {why}")
    index = build_index(store, say=say)
    try:
        record.unlink(missing_ok=True)  # killed while writing, the files are not taken for those of the record
        for name, space in index.spaces.items():
            with whole_file(folder / f"{name}.faiss") as temporary:
                faiss.write_index(space, str(temporary))
        with whole_file(record) as temporary:
            temporary.write_text(json.dumps(asdict(index.measured)) + "\n")
    except (OSError, WriteError) as error:
        say(f"the index is kept in memory only: {error}")
    return index


def build_index(store: Store, *, say: Callable[[str], None]) -> NeighbourIndex:
    """Build the index of all ways that these embeddings can be asked, and measure it."""
    since = time.perf_counter()
    spaces = {}
    for name in sorted({_space(way) for way in ways_of(store)}):
        rows = np.flatnonzero(np.logical_and.reduce([store.has[side] for side in _sides(name)]))
        say(f"index over {name}, {len(rows):,} clips")
        spaces[name] = _build(store, name, rows)
    num_visited, recall = {}, {}
    for way in ways_of(store):
        num_visited[way], recall[way] = _tune(store, spaces, way)
    measured = Measured(digest(store), num_visited, recall, time.perf_counter() - since)
    return NeighbourIndex(spaces, measured)


def digest(store: Store) -> str:
    """Tells embeddings apart: what they are of, and size and time of every file of vectors."""
    found = hashlib.blake2b(repr(store.meta).encode(), digest_size=16)
    for path in sorted(store.folder.glob("shard-*.npy")):
        entry = path.stat()
        found.update(f"{path.name} {entry.st_size} {entry.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _space(way: str) -> str:
    return "both" if way == "agreement" else sides_of(way)[1]


def _sides(space: str) -> tuple[str, ...]:
    return MODALITIES if space == "both" else (space,)


def _vectors(store: Store, space: str, rows: np.ndarray) -> np.ndarray:
    """(m, D) or, of both, (m, 2 D) unit vectors."""
    sides = [store.vectors[side].take(rows) for side in _sides(space)]
    return (torch.cat(sides, dim=1) / len(sides) ** 0.5).numpy()


def _build(store: Store, space: str, rows: np.ndarray) -> faiss.Index:
    """8 bits a number: what is found is scored anew from the embeddings."""
    num_lists = max(1, round(2 * len(rows) ** 0.5))
    sample = np.sort(
        np.random.default_rng(0).choice(rows, min(len(rows), TRAINING_PER_LIST * num_lists), replace=False)
    )
    training = _vectors(store, space, sample)
    index = faiss.index_factory(training.shape[1], f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(training)
    for first in range(0, len(rows), BLOCK_ROWS):
        block = rows[first : first + BLOCK_ROWS]
        index.add_with_ids(_vectors(store, space, block), block)
    return index


def _visit(spaces: dict[str, faiss.Index], query: Query, way: Way, depth: int, num_visited: int) -> np.ndarray:
    """(m,) positions of the clips that come first by the index, a few times more than are wanted, since 8 bits and the
    bound of agreement blur the order.
    """
    space = _space(way)
    vectors: list[Tensor] = [query.vectors[side] for side in (MODALITIES if space == "both" else sides_of(way)[:1])]
    vector = torch.cat(vectors).numpy()[None] / len(vectors) ** 0.5
    wanted = max(16 * depth, 4096) if space == "both" else depth + 128
    parameters = faiss.SearchParametersIVF(nprobe=num_visited)
    _, rows = spaces[space].search(vector, min(wanted, spaces[space].ntotal), params=parameters)
    return rows[0][rows[0] >= 0]


def _tune(store: Store, spaces: dict[str, faiss.Index], way: Way) -> tuple[int, float]:
    """Lists to visit, and the recall with them."""
    usable = np.logical_and.reduce(
        [store.has[side] for side in (MODALITIES if way == "agreement" else sides_of(way)[:1])]
    )
    rows = np.random.default_rng(1).choice(
        np.flatnonzero(usable), min(SAMPLE_QUERIES, int(usable.sum())), replace=False
    )
    queries = [query_of_row(store, int(row)) for row in rows]
    groups = [queries[first : first + SAMPLE_TOGETHER] for first in range(0, len(queries), SAMPLE_TOGETHER)]
    true = [each.rows for group in groups for each in rank_each(store, group, way=way, depth=SAMPLE_K)]
    num_visited, num_lists = 1, spaces[_space(way)].nlist
    while True:
        index = NeighbourIndex(spaces, Measured("", {way: num_visited}, {}, 0.0))
        found = [rank(store, query, way=way, depth=SAMPLE_K, index=index).rows for query in queries]
        recall = float(np.mean([np.isin(wanted, got).mean() for wanted, got in zip(true, found, strict=True)]))
        if recall >= RECALL_AIM or num_visited == num_lists:
            return num_visited, recall
        num_visited = min(2 * num_visited, num_lists)
