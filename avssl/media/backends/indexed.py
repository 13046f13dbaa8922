"""Frames by number from another library; their times, the audio and the limits of a file come from PyAV.

decord and torchcodec address frames by number, so the packets of a file are scanned once, undecoded, and sorted by
time, as both libraries do. Audio is PyAV's: decord ignores timestamps; torchcodec decodes from the beginning for every
window, closes gaps, and mixes channels louder than the plain mean.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import av
import av.stream
import numpy as np
from av.video.reformatter import ColorRange

from avssl.media.reader import LIMITS, DecodeError, LazyFrame, Limits, Reader, Track
from avssl.media.shards import is_inside, open_part
from avssl.media.upright import orientation

CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2": "MP4 and MOV", "matroska,webm": "Matroska and WebM", "flv": "FLV"}
MAX_BITS = 10  # per channel: FFmpeg versions convert deeper ones differently, by more than 2 gray levels
SHOWN = 0x10  # bit of the first byte of a VP8 frame


@dataclass(frozen=True)
class Index:
    """The T frames of a video track in display order, undecoded."""

    ticks: np.ndarray  # (T,) int64 when each is shown, strictly rising
    seconds: list[float]  # the same on the container's clock
    durations: list[int]  # of each in ticks, 0 where the file does not say
    keyframes: list[bool]  # whether decoding can begin there
    decoded_at: np.ndarray  # (T,) int64 number of each in decoding order
    time_base: Fraction  # seconds of a tick
    first: av.VideoFrame  # decoded by PyAV, for pixel format and rotation
    narrow: str | None  # see `LazyFrame`

    def __len__(self) -> int:
        return len(self.seconds)


class IndexedReader:
    """One opened file, see `Source`; a subclass decodes the frames.

    Raises:
        DecodeError: as `Reader`; when frames are read also where the library would give wrong ones, or none.
    """

    name: ClassVar[str]  # of the library, as in data.decoder

    def __init__(self, path: str | Path, *, limits: Limits = LIMITS) -> None:
        self.path = Path(path)
        self.reader = Reader(path, limits=limits)
        self.index: Index | None = None
        self._latest: tuple[int, av.VideoFrame] | None = None

    @property
    def source(self) -> str | BinaryIO:
        """What the library opens. The path is absolute, as libraries take "http:..." for an address."""
        return open_part(self.path) if is_inside(self.path) else str(self.path.absolute())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reader.__exit__(*exception)

    @property
    def video(self) -> av.stream.Stream | None:
        return self.reader.video

    @property
    def audio(self) -> av.stream.Stream | None:
        return self.reader.audio

    def frames_from(
        self, kind: Track, seconds: float, wanted: Sequence[float] | None = None
    ) -> Iterator[tuple[float, LazyFrame | av.AudioFrame]]:
        """As `Reader.frames_from`, with frames that are decoded on demand, whatever is `wanted`."""
        if kind == "audio":
            yield from self.reader.frames_from(kind, seconds)
            return
        if self.index is None:
            self.index = self._read_index()
            self._open()
        index = self.index
        for number in range(max(bisect.bisect_right(index.seconds, seconds) - 1, 0), len(index)):
            decode = partial(self._decode, number)
            turned = orientation(index.first)
            lazy = LazyFrame(decode, index.durations[number], index.time_base, turned, index.narrow)
            yield index.seconds[number], lazy

    def refused(self, reason: str) -> DecodeError:
        """An error that names the file, the reason and the fix."""
        return DecodeError(self.path, f"{reason}: set data.decoder=pyav")

    def _open(self) -> None:
        """Open the file with the library. Raises DecodeError: it does not open, or would give wrong frames."""
        raise NotImplementedError

    def _read_frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, turned upright: frame `number` of the index. Raises DecodeError."""
        raise NotImplementedError

    def _decode(self, number: int) -> av.VideoFrame:
        # several windows may want one frame, and the libraries would go back to the keyframe for the second
        if self._latest is None or self._latest[0] != number:
            stored = np.rot90(self._read_frame(number), -round(self.index.first.rotation / 90))
            self._latest = number, av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
        return self._latest[1]

    def _read_index(self) -> Index:
        container, codec = self.reader.container.format.name, self.reader.video.codec_context.name
        if container not in CONTAINERS:
            right = ", ".join(CONTAINERS.values())
            raise self.refused(f"{self.name} gives wrong times or wrong frames of {container} files, not of {right}")
        rows, first = [], None
        for packet in self.reader.packets("video"):
            first = first or _first_frame(packet)
            hidden = codec == "vp8" and packet.size and not bytes(packet)[0] & SHOWN
            if packet.size and not packet.is_discard and not hidden:
                rows.append((packet.pts, packet.duration or 0, packet.is_keyframe))
        if first is None or not rows:
            raise DecodeError(self.path, "no frame of the video track can be decoded")
        if any(ticks is None for ticks, _, _ in rows):
            raise self.refused(f"some frames have no timestamp, which {self.name} needs")
        ticks = np.array([row[0] for row in rows])
        order = np.argsort(ticks, kind="stable")
        ticks = ticks[order]
        if (np.diff(ticks) == 0).any():
            raise self.refused(f"some frames have the same timestamp, which {self.name} cannot tell apart")
        if not rows[order[0]][2]:
            raise self.refused(f"the first frame is no keyframe, from where {self.name} counts wrongly")
        if max(part.bits for part in first.format.components) > MAX_BITS:
            raise self.refused(f"{self.name} gives other colors of {first.format.name} frames")
        if first.rotation % 90:
            raise self.refused(f"it is turned by {first.rotation} degrees, which {self.name} does otherwise")
        time_base = self.reader.video.time_base
        return Index(
            ticks=ticks,
            seconds=[float(int(tick) * time_base) for tick in ticks],
            durations=[rows[i][1] for i in order],
            keyframes=[rows[i][2] for i in order],
            decoded_at=order,
            time_base=time_base,
            first=first,
            narrow=_narrow_format(first),
        )


def full_range(frame: av.VideoFrame) -> bool:
    """Whether black is 0 and not 16."""
    return frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG


def _first_frame(packet: av.Packet) -> av.VideoFrame | None:
    try:
        return next(iter(packet.decode()), None)
    except (av.error.FFmpegError, ValueError, EOFError):
        return None


def _narrow_format(frame: av.VideoFrame) -> str | None:
    """The 8-bit pixel format with the chroma subsampling of the frame (4:2:0 or 4:2:2); None = not subsampled."""
    pixels = frame.format
    if pixels.is_rgb or len(pixels.components) < 3:
        return None
    kind = {(8, 8): "420p", (8, 16): "422p"}.get((pixels.chroma_width(16), pixels.chroma_height(16)))
    return kind and ("yuvj" if full_range(frame) else "yuv") + kind
