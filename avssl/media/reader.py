"""One opened file: decoded frames with their seconds in rising order, even if its index or its packets are damaged.

Time is the container's clock: pts x time_base, never shifted.
"""

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, Self

import av
import av.container
import av.format
import av.logging
import av.stream

from avssl.media import quirks, shards
from avssl.media.streams import choose_tracks
from avssl.media.upright import Orientation

Track = Literal["video", "audio"]
TIME_TOLERANCE = 1e-4  # seconds; timestamps are rounded to the ticks of the container
WOBBLE_SECONDS = 0.1  # how far timestamps of audio may be from where it lies, at most
MERGE_SECONDS = 1.0  # windows closer than this are decoded in one go instead of seeking
BACK_SECONDS = (0.0, 2.0, 10.0)  # how far before the wanted second a seek aims, tried in this order
TAIL_SECONDS = 1.0  # how much of the end is looked at to see that it is there
MAX_RESUMED = 3  # times that reading continues after a damaged packet
MAX_UNTIMED = 32  # frames without a time that the first known one is waited for
MAX_IDLE = 10_000  # packets in a row without a new frame after which a damaged file counts as ended
MAX_CACHED_BYTES = 32 << 20  # packets of the other track that are cached, to avoid opening the file again
MAX_SCANNED_BYTES = 1 << 30  # of a file that may be several joined ones
MAX_SIDE = 32_766  # pixels: what OpenCV can cut from
OPEN_SECONDS = 60.0  # limit for one read of the file system, not for decoding
SAMPLE_RATES = (100, 768_000)  # Hz; a rate outside is a damaged header
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
    """Limits of a file; one beyond them is refused before memory is allocated."""

    max_pixels: int = 2**25  # of one stored frame, width x height; the default admits 8K (7680 x 4320)
    max_seconds: float = 360_000.0  # duration by the header
    max_bytes: int = 2**31  # of the frames of one window


LIMITS = Limits()


def file_problem(path: Path) -> str | None:
    """Why nothing can be read at this path; None for a regular file that is not empty. Pipes are not opened."""
    try:
        part = shards.locate(path)
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name that is too long or holds a 0
        return f"the file cannot be opened ({error_text(error)})"
    if not part.is_regular:
        return "it is a folder, a pipe or a device, and no file"
    return None if part.size else EMPTY


class HasRate(Protocol):
    """A video stream, or the cached facts of one."""

    average_rate: Fraction | None


@dataclass(frozen=True)
class LazyFrame:
    """A frame at a known second that is decoded on demand (backends/indexed.py)."""

    decode: Callable[[], av.VideoFrame]  # as RGB, as it is stored
    duration: int  # ticks, 0 = not known
    time_base: Fraction  # seconds of a tick
    orientation: Orientation
    narrow: str | None  # pixel format of the file if its chroma is subsampled, else None


class Source(Protocol):
    """What windows are read from: `Reader`, `DecodedFile` (cache.py) or `IndexedReader` (backends/indexed.py)."""

    path: Path
    video: HasRate | None
    audio: object | None

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def frames_from(
        self, kind: Track, seconds: float, wanted: Sequence[float] | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | LazyFrame | av.AudioFrame]]: ...


