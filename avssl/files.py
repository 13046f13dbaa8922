"""Files and folders written whole or not at all, by one process at a time; digests."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shlex
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
    """Yield a temporary name, which then replaces `path`; missing folders are made. An error or a crash at any moment
    leaves `path` unchanged. Raises WriteError: the system refuses to write (an OSError inside the block counts).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)  # the new name itself
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):
            raise WriteError(path, error) from error
        raise


def check_writable(path: str | Path) -> None:
    """Check before long work that its result can be written to `path`, which is left as it is. Raises WriteError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
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
    """Be the only writer of a folder; the lock ends with the process.

    Args:
        folder: made if missing.
        file: name of the file in it that the lock is for; "" = all.
        wait: for another holder, with a message on stderr; otherwise it is an error.

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
                    if os.path.samestat(path.stat(), os.fstat(record.fileno())):  # else its holder removed it
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
    """Yield a folder to fill, which then replaces `home`, or None if `home` is ready. One process fills, others wait.
    An error or a crash at any moment leaves `home` unchanged.

    Args:
        home: its name is the key of the content.
        is_ready: default: whether `home` exists.

    Raises:
        WriteError: the system refuses to write (an OSError inside the block counts).
    """
    with folder_lock(home.parent, wait=True):
        if (is_ready or home.exists)():
            yield None
            return
        for leftover in home.parent.glob(".*.partial"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
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
    """Hex digest of the concatenated parts: bytes or flat buffers as they are, anything else as UTF-8 of its str().

    `num_bytes` is the length of a blake2b digest.
    """
    found = hashlib.sha256() if algorithm == "sha256" else hashlib.blake2b(digest_size=num_bytes)
    for part in parts:
        found.update(part if isinstance(part, bytes | memoryview) else str(part).encode())
    return found.hexdigest()


def print_result(result: object, text: str, *, to: str | None) -> None:
    """Print the result of a command as text, or as JSON with `to` "-"; another `to` is a file that gets the JSON."""
    print(json.dumps(result) if to == "-" else text.encode(errors="replace").decode())  # a path may not be UTF-8
    if to not in (None, "-"):
        Path(to).write_text(json.dumps(result) + "\n")


def _open_no_link(path: str, flags: int) -> int:
    """In a folder that all may write to, a link could make us truncate one of our files."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the first error is the one to report
        path.unlink()


def print_next(*words: object, title: str = "next") -> None:
    """Print on stderr a command that may follow, such as tools/train.py and its arguments, so that it can be pasted."""
    print(f"{title}: {shlex.join(map(str, ('python', *words)))}", file=sys.stderr)
