"""The neighbor browser's catalog: stores with their index and maps, and clips across them."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc

from avssl.browser.map import Map, Method, open_map
from avssl.data.manifest import OUTSIDE
from avssl.retrieval.index import EXACT_BELOW, NeighborIndex, open_index
from avssl.retrieval.search import Query, Ranking, Way, described
from avssl.retrieval.store import Store, StoreError

NO_END = 1e9  # seconds: of a part that goes to the end of its file


class NotShownError(LookupError):
    """The requested item is not in the catalog."""


class IndexedStore:
    """A store with its maps, and its index once it is ready.

    Args:
        folder: for the index and maps.
        info: receives progress messages.

    Raises:
        StoreError: a path leaves the folder of the clips.
    """

    def __init__(self, store: Store, folder: Path, info: Callable[[str], None]) -> None:
        outside = store.table.filter(pc.match_substring_regex(store.table.column("path"), OUTSIDE))
        if outside.num_rows:
            raise StoreError(
                f"{store.folder} holds paths that leave their root, such as {outside.column('path')[0].as_py()!r}"
            )
        self.store, self.folder, self.info = store, folder, info
        self._started = time.time()
        self.index: NeighborIndex | None = None
        self.state: Literal["exact", "building", "ready", "failed"] = "exact"
        self.why = f"{len(store):,} clips: every search looks at all of them"
        self._maps: dict[Method, Map] = {}
        self._drawing = {method: threading.Lock() for method in get_args(Method)}

    def prepare(self) -> None:
        """Read or build the index in the background if there are enough clips."""
        if len(self.store) < EXACT_BELOW:
            return
        self.why = "the index is being read or built; until then every search looks at all clips"
        self.state = "building"
        threading.Thread(target=self._open_index, daemon=True).start()

    def _open_index(self) -> None:
        try:
            self.index = open_index(self.store, self.folder, info=self.info)
        except Exception as error:  # of any kind: the page works without an index
            self.why = f"no index ({error}): every search looks at all clips"
            self.info(self.why)
            self.state = "failed"
            return
        self.why = f"index of {len(self.store):,} clips"
        self.info(f"{self.store.folder}: {self.why}, built in {self.index.measured.seconds:.0f} s")
        self.state = "ready"

    def map(self, method: Method) -> Map:
        """Where clips lie; drawn once, which takes UMAP a minute."""
        with self._drawing[method]:
            if method not in self._maps:
                self._maps[method] = open_map(self.store, self.folder, method=method, info=self.info)
            return self._maps[method]

    def is_busy(self) -> bool:
        """Whether an index or a map is being computed, in threads that cannot be stopped."""
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
        """The file of a clip, and which seconds of it the clip is.

        Raises:
            NotShownError: a link made after the start leads out of the folder of the clips.
        """
        start, end = self.store.part(row)
        part = None if start is None and end is None else (start or 0.0, NO_END if end is None else end)
        root = Path(self.store.meta.root)
        path = root / self.store.path(row)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            for link in links_of(path):
                if link.lstat().st_ctime > self._started:
                    raise NotShownError(f"{path.name} leads out of the folder of the clips since this server runs")
        return path, part

    def neighbors(self, query: Query, ranking: Ranking) -> list[dict[str, Any]]:
        return [
            self.clip(found.row) | {"score": found.score, "video": found.video, "audio": found.audio}
            for found in described(self.store, query, ranking)
        ]

    def recall(self, *ways: Way) -> float | None:
        """The smallest that was measured of these ways of the index."""
        return None if self.index is None else min(self.index.measured.recall[way] for way in ways)


def links_of(path: Path) -> Iterator[Path]:
    """Each link on the way to where a path really is."""
    for _ in range(40):  # as many as the system follows
        link = next((each for each in (*reversed(path.parents), path) if each.is_symlink()), None)
        if link is None:
            return
        yield link
        path = link.parent / link.readlink() / path.relative_to(link)


class Catalog:
    """Embeddings of the same manifest. A clip is listed once, from the first store that holds it."""

    def __init__(self, stores: Sequence[IndexedStore]) -> None:
        self.stores = stores
        self._own = []  # per store (n,) bool: its clips that no store before it has
        before = np.zeros(0, dtype=np.int64)
        for each in stores:
            self._own.append(~np.isin(each.store.ids, before))
            before = np.union1d(before, each.store.ids)

    def __getitem__(self, number: int) -> IndexedStore:
        """Raises NotShownError: there is no such one."""
        if not 0 <= number < len(self.stores):
            raise NotShownError(f"store {number}: there are {len(self.stores)}, counted from 0")
        return self.stores[number]

    def find(self, id: int, number: int | None = None) -> tuple[IndexedStore, int]:
        """The store with this number, or the first that holds a clip, and the clip's row there.

        Raises:
            NotShownError: there is no such store, or it does not hold the clip.
        """
        wanted = None if number is None else self[number]
        holding = [each for each in self.stores if each.store.row(id) is not None]
        if not holding:
            raise NotShownError(f"clip {id} is not in these embeddings")
        if wanted is not None and wanted not in holding:
            raise NotShownError(f"clip {id} is in {holding[0].store.folder}, but not in {wanted.store.folder}")
        found = wanted or holding[0]
        return found, found.store.row(id)

    def ids(self, *, label: str, name: str) -> np.ndarray:
        """(n,) ids of the clips with this label whose path holds this text in any case, rising; empty ones ask for
        nothing."""
        found = []
        for each, own in zip(self.stores, self._own, strict=True):
            chosen = own & each.store.with_label(label) if label else own
            if name:
                paths = each.store.table.column("path")
                chosen = chosen & pc.match_substring(paths, name, ignore_case=True).to_numpy()
            found.append(each.store.ids[chosen])
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))

    def label_counts(self) -> dict[str, int]:
        """{label: clips that have it}, sorted."""
        counts: Counter[str] = Counter()
        for each, own in zip(self.stores, self._own, strict=True):
            names, labels = each.store.labels
            numbers = np.bincount(labels[own & (labels >= 0)], minlength=len(names)).tolist()
            counts.update({name: number for name, number in zip(names, numbers, strict=True) if number})
        return dict(sorted(counts.items()))
