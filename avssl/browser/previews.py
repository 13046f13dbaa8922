"""Posters, spectrograms and playable media of clips for a web server: made in worker processes, kept in a folder."""

import contextlib
import math
import os
import queue
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

from avssl.files import digest
from avssl.media.preview import VERSION, Part
from avssl.media.reader import file_problem
from avssl.media.shards import locate
from avssl.workers import Lost, Worker

MODULE = "avssl.media.preview"
MEDIA_TYPES = {".mp4": "video/mp4", ".m4a": "audio/mp4"}  # of previews, by extension
ENTRY = re.compile(r"[0-9a-f]{40}\.(jpg|png|mp4|m4a)")
UNFINISHED = re.compile(r"\.+[0-9a-f]{16}\.made(\..*)?")
STALE_SECONDS = 600.0  # an unfinished file that nobody wrote to for so long is a leftover of a killed run
RECENT_SECONDS = 60.0  # an entry used since then stays: it may just be sent
ROOM = 0.9  # when the folder is full, entries are removed until so much of the bound is left
NUM_REMEMBERED = 10_000  # answers of each kind that are kept in memory
LOST_SECONDS = 600.0  # a file that took too long or brought a worker down is tried again after this


class PreviewError(ValueError):
    """Something that cannot be shown; the message names the file without its folder."""

    def __init__(self, source: Path, reason: str) -> None:
        name = os.fsencode(source.name).decode("utf-8", "replace")
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class Previews:
    """Images and playable media of clips, made on first request. Threads and processes may share a folder.

    A clip is a file or a part of one, (start, end) in seconds from its beginning. Changed files are processed
    again.

    Args:
        folder: cache of results, created if missing; raises OSError. Other files in it are kept.
        max_bytes: size of the cache; the least recently used results are removed first.
        num_workers: processes for images, and as many for previews.
        timeout_seconds: per result, without the wait for a free process.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = 1 << 30, num_workers: int = 2, timeout_seconds: float = 60.0
    ) -> None:
        self._folder = _CacheFolder(Path(folder).absolute(), max_bytes, max(STALE_SECONDS, 2 * timeout_seconds))
        self._pictures = _Pool(num_workers, timeout_seconds)
        self._transcodes = _Pool(num_workers, timeout_seconds)
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # by key, while somebody wants it
        self._failures = _LruCache()  # by key: reason, until when it holds
        self._playable = _LruCache()  # by key: media type; "" = not as it is

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all workers; pending requests raise PreviewError."""
        for pool in (self._pictures, self._transcodes):
            pool.close()

    def poster(self, source: Path, part: Part = None) -> bytes:
        """The middle frame, at most 256 pixels wide and high, as JPEG. Raises PreviewError."""
        return self._bytes("poster", source, part, ".jpg")

    def spectrogram(self, source: Path, part: Part = None) -> bytes:
        """The log-mel spectrogram of the first 30 s, 256 x 64 pixels, as PNG. Raises PreviewError."""
        return self._bytes("spectrogram", source, part, ".png")

    def media(self, source: Path, part: Part = None) -> tuple[Path, str]:
        """A file that browsers play, and its media type: the source if possible, else a preview of the first 60 s,
        which is kept for at least a minute. Raises PreviewError."""
        media_type = "" if part else self._media_type(source)
        if media_type:
            return source, media_type
        key = _key("preview", source, part)
        path = self._cached("preview", key, source, part, *MEDIA_TYPES)
        return path, MEDIA_TYPES[path.suffix]

    def _lock(self, key: str) -> threading.Lock:
        """Held while a result is made, so that threads share it."""
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())

    def _media_type(self, source: Path) -> str:
        """Of a file that browsers play as it is; empty if they do not."""
        key = _key("playable", source, None)
        with self._lock(key):
            found = self._playable.get(key)
            if found is None:
                found = self._ask("playable", key, source, None, None)["media_type"] or ""
                self._playable.put(key, found)
            return found

    def _bytes(self, kind: str, source: Path, part: Part, suffix: str) -> bytes:
        key = _key(kind, source, part)
        while True:
            with contextlib.suppress(FileNotFoundError):  # another server removed it just now
                return self._cached(kind, key, source, part, suffix).read_bytes()

    def _cached(self, kind: str, key: str, source: Path, part: Part, *suffixes: str) -> Path:
        """The entry of a key, with one of these extensions (the second: audio only); made if missing."""
        with self._lock(key):
            found = self._folder.use(key, suffixes)
            if found is not None:
                return found
            with self._folder.unfinished() as target:
                answer = self._ask(kind, key, source, part, target)
                is_sound = answer["media_type"] == MEDIA_TYPES[".m4a"]
                try:
                    return self._folder.add(target, key + suffixes[is_sound])
                except OSError as error:
                    raise PreviewError(source, f"what was made of it cannot be kept ({error.strerror})") from error

    def _ask(self, kind: str, key: str, source: Path, part: Part, target: Path | None) -> dict[str, Any]:
        """Answer of a worker without a reason. Raises PreviewError."""
        reason, until = self._failures.get(key) or ("", 0.0)
        if time.monotonic() < until:
            raise PreviewError(source, reason)
        pool = self._transcodes if kind == "preview" else self._pictures
        job = {"kind": kind, "source": str(source.absolute()), "part": part and [float(seconds) for seconds in part]}
        job["target"] = target and str(target)
        try:
            answer = pool.ask(job)
        except (OSError, RuntimeError) as error:
            raise PreviewError(source, f"no process for it could be started ({error})") from error
        if answer is None:
            raise PreviewError(source, "the server is about to end")
        is_lost = isinstance(answer, Lost)
        reason = answer.reason if is_lost else answer["reason"]
        if not reason:
            return answer
        if is_lost or not answer.get("again"):
            self._failures.put(key, (reason, time.monotonic() + LOST_SECONDS if is_lost else math.inf))
        raise PreviewError(source, reason)


