"""One opened file: decoded frames with their seconds in rising time, also where its index or its packets are damaged.

Time is the container's clock: pts x time_base, never shifted.
"""

import collections
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol, Self

import av
import av.container
import av.format
import av.stream

from avssl.media import quirks

Track = Literal["video", "audio"]
TIME_TOLERANCE = 1e-4  # seconds; timestamps are rounded to the ticks of the container
MERGE_SECONDS = 1.0  # what lies closer than this is decoded in one go instead of seeking
BACK_SECONDS = (0.0, 2.0, 10.0)  # how far before the wanted second a seek aims, tried in this order
TAIL_SECONDS = 1.0  # how much of the end is looked at to see that it is there
MAX_RESUMED = 3  # times that reading goes on behind a damaged place
MAX_FRUITLESS = 10_000  # packets in a row that bring nothing new before a damaged file counts as ended
MAX_KEPT_BYTES = 32 << 20  # packets of the other track that are kept, rather than opening the file again for them
MAX_SIDE = 32_766  # pixels: what OpenCV can cut from
OPEN_SECONDS = 60.0  # limit for one read of the file system, not for decoding
SAMPLE_RATES = (100, 768_000)  # Hz; a rate outside is a damaged number, and memory is taken by it
MISSING, EMPTY = "the file does not exist", "the file is empty"
# Formats that make FFmpeg open other files, devices or addresses: a playlist that is called .mp4 reads nothing.
FOREIGN = frozenset(
    {"alsa", "concat", "dash", "fbdev", "ffmetadata", "hls", "image2", "imf", "kmsgrab", "lavfi", "oss", "rtp", "rtsp"}
    | {"sap", "sdp", "video4linux2,v4l2", "vobsub", "webm_dash_manifest", "x11grab"}
)


class DecodeError(ValueError):
    """A file that cannot be read: the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)  # workers send it through a pipe


@dataclass(frozen=True)
class Limits:
    """What a file may ask for; one that asks for more is refused before memory is taken for it.

    Args:
        max_pixels: of one stored picture, width x height; the default admits 8K (7680 x 4320).
        max_seconds: that the file claims to last; the hours at which an MPEG-TS recorder began (up to 26) are in it.
        max_bytes: of the pictures of one window.
    """

    max_pixels: int = 2**25
    max_seconds: float = 360_000.0
    max_bytes: int = 2**31


LIMITS = Limits()


def file_problem(path: Path) -> str | None:
    """Why nothing can be read at this path; None for a regular file with something in it. A pipe is not opened: that
    would wait for somebody to write into it.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name that is too long or holds a 0
        return f"the file cannot be opened ({error_text(error)})"
    if not stat.S_ISREG(found.st_mode):
        return "it is a folder, a pipe or a device, and no file"
    return None if found.st_size else EMPTY


class HasRate(Protocol):
    """A video stream, or what is remembered of one."""

    average_rate: Fraction | None


@dataclass(frozen=True)
class LazyFrame:
    """A picture whose second is known, and that is decoded when it is wanted (indexed.py)."""

    decode: Callable[[], av.VideoFrame]  # as RGB, as it is stored
    duration: int  # ticks, 0 = not known
    time_base: Fraction  # seconds of a tick
    rotation: int  # degrees counterclockwise by which it is to be turned
    narrow: str | None  # name of the kind of pixels that the file stores, if it stores fewer colors than pixels


class Source(Protocol):
    """What windows are cut out of: a `Reader`, a file that was decoded before (cache.py), or one whose pictures another
    library decodes (indexed.py)."""

    path: Path
    video: HasRate | None
    audio: object | None

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def frames_from(
        self, kind: Track, seconds: float, wanted: Sequence[float] | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | LazyFrame | av.AudioFrame]]: ...


