"""Files and folders written whole or not at all, by one process at a time, and digests of what is in them."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

HINTS = {
    errno.ENOSPC: "free space there or choose another folder",
    errno.EDQUOT: "free space there or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


class WriteError(ValueError):
    """A file that cannot be written: the message names it, the reason and the fix."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{path} cannot be written ({reason}): {HINTS.get(error.errno, 'choose another path')}")


class LockedError(ValueError):
    """A folder that another process writes to: the message names its pid and host."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name; what is written under it reaches the disk and then takes the place of `path`.

    Missing folders are made. After an error or a crash at any moment `path` is what it was before.

    Raises:
        WriteError: the system refuses to write (an OSError inside the block counts).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)  # the new name itself
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):
            raise WriteError(path, error) from error
        raise


def check_writable(path: str | Path) -> None:
    """Find out before long work whether its result can be written to `path`, which stays as it is.

    Raises:
        WriteError: it cannot.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise WriteError(path, error) from error


@contextmanager
def folder_lock(folder: str | Path, *, file: str = "", wait: bool = False) -> Iterator[None]:
    """Be the only one that writes to a folder. The lock ends with the process, however that ends.

    Args:
        folder: made if missing.
        file: name of the one in it that the lock is for; "" = all.
        wait: for another holder, which is told on stderr; otherwise it is an error.

    Raises:
        LockedError: another process holds the lock.
        WriteError: the folder cannot be written to.
    """
    path = Path(folder) / (f".{file}.lock" if file else ".lock")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                record = stack.enter_context(open(path, "a+", opener=_open_no_link))
                try:
                    fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    record.seek(0)
                    holder = record.read() or "another process"
                    if not wait:
                        raise LockedError(f"{holder} writes to {Path(folder) / file}: wait for it or end it") from error
                    print(f"waiting for {holder}, which writes to {Path(folder) / file}", file=sys.stderr)
                    fcntl.flock(record, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(record.fileno())):  # else its holder removed it meanwhile
                        break
            record.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", end="", file=record, flush=True)
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            yield
        finally:
            _remove(path)


@contextmanager
def cached_folder(home: Path, *, is_ready: Callable[[], bool] | None = None) -> Iterator[Path | None]:
    """Yield a folder to fill, which then takes the place of `home`; or None when that is ready.

    One process fills, others wait for it. After an error or a crash at any moment `home` is what it was before.

    Args:
        home: its name is the key: all that the content depends on.
        is_ready: whether there is nothing to fill; None = when `home` exists.

    Raises:
        WriteError: the system refuses to write (an OSError inside the block counts).
    """
    with folder_lock(home.parent, wait=True):
        if (is_ready or home.exists)():
            yield None
            return
        for left in home.parent.glob(".*.partial"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = home.with_name(f".{home.name}.partial")
        try:
            temporary.mkdir()
            yield temporary
            shutil.rmtree(home, ignore_errors=True)
            temporary.rename(home)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise WriteError(home, error) from error
            raise


def digest(*parts: object, algorithm: Literal["blake2b", "sha256"] = "blake2b", num_bytes: int = 16) -> str:
    """Hex digest of all parts, one after another.

    Args:
        parts: bytes (or a flat buffer) as they are, anything else as UTF-8 of its str().
        num_bytes: of a blake2b digest.
    """
    found = hashlib.sha256() if algorithm == "sha256" else hashlib.blake2b(digest_size=num_bytes)
    for part in parts:
        found.update(part if isinstance(part, bytes | memoryview) else str(part).encode())
    return found.hexdigest()


def print_result(result: object, text: str, *, to: str | None) -> None:
    """Print what a command found: as text, or with `to` "-" as JSON; another `to` is a file for the JSON besides."""
    print(json.dumps(result) if to == "-" else text)
    if to not in (None, "-"):
        Path(to).write_text(json.dumps(result) + "\n")


def _open_no_link(path: str, flags: int) -> int:
    """In a folder that all may write to, a link could lead to a file of ours, which would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder that cannot be written to holds no such file: the first error is the one to tell
        path.unlink()
