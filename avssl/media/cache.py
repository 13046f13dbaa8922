"""Decoded files cached in memory, for small datasets: a file is decoded once, and later windows are cut from that.

Frames of an undamaged file are the same bytes as without a cache; audio differs by up to about 1e-4 from a lossy
decoder that starts in the middle of a file.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import av

from avssl.media.reader import LIMITS, Limits, Reader, Track


@dataclass(frozen=True)
class DecodedTrack:
    """One decoded track."""

    average_rate: Fraction | None
    frames: list[tuple[float, av.VideoFrame | av.AudioFrame]]


@dataclass(frozen=True)
class DecodedFile:
    """A whole decoded file with the interface of a `Reader`."""

    path: Path
    video: DecodedTrack | None = None
    audio: DecodedTrack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to close."""

    def frames_from(
        self, kind: Track, seconds: float, wanted: Sequence[float] | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """As `Reader.frames_from`: all frames, whatever is `wanted`."""
        frames = getattr(self, kind).frames
        first = bisect.bisect_right(frames, seconds, key=lambda each: each[0]) - 1
        yield from frames[max(first, 0) :]


class ClipCache:
    """Caches decoded files up to `max_bytes` in this process; files after that are read as without a cache.

    Args:
        max_bytes: of decoded frames (as stored in the file, before RGB) and audio.
    """

    def __init__(self, max_bytes: float, *, limits: Limits = LIMITS) -> None:
        self.max_bytes = max_bytes
        self.limits = limits
        self.num_bytes = 0
        self.full = False
        self._files: dict[Path, DecodedFile] = {}

    def open(self, path: str | Path) -> Reader | DecodedFile:
        """A decoded file, or a `Reader` when the cache is full. Raises DecodeError as `Reader` does."""
        path = Path(path)
        if path not in self._files and not self.full:
            self._add(path)
        return self._files.get(path) or Reader(path, limits=self.limits)

    def _add(self, path: Path) -> None:
        """Decode a whole file; the first that does not fit closes the cache."""
        tracks: dict[Track, DecodedTrack] = {}
        num_bytes = 0
        with Reader(path, limits=self.limits) as reader:
            for kind in ("video", "audio"):
                if getattr(reader, kind) is None:
                    continue
                tracks[kind] = DecodedTrack(reader.video.average_rate if kind == "video" else None, [])
                for seconds, frame in reader.frames_from(kind, float("-inf")):
                    num_bytes += sum(plane.buffer_size for plane in frame.planes)
                    if self.num_bytes + num_bytes > self.max_bytes:
                        self.full = True
                        return
                    tracks[kind].frames.append((seconds, frame))
        self.num_bytes += num_bytes
        self._files[path] = DecodedFile(path, **tracks)