class Reader:
    """One opened file that yields decoded frames from wanted seconds on, also when its index is broken.

    Attributes:
        video, audio: the first stream of the kind that a decoder exists for, None where there is none; cover pictures
            of songs do not count as video.

    Raises:
        DecodeError: the file does not exist, is empty, is no media file, or asks for more than `limits`.
    """

    def __init__(self, path: str | Path, *, limits: Limits = LIMITS) -> None:
        self.path = Path(path)
        self.limits = limits
        problem = file_problem(self.path)
        if problem is not None:
            raise DecodeError(path, problem)
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.container.close()

    def _open(self) -> None:
        try:
            # the protocol is named, or a file called "http:..." would be fetched
            self.container = av.open(
                f"file:{self.path}",
                container_options={"protocol_whitelist": "file", "format_whitelist": _FORMATS},
                metadata_errors="replace",
                timeout=OPEN_SECONDS,
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(self.path, f"no media file that can be opened ({error_text(error)})") from error
        try:
            self.video = _first_decodable(self.container.streams.video)
            self.audio = _first_decodable(self.container.streams.audio)
            self._check_limits()
        except DecodeError:
            self.container.close()
            raise
        streams = [stream for stream in (self.video, self.audio) if stream is not None]
        for stream in streams:
            stream.codec_context.thread_count = 1
        if self.video is not None:  # pictures can also grow in the middle of a file
            self.video.codec_context.options = {"max_pixels": str(self.limits.max_pixels)}
        self._pass = _Pass(self.container, streams, from_beginning=True)

    def _check_limits(self) -> None:
        width, height = (0, 0) if self.video is None else (self.video.width, self.video.height)
        seconds = (self.container.duration or 0) / av.time_base
        if max(width, height) > MAX_SIDE:
            raise DecodeError(self.path, f"a picture of {width}x{height} is longer than {MAX_SIDE}")
        if width * height > self.limits.max_pixels:
            limit = f"data.max_pixels={self.limits.max_pixels}: raise it if the file is sound"
            raise DecodeError(self.path, f"a picture of {width}x{height} pixels is larger than {limit}")
        if seconds > self.limits.max_seconds:
            limit = f"data.max_seconds={self.limits.max_seconds:.0f}: raise it if the file is sound"
            raise DecodeError(self.path, f"it claims to last {seconds:.0f} seconds, more than {limit}")

    def frames_from(
        self, kind: Track, seconds: float, wanted: Sequence[float] | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """Decoded frames with their seconds, in rising time; the first lies at or before `seconds` unless it is the
        first of the file.

        Both tracks can be read one after the other from the beginning without opening the file twice.

        Args:
            kind: of a stream that exists.
            wanted: seconds in rising order of the pictures that will be looked at: others may be missing, except the
                first and the last of the file. None = all.
        """
        stream = getattr(self, kind)
        if kind == "audio" and quirks.is_plain_pcm(self.container, stream):
            yield from quirks.read_pcm(self.path, stream, seconds)
            return
        first = -math.inf if stream.start_time is None else float(stream.start_time * stream.time_base)
        can_begin = self._pass.from_beginning and self._pass.holds(stream)
        must_count = quirks.must_count(self.container, self.video)
        if first > -math.inf and seconds > first + (MERGE_SECONDS if can_begin and not must_count else 0.0):
            for back in (None,) if must_count else BACK_SECONDS:
                try:
                    decoded = self._begin(kind, seconds, back, wanted)
                except (av.error.FFmpegError, OverflowError):
                    continue
                # pictures before the first keyframe miss what they are built on
                head = next((it for it in decoded if kind == "audio" or it[1].key_frame or it[0] > seconds), None)
                if head is not None and head[0] <= seconds + TIME_TOLERANCE:
                    yield head
                    yield from decoded
                    return
        self._restart(getattr(self, kind))
        yield from self._decode(getattr(self, kind), wanted)

    def _begin(
        self, kind: Track, seconds: float, back: float | None, wanted: Sequence[float] | None
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """What decodes after a seek to `back` seconds before; None = packets are skipped from the beginning on."""
        stream = getattr(self, kind)
        if back is not None:
            self._seek(stream, seconds - back)
            return self._decode(stream, wanted)
        self._restart(stream)
        return self._decode(getattr(self, kind), wanted, skip_to=seconds)

    def end_seconds(self, kind: str) -> float | None:
        """When the last packet of a track ends, by the packets that are there and not by what the header claims. Raises
        DecodeError: a packet is encrypted.
        """
        stream = getattr(self, kind)
        claimed = None
        if stream.duration is not None:
            claimed = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        elif self.container.duration is not None:
            claimed = ((self.container.start_time or 0) + self.container.duration) / av.time_base
        if claimed is not None:
            try:
                self._seek(stream, claimed - TAIL_SECONDS)
                end = max((end for _, end in self._packet_times(stream)), default=-math.inf)
            except (av.error.FFmpegError, OverflowError):
                end = -math.inf
            if end >= claimed - TAIL_SECONDS:
                # the last packet of sound holds filling that the header rightly leaves out
                return claimed if claimed <= end < claimed + 0.1 else end
        return max((end for _, end in self.packet_times(kind)), default=None)

    def packets(self, kind: Track) -> Iterator[av.Packet]:
        """All packets of a track from its beginning, not decoded, and the empty one that ends it."""
        self._restart(getattr(self, kind))
        return self._pass.packets(getattr(self, kind))

    def packet_times(self, kind: str) -> Iterator[tuple[float, float]]:
        """First and last second of every packet of a track, without decoding. Raises DecodeError as `end_seconds`."""
        self._restart(getattr(self, kind))
        return self._packet_times(getattr(self, kind))

    def _packet_times(self, stream: av.stream.Stream) -> Iterator[tuple[float, float]]:
        for packet in self._pass.packets(stream):
            if packet.has_sidedata("encryption_info"):
                raise DecodeError(self.path, f"the {stream.type} track is encrypted")
            ticks = packet.pts if packet.pts is not None else packet.dts
            if ticks is not None and not packet.is_discard:
                yield float(ticks * stream.time_base), float((ticks + (packet.duration or 0)) * stream.time_base)

    def _seek(self, stream: av.stream.Stream, seconds: float) -> None:
        self._pass = _Pass(self.container, [stream], from_beginning=False)
        self.container.seek(math.floor(seconds / stream.time_base), stream=stream)

    def _restart(self, stream: av.stream.Stream) -> None:
        """Open afresh unless all packets of the track are still to come or kept: a seek to the beginning loses the
        first packet of some tracks.
        """
        if not (self._pass.from_beginning and self._pass.holds(stream)):
            self.container.close()
            self._open()

    def _decode(
        self, stream: av.stream.Stream, wanted: Sequence[float] | None, *, skip_to: float | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """What decodes from here on, without frames whose time does not rise; packets that are not needed for second
        `skip_to` and what follows are not decoded.
        """
        packets = self._pass.packets(stream)
        if skip_to is not None:
            packets = quirks.from_keyframe(packets, skip_to, max_bytes=MAX_KEPT_BYTES)
        if stream.type == "video":
            stream.codec_context.skip_frame = "DEFAULT"
            if wanted is not None and quirks.can_skip(self.container, stream):
                packets = quirks.skip_unwanted(packets, stream, [each + TIME_TOLERANCE for each in wanted])
        if self.container.format.name == "avi" and not quirks.must_count(self.container, self.video):
            packets = quirks.times_of_index(packets, stream)
        decoded = self._timed(packets, stream)
        if stream.type == "video" and self.container.format.name == "avi":
            decoded = quirks.sort_times(decoded)
        latest, fruitless = -math.inf, 0
        for seconds, frame in decoded:
            if seconds > latest:
                latest, fruitless = seconds, 0
                yield seconds, frame
            else:
                fruitless += 1
                if fruitless > MAX_FRUITLESS:
                    return

    def _timed(
        self, packets: Iterator[av.Packet], stream: av.stream.Stream
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """Decoded frames with their seconds; damaged packets are left out."""
        latest, fruitless = None, 0  # (seconds, frame)
        for packet in packets:
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, ValueError, EOFError):
                decoded = []
            for frame in decoded:
                if isinstance(frame, av.AudioFrame) and not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                    continue
                seconds = frame.time
                if seconds is None:
                    seconds = latest[0] + frame_duration(latest[1], stream) if latest else 0.0
                    if frame.dts is not None:
                        seconds = float(frame.dts * frame.time_base)
                latest = (seconds, frame)
                yield latest
            fruitless = 0 if decoded else fruitless + 1
            if fruitless > MAX_FRUITLESS:
                return


class _Pass:
    """One run through the packets of a file from some place on. While one track is read, the packets of the other are
    kept, as long as they are few."""

    def __init__(
        self, container: av.container.InputContainer, streams: Sequence[av.stream.Stream], *, from_beginning: bool
    ) -> None:
        self.from_beginning = from_beginning
        for stream in container.streams:  # nothing is read for the others
            stream.discard = av.stream.Discard.default if stream in streams else av.stream.Discard.all
        self._packets = _demux(container, streams)
        self._cached: dict[int, collections.deque[av.Packet]] = {each.index: collections.deque() for each in streams}
        self._num_bytes = 0

    def holds(self, stream: av.stream.Stream) -> bool:
        """Whether `packets` can give all packets of the track from where the pass began."""
        return stream.index in self._cached

    def packets(self, stream: av.stream.Stream) -> Iterator[av.Packet]:
        """Packets of one track and the empty one that ends it."""
        kept = self._cached.pop(stream.index)
        while kept:
            yield kept.popleft()
        for packet in self._packets:
            index = packet.stream.index  # stream_index is 0 in the packets that end the tracks
            if index == stream.index:
                yield packet
            elif index in self._cached:
                self._cached[index].append(packet)
                self._num_bytes += packet.size
                if self._num_bytes > MAX_KEPT_BYTES:
                    self._cached.clear()


def frame_duration(frame: av.VideoFrame | LazyFrame | av.AudioFrame, stream: HasRate) -> float:
    """How long a decoded frame lasts in seconds, from the average rate of the stream if it does not say itself."""
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 1 / 25


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether a video stream is only the cover picture of a song."""
    return av.stream.Disposition.attached_pic in stream.disposition


def error_text(error: Exception) -> str:
    """What went wrong in FFmpeg's words."""
    return getattr(error, "strerror", None) or str(error)


def _demux(container: av.container.InputContainer, streams: Sequence[av.stream.Stream]) -> Iterator[av.Packet]:
    """Packets of the streams and an empty one that ends each; a damaged place is stepped over a few times."""
    for _ in range(MAX_RESUMED):
        try:
            yield from container.demux(*streams)
            return
        except (av.error.FFmpegError, ValueError):
            continue


def _first_decodable(streams: Sequence[av.stream.Stream]) -> av.stream.Stream | None:
    return next((each for each in streams if each.codec_context is not None and not is_cover(each)), None)


def _input_formats() -> str:
    """Names of the formats that are read, in FFmpeg's notation."""
    names = set()
    for name in av.formats_available:
        try:
            names.add(av.format.ContainerFormat(name, "r").name)
        except ValueError:  # can only be written
            continue
    return ",".join(sorted(names - FOREIGN))


_FORMATS = _input_formats()
