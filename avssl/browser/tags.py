"""Words that people give to clips on the page, kept in a CSV file beside the embeddings."""

import csv
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from avssl.files import atomic_write
from avssl.retrieval.store import StoreError

COLUMNS = ("id", "path", "tags")  # tags separated by ;
FILE = "tags.csv"


class TagError(ValueError):
    """A tag that cannot be kept."""


class Tags:
    """Tags of clips by their ids.

    Args:
        path: of the file, which is written anew with every change.

    Raises:
        StoreError: the file is no list of tags.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._tags: dict[int, list[str]] = {}
        if not path.exists():
            return
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    id = int(row["id"])
                    self._paths[id], self._tags[id] = row["path"], [tag for tag in row["tags"].split(";") if tag]
        except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
            hint = f"its columns are {', '.join(COLUMNS)}; mend it, or move it away"
            raise StoreError(f"{path} is no list of tags ({error}): {hint}") from error

    def all(self) -> dict[int, list[str]]:
        """{id: its tags} of the clips that have some."""
        with self._lock:
            return {id: list(tags) for id, tags in self._tags.items() if tags}

    def counts(self) -> dict[str, int]:
        """{tag: clips that have it}, sorted."""
        return dict(sorted(Counter(tag for tags in self.all().values() for tag in tags).items()))

    def ids(self, tag: str) -> np.ndarray:
        """Ids of the clips with this tag."""
        return np.array([id for id, tags in self.all().items() if tag in tags], dtype=np.int64)

    def change(self, clips: Iterable[tuple[int, str]], tag: str, *, on: bool) -> None:
        """Give clips (id, path) a tag, or take it from them.

        Raises:
            TagError: it is empty, or holds a separator.
            WriteError: the file cannot be written; nothing changes.
        """
        tag = tag.strip()
        if not tag or ";" in tag or not tag.isprintable():
            raise TagError(f"tag {tag!r}: expected some words without ;")
        with self._lock:
            paths, tags = dict(self._paths), {id: list(each) for id, each in self._tags.items()}
            for id, path in clips:
                others = [each for each in tags.get(id, []) if each != tag]
                paths[id], tags[id] = path, [*others, tag] if on else others
            with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                writer.writerows((id, paths[id], ";".join(tags[id])) for id in sorted(tags) if tags[id])
            self._paths, self._tags = paths, tags
