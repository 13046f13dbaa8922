"""Files inside tar files (WebDataset's shards): FOLDER/000.tar/KEY.mp4 is the member KEY.mp4 of FOLDER/000.tar.

A shard is not unpacked: members lie in one piece, and FFmpeg reads a part of a file. Its headers are read once in a
process. An ordinary file is its own only part.
"""

import errno
import functools
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

ENDING = ".tar"
NUM_INDEXED = 10_000  # shards whose headers a process remembers, some 250 bytes for each member


class Part(NamedTuple):
    """Where the bytes of a file lie."""

    file: str  # on disk
    start: int
    size: int
    changed: int  # nanoseconds
    is_regular: bool = True  # no folder, pipe or device

    def url(self, skip: int = 0) -> str:
        """For FFmpeg, from byte `skip` on. The protocol is named, or a file called "http:..." would be fetched."""
        start, end = self.start + skip, self.start + self.size
        return f"subfile,,start,{start},end,{end},,:file:{self.file}" if start else f"file:{self.file}"


def locate(path: str | Path) -> Part:
    """Part of a file, or of a member of a shard.

    Raises:
        OSError: as os.stat; a shard that is no plain tar file, that is cut, or that lacks the member.
    """
    path = os.fspath(path)
    place = _shard_of(path)
    if place is None:
        found = os.stat(path)
        return Part(path, 0, found.st_size, found.st_mtime_ns, stat.S_ISREG(found.st_mode))
    shard, member = path[:place], path[place + 1 :]
    found = os.stat(shard)
    known, problem = _members(shard, found.st_size, found.st_mtime_ns)
    start, size = known.get(member, (0, -1))
    if size < 0 and not problem:
        raise FileNotFoundError(errno.ENOENT, "the shard has no such member", path)
    if size < 0 or start + size > found.st_size:
        raise OSError(errno.EIO, f"the shard is damaged: {problem or 'it ends within this member'}", path)
    return Part(shard, start, size, found.st_mtime_ns)


def open_part(path: str | Path) -> BinaryIO:
    """The bytes of a file, or of a member of a shard, unbuffered. Raises OSError as `locate`."""
    part = locate(path)
    file = open(part.file, "rb", buffering=0)  # noqa: SIM115
    return _Window(file, part) if is_inside(path) else file


def is_inside(path: str | Path) -> bool:
    """Whether it is a member of a shard, which libraries and programs cannot open by this path."""
    return _shard_of(os.fspath(path)) is not None


def is_file(path: str | Path) -> bool:
    """Whether something can be opened there."""
    try:
        return locate(path).is_regular
    except (OSError, ValueError):
        return False


def members(shard: str | Path) -> list[str]:
    """Names of the files in a shard, in its order. Raises OSError: it is no plain tar file, or is cut."""
    found = os.stat(shard)
    known, problem = _members(os.fspath(shard), found.st_size, found.st_mtime_ns)
    if problem:
        raise OSError(errno.EIO, f"the shard is damaged: {problem}", os.fspath(shard))
    return list(known)


def _shard_of(path: str) -> int | None:
    """Where the name of the shard in a path ends; None for an ordinary file."""
    place = path.find(ENDING + "/")
    while place >= 0:
        place += len(ENDING)
        if os.path.isfile(path[:place]):
            return place
        place = path.find(ENDING + "/", place)
    return None


@functools.lru_cache(maxsize=NUM_INDEXED)
def _members(shard: str, size: int, changed: int) -> tuple[dict[str, tuple[int, int]], str]:
    """{name: (start, size)} of what can be read of a shard that is as large and as old, and what is wrong with it."""
    known, problem = {}, ""
    try:
        with tarfile.open(shard, "r:") as file:
            for member in file:
                if member.isreg() and not member.issparse():
                    known[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        problem = f"{error}" if known else f"{error}, so it is cut or no uncompressed tar file"
    if not problem and not _ends_well(shard, size):
        problem = "it has no end, so it is cut"
    return known, problem


def _ends_well(shard: str, size: int) -> bool:
    """Whether a block of zeros ends it, which a tar file that was cut between two members lacks."""
    with open(shard, "rb") as file:
        file.seek(max(0, size - tarfile.BLOCKSIZE))
        return file.read() == tarfile.NUL * tarfile.BLOCKSIZE


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file, self._part, self._position = file, part, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray) -> int:
        wanted = max(0, min(len(buffer), self._part.size - self._position))
        self._file.seek(self._part.start + self._position)
        found = self._file.read(wanted)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