def _key(kind: str, source: Path, part: Part) -> str:
    """40 hex digits identifying a result of the file in its current state. Raises PreviewError."""
    problem = file_problem(source)
    if problem is not None:
        raise PreviewError(source, problem)
    if part is not None and not (math.isfinite(part[0]) and math.isfinite(part[1]) and part[0] < part[1]):
        raise PreviewError(source, f"its part from {part[0]} to {part[1]} seconds is not a stretch of time")
    try:
        part_of_file, resolved = locate(source), os.path.realpath(source)
    except OSError as error:
        raise PreviewError(source, f"the file cannot be opened ({error.strerror})") from error
    times = None if part is None else (float(part[0]), float(part[1]))
    facts = (os.fsencode(resolved), part_of_file.size, part_of_file.changed, times, kind, VERSION)
    return digest(facts, num_bytes=20)


class _CacheFolder:
    """Entries on disk with a bounded total size; modification time is the time of last use."""

    def __init__(self, path: Path, max_bytes: int, stale_seconds: float) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._guard = threading.Lock()
        path.mkdir(parents=True, exist_ok=True)
        for file in os.scandir(path):
            if UNFINISHED.fullmatch(file.name):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > stale_seconds:
                        os.unlink(file.path)
        self._num_bytes = 0
        with self._guard:
            self._make_room()

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[Path]:
        """A unique temporary path; removed afterwards."""
        name = f".{secrets.token_hex(8)}.made"
        self.path.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
        try:
            yield self.path / name
        finally:
            for left in self.path.glob(f"*{name}*"):  # more than one: a worker was killed while it wrote
                left.unlink(missing_ok=True)

    def use(self, key: str, suffixes: tuple[str, ...]) -> Path | None:
        """The entry, marked as used; None if there is none."""
        for suffix in suffixes:
            path = self.path / (key + suffix)
            try:
                os.utime(path)
            except FileNotFoundError:
                continue
            except OSError:  # somebody else's folder, that can only be read
                pass
            return path
        return None

    def add(self, made: Path, name: str) -> Path:
        """Turn a finished file into an entry."""
        path = self.path / name
        num_bytes = made.stat().st_size
        os.utime(made)
        os.replace(made, path)
        with self._guard:
            self._num_bytes += num_bytes
            if self._num_bytes > self.max_bytes:
                self._make_room()
        return path

    def _make_room(self) -> None:
        """Recount the entries, which other servers change too, and remove the least recently used if over the limit."""
        entries = []
        for file in os.scandir(self.path):
            if ENTRY.fullmatch(file.name):
                with contextlib.suppress(FileNotFoundError):
                    found = file.stat()
                    entries.append((found.st_mtime, found.st_size, file.path))
        self._num_bytes = sum(size for _, size, _ in entries)
        if self._num_bytes <= self.max_bytes:
            return
        for last_used, size, path in sorted(entries):
            if self._num_bytes <= ROOM * self.max_bytes or time.time() - last_used < RECENT_SECONDS:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._num_bytes -= size


class _Pool:
    """Workers shared by threads; the last used is used next, so that few are started."""

    def __init__(self, num_workers: int, timeout_seconds: float) -> None:
        self.workers = [Worker(MODULE, timeout_seconds) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._closed = False
        for worker in self.workers:
            self._idle.put(worker)

    def ask(self, job: dict[str, Any]) -> Any | Lost | None:
        """Answer to a job once a worker is free; None when the pool is closed."""
        worker = self._idle.get()
        try:
            return None if worker is None or self._closed else worker.ask(job)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for worker in self.workers:
            process = worker.process
            if process is not None:  # its job is given up
                process.kill()
        for _ in self.workers:
            self._idle.get().stop()
        self._idle.put(None)


class _LruCache:
    """A thread-safe LRU cache."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._values: OrderedDict[str, Any] = OrderedDict()

    def put(self, key: str, value: Any) -> None:
        with self._guard:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > NUM_REMEMBERED:
                self._values.popitem(last=False)

    def get(self, key: str) -> Any | None:
        with self._guard:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)