class Reader:
    """One opened file that yields decoded frames from a given second on, even with a broken index.

    Attributes:
        video, audio: the streams that are read, see streams.py.
        size: of the file in bytes.

    Raises:
        DecodeError: the file does not exist, is empty, is no media file, or exceeds `limits`.
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
            self.container = _open_container(str(self.path))
        except (av.error.FFmpegError, ValueError, OSError) as error:
            why = _why_not(str(self.path), error)
            raise DecodeError(self.path, f"no media file that can be opened ({why})") from error
        part, streams = shards.locate(self.path), self.container.streams
        self.size = part.size
        state = str(self.path), part.size, part.changed
        self.jumps = _find_jumps(*state) if self.container.format.name in quirks.JOINED else ()
        try:
            is_plain = max(len(streams.video), len(streams.audio)) < 2
            tracks = (
                choose_tracks(self.container, partial(_open_container, state[0])) if is_plain else _find_tracks(*state)
            )
            self.video, self.audio = (None if i is None else streams[i] for i in tracks)
            self._check_limits()
        except DecodeError:
            self.container.close()
            raise
        chosen = [stream for stream in (self.video, self.audio) if stream is not None]
        for stream in chosen:
            stream.codec_context.thread_count = 1
        if self.video is not None:  # frames can also grow in the middle of a file
            self.video.codec_context.options = {"max_pixels": str(self.limits.max_pixels)}
        self._pass = _Pass(self.container, chosen, jumps=self.jumps, from_beginning=True)

    def _check_limits(self) -> None:
        width, height = (0, 0) if self.video is None else (self.video.width, self.video.height)
        seconds = self.stated_seconds
        if max(width, height) > MAX_SIDE:
            raise DecodeError(self.path, f"a frame of {width}x{height} is larger than {MAX_SIDE} on a side")
        if width * height > self.limits.max_pixels:
            limit = f"data.max_pixels={self.limits.max_pixels}: raise it if the file is intact"
            raise DecodeError(self.path, f"a frame of {width}x{height} pixels is larger than {limit}")
        if seconds > self.limits.max_seconds:
            limit = f"data.max_seconds={self.limits.max_seconds:.0f}: raise it if the file is intact"
            raise DecodeError(self.path, f"it claims to last {seconds:.0f} seconds, more than {limit}")

    @property
    def stated_seconds(self) -> float:
        """Duration by the header, 0 = not stated. Some containers count it from 0, and their times may be a date."""
        start, duration = self.container.start_time or 0, self.container.duration or 0
        return (duration - start if duration >= start else duration) / av.time_base

    def frames_from(
        self, kind: Track, seconds: float, wanted: Sequence[float] | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """Decoded frames with their seconds, rising; the first is at or before `seconds`, or the first of the file.

        Both tracks can be read one after the other from the beginning without opening the file twice.

        Args:
            kind: of a stream that exists.
            wanted: rising seconds of the video frames that are used: others may be left out, except the first and the
                last of the file. None = all.
        """
        stream = getattr(self, kind)
        if quirks.is_chained(stream):
            seconds = -math.inf
        if kind == "audio" and quirks.is_plain_pcm(self.container, stream):
            yield from quirks.read_pcm(self.path, stream, seconds)
            return
        first = -math.inf if stream.start_time is None else float(stream.start_time * stream.time_base)
        can_begin = self._pass.from_beginning and self._pass.holds(stream)
        must_count = self.jumps or quirks.must_count(self.container, self.video)
        if first > -math.inf and seconds > first + (MERGE_SECONDS if can_begin and not must_count else 0.0):
            for back in (None,) if must_count else BACK_SECONDS:
                try:
                    if back is None:  # no seek: packets are skipped from the beginning on
                        self._restart(stream)
                        decoded = self._decode(getattr(self, kind), wanted, skip_to=seconds)
                    else:
                        self._seek(stream, seconds - back)
                        decoded = self._decode(stream, wanted)
                except (av.error.FFmpegError, OverflowError):
                    continue
                # frames before the first keyframe lack their references
                head = next((it for it in decoded if kind == "audio" or it[1].key_frame or it[0] > seconds), None)
                if head is not None and head[0] <= seconds + TIME_TOLERANCE:
                    yield head
                    yield from decoded
                    return
        self._restart(getattr(self, kind))
        yield from self._decode(getattr(self, kind), wanted)

    def end_seconds(self, kind: str) -> float | None:
        """End of the last packet of a track, whatever the header claims. Raises DecodeError: a packet is encrypted."""
        stream = getattr(self, kind)
        claimed = None
        if stream.duration is not None:
            claimed = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        elif self.container.duration is not None:
            claimed = ((self.container.start_time or 0) + self.container.duration) / av.time_base
        if claimed is not None and not self.jumps and not quirks.is_chained(stream):
            try:
                self._seek(stream, claimed - TAIL_SECONDS)
                end = max((end for _, end in self._packet_times(stream)), default=-math.inf)
            except (av.error.FFmpegError, OverflowError):
                end = -math.inf
            if end >= claimed - TAIL_SECONDS:
                # the last audio packet holds padding that the header rightly leaves out
                return claimed if claimed <= end < claimed + 0.1 else end
        return max((end for _, end in self.packet_times(kind)), default=None)

    def packets(self, kind: Track) -> Iterator[av.Packet]:
        """All packets of a track from its beginning, undecoded, and the empty one that ends it."""
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
        """Reopen unless all packets are ahead or cached: seeking to 0 loses the first packet of some tracks."""
        if not (self._pass.from_beginning and self._pass.holds(stream)):
            self.container.close()
            self._open()

    def _decode(
        self, stream: av.stream.Stream, wanted: Sequence[float] | None, *, skip_to: float | None = None
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """Frames from here on, their times rise (of audio nearly); what `skip_to` does not need is not decoded."""
        packets = self._pass.packets(stream)
        if skip_to is not None:
            packets = quirks.from_keyframe(packets, skip_to, max_bytes=MAX_CACHED_BYTES)
        if stream.type == "video":
            stream.codec_context.skip_frame = "DEFAULT"
            if wanted is not None and quirks.can_skip(self.container, stream):
                packets = quirks.skip_unwanted(packets, stream, [each + TIME_TOLERANCE for each in wanted])
        if self.container.format.name == "avi" and not quirks.must_count(self.container, self.video):
            packets = quirks.times_of_index(packets, stream)
        decoded = _count_times(self._timed(packets, stream), stream)
        if stream.type == "video" and self.container.format.name == "avi":
            decoded = quirks.sort_times(decoded)
        latest, idle = -math.inf, 0
        slack = WOBBLE_SECONDS if stream.type == "audio" else 0.0
        for seconds, frame in decoded:
            if seconds > latest - slack:
                latest, idle = max(seconds, latest), 0
                yield seconds, frame
            else:
                idle += 1
                if idle > MAX_IDLE:
                    return

    def _timed(
        self, packets: Iterator[av.Packet], stream: av.stream.Stream
    ) -> Iterator[tuple[float | None, av.VideoFrame | av.AudioFrame]]:
        """Decoded frames with their seconds where they have any; damaged packets are skipped."""
        idle = 0
        for packet in packets:
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, ValueError, EOFError):
                decoded = []
            for frame in decoded:
                if isinstance(frame, av.AudioFrame) and not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                    continue
                ticks = frame.dts if frame.pts is None else frame.pts
                yield (None if ticks is None else float(ticks * frame.time_base)), frame
            idle = 0 if decoded else idle + 1
            if idle > MAX_IDLE:
                return


class _Pass:
    """One pass over the packets of a file. While one track is read, packets of the other are cached, within a limit."""

    def __init__(
        self,
        container: av.container.InputContainer,
        streams: Sequence[av.stream.Stream],
        *,
        jumps: Sequence[quirks.Jump] = (),
        from_beginning: bool,
    ) -> None:
        self.from_beginning = from_beginning
        for stream in container.streams:  # nothing is read for the others
            stream.discard = av.stream.Discard.default if stream in streams else av.stream.Discard.all
        self._packets = quirks.on_one_clock(quirks.in_ticks(_demux(container, streams), container), jumps)
        self._cached: dict[int, collections.deque[av.Packet]] = {each.index: collections.deque() for each in streams}
        self._num_bytes = 0

    def holds(self, stream: av.stream.Stream) -> bool:
        """Whether `packets` can yield all packets of the track from the start of the pass."""
        return stream.index in self._cached

    def packets(self, stream: av.stream.Stream) -> Iterator[av.Packet]:
        """Packets of one track and the empty one that ends it."""
        cached = self._cached.pop(stream.index)
        while cached:
            yield cached.popleft()
        for packet in self._packets:
            index = packet.stream.index  # stream_index is 0 in the packets that end the tracks
            if index == stream.index:
                yield packet
            elif index in self._cached:
                self._cached[index].append(packet)
                self._num_bytes += packet.size
                if self._num_bytes > MAX_CACHED_BYTES:
                    self._cached.clear()


def frame_duration(frame: av.VideoFrame | LazyFrame | av.AudioFrame, stream: HasRate) -> float:
    """Duration of a decoded frame in seconds, by the average rate of the stream if the frame has none."""
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 1 / 25


def _count_times(
    decoded: Iterable[tuple[float | None, av.VideoFrame | av.AudioFrame]], stream: HasRate
) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
    """A frame without a time follows the one before it; the first ones are counted back from the first known time."""
    untimed, following = [], None  # following: second of the next frame
    for seconds, frame in itertools.chain(decoded, [(None, None)]):
        if frame is not None and seconds is None and following is None and len(untimed) < MAX_UNTIMED:
            untimed.append(frame)
            continue
        for each in untimed:
            if following is None:  # without any time they begin at 0
                following = 0.0 if seconds is None else seconds - sum(frame_duration(it, stream) for it in untimed)
            yield following, each
            following += frame_duration(each, stream)
        untimed = []
        if frame is not None:
            seconds = following if seconds is None else seconds
            yield seconds, frame
            following = seconds + frame_duration(frame, stream)


def error_text(error: Exception) -> str:
    """FFmpeg's message of an error."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def logged_errors() -> Iterator[list[tuple[int, str, str]]]:
    """(level, component, message) of each error that FFmpeg logs: the only sign of what a demuxer skips or lacks."""
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # what the last file had too would be left out
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_level(before[0])
        av.logging.set_skip_repeated(before[1])


