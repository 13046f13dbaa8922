"""Files and folders written whole or not at all, by one process at a time; digests."""

import argparse
import difflib
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
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

HINTS = {
    errno.ENOSPC: "free space there or choose another folder",
    errno.EDQUOT: "free space there or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
POLL_SECONDS = 0.1  # between looks at a lock that is waited for


class Parser(argparse.ArgumentParser):
    """Options of a command; in its paths ~ is the home folder, which shells leave to us in --out=~/x, and a misspelt
    choice is answered by the nearest one."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | given)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message = _nearest(str(value), map(str, action.choices or ())) + error.message
            raise


class WriteError(ValueError):
    """A file that cannot be written: the message names it, the reason and the fix."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{path} cannot be written ({reason}): {HINTS.get(error.errno, 'choose another path')}")


class LockedError(ValueError):
    """A folder that another process writes to: the message names its pid and host."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield the name of a new, empty file, which then replaces `path`; missing folders are made. An error or a crash at
    any moment leaves `path` unchanged. Raises WriteError: the system refuses to write (an OSError inside the block
    counts).
    """
    path = Path(path)
    temporary, descriptor = _new_file(path)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)  # the new name itself
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):
            raise WriteError(path, error) from error
        raise
    finally:
        os.close(descriptor)


def check_writable(path: str | Path) -> None:
    """Check before long work that its result can be written to `path`, which is left as it is. Raises WriteError."""
    temporary, descriptor = _new_file(Path(path))
    os.close(descriptor)
    _remove(temporary)


def _new_file(path: Path) -> tuple[Path, int]:
    """A new file beside `path` under a name that nobody can foretell or has linked, locked while its descriptor is
    open. Raises WriteError."""
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            raise OSError("it is a device or a pipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise WriteError(path, error) from error
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temporary, descriptor


def _remove_leftovers(folder: Path) -> None:
    """Remove unfinished files and folders of processes that were killed; those that somebody writes to are locked."""
    for path in folder.glob(".*.partial"):
        with suppress(OSError), open(path, "r+b", opener=open_no_link) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def folder_lock(folder: str | Path, *, file: str = "", wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Be the only writer of a folder; the lock ends with the process. A folder that was missing is removed again if
    nothing was written. Where the file system has no locks, a message on stderr says so.

    Args:
        folder: made if missing.
        file: name of the file in it that the lock is for; "" = all, and leftovers of killed processes are removed.
        wait: called until another holder, named on stderr, has finished; None = that is an error.

    Raises:
        LockedError: another process holds the lock.
        WriteError: the folder cannot be written to.
    """
    folder, told = Path(folder), False
    path = folder / (f".{file}.lock" if file else ".lock")
    with ExitStack() as stack:
        try:
            made = [each for each in (folder, *folder.parents) if not each.exists()]
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                record = stack.enter_context(open(path, "a+", opener=open_no_link))
                try:
                    fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    record.seek(0)
                    holder = record.read() or "another process"
                    record.close()
                    if wait is None:
                        raise LockedError(f"{holder} writes to {folder / file}: wait for it or end it") from error
                    if not told:
                        print(f"waiting for {holder}, which writes to {folder / file}", file=sys.stderr)
                    told = True
                    wait()
                    continue
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
                    reason = f"{folder} cannot be locked ({error.strerror})"
                    print(f"note: {reason}: let no other process write there", file=sys.stderr)
                    break
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(record.fileno())):  # else its holder removed it
                        break
        except OSError as error:
            raise WriteError(folder / file, error) from error
        os.register_at_fork(after_in_child=record.close)  # or the lock would live as long as a worker process
        try:
            with suppress(OSError):  # of a full disk: then the holder has no name
                os.truncate(record.fileno(), 0)
                os.write(record.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            if not file:
                _remove_leftovers(folder)
            yield
        finally:
            _remove(path)
            for each in made:
                with suppress(OSError):
                    each.rmdir()  # if it is empty


@contextmanager
def cached_folder(
    home: Path,
    *,
    is_ready: Callable[[], bool] | None = None,
    wait: Callable[[], object] = lambda: time.sleep(POLL_SECONDS),
) -> Iterator[Path | None]:
    """Yield a folder to fill, which then replaces `home`, or None if `home` is ready. One process fills, others wait.
    An error or a crash at any moment leaves `home` unchanged.

    Args:
        home: its name is the key of the content.
        is_ready: default: whether `home` exists.
        wait: called until the process that fills has finished.

    Raises:
        WriteError: the system refuses to write (an OSError inside the block counts).
    """
    with folder_lock(home.parent, wait=wait):
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
        with atomic_write(to) as temporary:
            temporary.write_text(json.dumps(result) + "\n")


def open_no_link(path: str | Path, flags: int) -> int:
    """An opener: in a folder that all may write to, a link could make us change one of our files."""
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
    """Print on stderr a command that may follow, such as `avssl train` with these words, so that it can be pasted."""
    print(f"{title}: {shlex.join(map(str, ('avssl', *words)))}", file=sys.stderr)


def did_you_mean(path: Path) -> str:
    """A question, where beside the first part of a path that is missing lies something of nearly its name; else ""."""
    missing = next((each for each in (*reversed(path.parents), path) if not each.exists()), None)
    with suppress(OSError):
        return "" if missing is None else _nearest(missing.name, os.listdir(missing.parent), within=missing.parent)
    return ""


def _nearest(name: str, names: Iterable[str], *, within: Path = Path()) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {within / near[0]}? " if near else ""


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shipped(name: str) -> Path:
    """The folder of configs, datasets or experiments: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    checkout = package.parent / ("tools" if name == "experiments" else "") / name
    return next((folder for folder in (package / name, checkout) if folder.is_dir()), package / name)
