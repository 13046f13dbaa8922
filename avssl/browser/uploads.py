"""Uploaded files: embedded in a process that can be killed, then deleted."""

import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from avssl.browser.catalog import NotShownError
from avssl.browser.previews import PreviewError, Previews
from avssl.files import LockedError, WriteError, folder_lock
from avssl.retrieval.search import Query, query_of_vectors
from avssl.retrieval.store import Store
from avssl.workers import Lost, Worker

MAX_HELD = 100
PREFIX = "avssl-uploads-"  # of folders for files that are looked at; who uses one holds its lock
MAX_AT_ONCE = 5  # one is embedded, others arrive or wait; further ones are turned away
TIMEOUT_SECONDS = 60.0  # per file, the loading of the runs included


class UploadError(ValueError):
    """A file that cannot be embedded."""


class BusyError(RuntimeError):
    """Too many uploads at once."""


@dataclass(frozen=True)
class Upload:
    """What is kept of an uploaded file."""

    id: str
    name: str
    has_video: bool
    has_audio: bool
    seconds: float
    queries: Sequence[Query]  # one per store
    poster: bytes | None  # JPEG
    spectrogram: bytes | None  # PNG


class Uploads:
    """Thread-safe, but for `take`.

    Args:
        stores: whose runs embed the files.
        max_bytes, max_seconds: of a file.
        timeout_seconds: per file.
    """

    def __init__(
        self, stores: Sequence[Store], *, max_bytes: int, max_seconds: float, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.stores, self.max_bytes, self.max_seconds = stores, max_bytes, max_seconds
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = ExitStack()
        self._lock.enter_context(folder_lock(self.folder))
        self._worker = Worker("avssl.retrieval.embed", timeout_seconds)
        self._previews = Previews(self.folder / "previews", max_bytes=64 << 20, num_workers=1)
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        self._held: OrderedDict[str, Upload] = OrderedDict()
        self._changing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.stop()
        self._previews.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """Temporary path for the bytes of a file; only a harmless extension of its name is kept.

        Raises:
            BusyError: too many others are there.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{MAX_AT_ONCE} files are being looked at already: try again in a moment")
        ending = re.search(r"\.[A-Za-z0-9]{1,8}$", name)
        path = self.folder / (secrets.token_hex(12) + (ending[0].lower() if ending else ""))
        try:
            with suppress(FileExistsError):  # else a cleaner of temporary files has removed it
                self.folder.mkdir(mode=0o700)
                self._lock.enter_context(folder_lock(self.folder))
            yield path
        finally:
            path.unlink(missing_ok=True)
            self._places.release()

    def take(self, path: Path, name: str) -> Upload:
        """Embed a file that lies at a `place`; one at a time.

        Raises:
            UploadError: it cannot be read, lasts too long, or took or brought down the process that had it.
        """
        stores = [asdict(store.meta) for store in self.stores]
        answer = self._worker.ask({"path": str(path), "max_seconds": self.max_seconds, "stores": stores})
        reason = answer.reason if isinstance(answer, Lost) else answer.get("reason")
        if reason:
            raise UploadError(f"{name} could not be embedded: {reason}")
        upload = Upload(
            id=f"u-{secrets.token_hex(8)}",
            name=name,
            has_video=answer["has_video"],
            has_audio=answer["has_audio"],
            seconds=answer["seconds"],
            queries=[query_of_vectors(vectors, name) for vectors in answer["vectors"]],
            poster=self._picture(self._previews.poster, path),
            spectrogram=self._picture(self._previews.spectrogram, path),
        )
        with self._changing:
            self._held[upload.id] = upload
            while len(self._held) > MAX_HELD:
                self._held.popitem(last=False)
        return upload

    def get(self, id: str) -> Upload:
        """Raises NotShownError: it is not held any more."""
        with self._changing:
            if id not in self._held:
                raise NotShownError("this file is no longer held here: bring it again")
            return self._held[id]

    def _picture(self, make: Callable[[Path], bytes], path: Path) -> bytes | None:
        """An image of a file, without leaving anything on disk."""
        try:
            return make(path)
        except PreviewError:
            return None
        finally:
            for left in (self.folder / "previews").glob("*"):
                left.unlink(missing_ok=True)


def remove_leftovers() -> None:
    """Delete the folders of killed servers."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/.lock"):
        with suppress(LockedError, WriteError), folder_lock(lock.parent):  # in use, or somebody else's
            shutil.rmtree(lock.parent, ignore_errors=True)
