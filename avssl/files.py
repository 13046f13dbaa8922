"""Files written whole or not at all, and one sentence when a file cannot be written.

What lives here: the temporary name, fsync, rename, the words of a failure, and where the answer of a command goes.
What does not: what is written.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAYS_OUT = {
    errno.ENOSPC: "free space there or choose another folder",
    errno.EDQUOT: "free space there or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


class WriteError(ValueError):
    """A file that cannot be written: the message names it, the reason and the way out."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{path} cannot be written ({reason}): {WAYS_OUT.get(error.errno, 'choose another path')}")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
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


def answer(result: object, text: str, *, to: str | None) -> None:
    """Print what a command found: as text, or with `to` "-" as JSON; another `to` is a file for the JSON besides."""
    print(json.dumps(result) if to == "-" else text)
    if to not in (None, "-"):
        Path(to).write_text(json.dumps(result) + "\n")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return  # a folder that cannot be written to holds no such file: the first error is the one to tell
