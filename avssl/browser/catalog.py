"""What the neighbour browser shows: folders of embeddings, each with its index and maps, and the clips that they hold.

What lives here: finding clips by id, label and name across these folders, and what is told of a clip. What does not:
addresses (app.py), searching (search.py, index.py), drawing maps (map.py).
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc

from avssl.browser.map import Map, Method, open_map
from avssl.data.manifest import OUTSIDE
from avssl.retrieval.index import EXACT_BELOW, NeighbourIndex, open_index
from avssl.retrieval.search import Query, Ranking, Way, described
from avssl.retrieval.store import Store, StoreError

NO_END = 1e9  # seconds: of a part that goes to the end of its file


class NotShownError(LookupError):
    """What is asked for is not among what is shown: the message names it."""


class Shelf:
    """Embeddings that are shown, with their index, which comes when it is ready.

    Args:
        folder: for the index and maps.
        say: is told what is built, and what could not be.

    Raises:
        StoreError: a path leaves the folder of the clips.
    """

    def __init__(self, store: Store, folder: Path, say: Callable[[str], None]) -> None:
        outside = store.table.filter(pc.match_substring_regex(store.table.column("path"), OUTSIDE))
        if outside.num_rows:
            raise StoreError(
                f"{store.folder} holds paths that leave their root, such as {outside.column('path')[0].as_py()!r}"
            )
        self.store, self.folder, self.say = store, folder, say
        self.index: NeighbourIndex | None = None
        self.state: Literal["exact", "building", "ready", "failed"] = "exact"
        self.why = f"{len(store):,} clips: every search looks at all of them"
        self._maps: dict[Method, Map] = {}
        self._drawing = {method: threading.Lock() for method in get_args(Method)}

    def prepare(self) -> None:
        """Have the index read or built in the background, where there are clips enough for one."""
        if len(self.store) < EXACT_BELOW:
            return
        self.why = "the index is being read or built; until then every search looks at all clips"
        self.state = "building"
        threading.Thread(target=self._open_index, daemon=True).start()

    def _open_index(self) -> None:
        try:
            self.index = open_index(self.store, self.folder, say=self.say)
        except Exception as error:  # of whatever kind: the page works without an index, and says so
            self.why = f"no index ({error}): every search looks at all clips"
            self.say(self.why)
            self.state = "failed"
            return
        self.why = f"index of {len(self.store):,} clips"
        self.say(f"{self.store.folder}: {self.why}, built in {self.index.measured.seconds:.0f} s")
        self.state = "ready"

    def map(self, method: Method) -> Map:
        """Where clips lie; drawn once, which takes UMAP a minute."""
        with self._drawing[method]:
            if method not in self._maps:
                self._maps[method] = open_map(self.store, self.folder, method=method, say=self.say)
            return self._maps[method]

    def is_busy(self) -> bool:
        """Whether an index is being built or a map drawn, in threads that do not stop when asked to."""
        return self.state == "building" or any(lock.locked() for lock in self._drawing.values())

    def clip(self, row: int) -> dict[str, Any]:
        start, end = self.store.part(row)
        return {
            "id": int(self.store.ids[row]),
            "path": self.store.path(row),
            "label": self.store.label(row),
            "has_video": bool(self.store.has["video"][row]),
            "has_audio": bool(self.store.has["audio"][row]),
            "start": start,
            "end": end,
        }

    def source(self, row: int) -> tuple[Path, tuple[float, float] | None]:
        """The file of a clip, and which seconds of it the clip is."""
        start, end = self.store.part(row)
        part = None if start is None and end is None else (start or 0.0, NO_END if end is None else end)
        return Path(self.store.meta.root) / self.store.path(row), part

    def neighbours(self, query: Query, ranking: Ranking) -> list[dict[str, Any]]:
        return [
            self.clip(found.row) | {"score": found.score, "video": found.video, "audio": found.audio}
            for found in described(self.store, query, ranking)
        ]

    def recall(self, *ways: Way) -> float | None:
        """The smallest that was measured of these ways of the index."""
        return None if self.index is None else min(self.index.measured.recall[way] for way in ways)


class Library:
    """Shelves of the same manifest. A clip is listed once, from the first shelf that holds it."""

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self.shelves = shelves
        self._own = []  # per shelf (n,) bool: its clips that no shelf before it has
        before = np.zeros(0, dtype=np.int64)
        for shelf in shelves:
            self._own.append(~np.isin(shelf.store.ids, before))
            before = np.union1d(before, shelf.store.ids)

    def shelf(self, number: int) -> Shelf:
        """Raises NotShownError: there is no such one."""
        if not 0 <= number < len(self.shelves):
            raise NotShownError(f"store {number}: there are {len(self.shelves)}, counted from 0")
        return self.shelves[number]

    def find(self, id: int) -> tuple[Shelf, int]:
        """The first shelf that holds a clip, and its row there. Raises NotShownError: none does."""
        for shelf in self.shelves:
            row = shelf.store.row(id)
            if row is not None:
                return shelf, row
        raise NotShownError(f"clip {id} is not in these embeddings")

    def find_on(self, shelf: Shelf, id: int) -> int:
        """The row of a clip on one shelf. Raises NotShownError: it is not there."""
        known, _ = self.find(id)
        row = shelf.store.row(id)
        if row is None:
            raise NotShownError(f"clip {id} is in {known.store.folder}, but not in {shelf.store.folder}")
        return row

    def ids(self, *, label: str, name: str) -> np.ndarray:
        """(n,) ids of the clips with this label whose path holds this text, rising; empty ones ask for nothing."""
        found = [
            shelf.store.ids[own & _selected(shelf.store, label=label, name=name)]
            for shelf, own in zip(self.shelves, self._own, strict=True)
        ]
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))

    def label_counts(self) -> dict[str, int]:
        """{label: clips that have it}, sorted."""
        counts: Counter[str] = Counter()
        for shelf, own in zip(self.shelves, self._own, strict=True):
            names, labels = shelf.store.labels
            numbers = np.bincount(labels[own & (labels >= 0)], minlength=len(names)).tolist()
            counts.update({name: number for name, number in zip(names, numbers, strict=True) if number})
        return dict(sorted(counts.items()))


def _selected(store: Store, *, label: str, name: str) -> np.ndarray:
    """(n,) bool: rows with this label whose path holds this text in any case; the empty ones ask for nothing."""
    chosen = np.ones(len(store), dtype=bool)
    if label:
        chosen &= store.with_label(label)
    if name:
        chosen &= pc.match_substring(store.table.column("path"), name, ignore_case=True).to_numpy()
    return chosen