def _why_not(path: str, error: Exception) -> str:
    """FFmpeg's message of a file that it did not open; of one whose format it knows, with what is wrong there."""
    if not isinstance(error, av.error.InvalidDataError):
        return error_text(error)
    with logged_errors() as messages, contextlib.suppress(av.error.FFmpegError, ValueError, OSError):
        _open_container(path).close()
    logged = [message.strip() for _, _, message in messages[-1:]]
    cut = ["the file was cut off or is still being written"] if "moov atom not found" in logged else []
    return ": ".join([error_text(error), *logged, *cut])


def _open_container(path: str, *, skip: int = 0) -> av.container.InputContainer:
    """Raises FFmpegError or ValueError, OSError as `shards.locate`."""
    url = shards.locate(path).url(skip)
    return av.open(
        url,
        container_options={
            "protocol_whitelist": "file" if url.startswith("file:") else "file,subfile",
            "format_whitelist": _FORMATS,
        },
        metadata_errors="replace",
        timeout=OPEN_SECONDS,
    )


@functools.lru_cache(maxsize=10_000)
def _find_jumps(path: str, size: int, changed: int) -> tuple[quirks.Jump, ...]:
    """`quirks.find_jumps` of a file that is as large and as old."""
    if size > MAX_SCANNED_BYTES:
        return ()
    with _open_container(path) as container:
        streams = [*container.streams.video, *container.streams.audio]
        jumps, codecs = quirks.find_jumps(_demux(container, streams)), _codecs(container)
    for i, jump in enumerate(jumps):
        with contextlib.suppress(av.error.FFmpegError), _open_container(path, skip=jump.position) as behind:
            others = _codecs(behind)
            if any(codecs[kind].isdisjoint(others[kind]) for kind in codecs if codecs[kind] and others[kind]):
                return *jumps[:i], jump._replace(shift=None)
    return tuple(jumps)


def _codecs(container: av.container.InputContainer) -> dict[Track, set[str]]:
    streams = {"video": container.streams.video, "audio": container.streams.audio}
    return {kind: {name for each in some if (name := quirks.codec_name(each))} for kind, some in streams.items()}


def num_behind(path: Path, position: int) -> int:
    """Packets of the file that begins at a position, in bytes, of another one; 1 where they cannot be counted."""
    with contextlib.suppress(av.error.FFmpegError), _open_container(str(path), skip=position) as behind:
        streams = [*behind.streams.video, *behind.streams.audio]
        return max(1, sum(packet.size > 0 for packet in _demux(behind, streams)))
    return 1


@functools.lru_cache(maxsize=10_000)
def _find_tracks(path: str, size: int, changed: int) -> tuple[int | None, int | None]:
    """`choose_tracks` of a file that is as large and as old; looking into several may mean to decode 10 s of each."""
    reopen = partial(_open_container, path)
    with reopen() as container:
        return choose_tracks(container, reopen)


def _demux(container: av.container.InputContainer, streams: Sequence[av.stream.Stream]) -> Iterator[av.Packet]:
    """Packets of the streams and an empty one that ends each; damaged packets are skipped a few times."""
    num_damaged = 0
    while num_damaged < MAX_RESUMED:
        try:
            yield from container.demux(*streams)
            return
        except IndexError:  # a packet of a stream that begins in the middle of an MPEG-TS, which PyAV does not know
            continue
        except (av.error.FFmpegError, ValueError):
            num_damaged += 1


def _input_formats() -> str:
    """FFmpeg's names of the formats that are read."""
    names = set()
    for name in av.formats_available:
        try:
            names.add(av.format.ContainerFormat(name, "r").name)
        except ValueError:  # can only be written
            continue
    return ",".join(sorted(names - FOREIGN))


_FORMATS = _input_formats()
