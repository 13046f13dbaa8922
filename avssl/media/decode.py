"""Reading windows of frames and of sound out of clips: numpy out, so that worker processes stay light (no torch here).

Time is the container's clock: pts x time_base, never shifted. The frame at second t is the last one with pts <= t + 1e-4;
before the first frame, the first. Sound is placed by its timestamps on the same clock.

What lives here: `read_clip` (any number of windows out of one opened container) and its short forms `read_frames` and
`read_samples`. What does not: which seconds are wanted (data/sampling.py) and whether a file is worth reading (probe.py).

Letters: T frames, H x W pixels, n samples.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import av.container
import av.stream
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

TIME_TOLERANCE = 1e-4  # seconds; timestamps are rounded to the ticks of the container
MERGE_SECONDS = 1.0  # windows closer than this are decoded in one go instead of seeking again
BACK_SECONDS = (0.0, 2.0, 10.0)  # how far before the wanted second a seek aims, tried in this order
PREROLL_SECONDS = 0.25  # AAC, Opus and MP3 need the packets before a sample to decode it rightly
LEAD_SECONDS = 0.02  # sound resampled around a window, so that its edges are not the resampler's
MAX_FRUITLESS = 10_000  # packets in a row that bring nothing new before a damaged file counts as ended
OPEN_SECONDS = 60.0  # limit for one read of the file system, not for decoding


class DecodeError(ValueError):
    """A file that cannot be read: the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)  # workers send it through a pipe


@dataclass(frozen=True)
class VideoWindow:
    """Which frames to read.

    Args:
        start: second of the first frame.
        duration: seconds; round(duration * fps) frames are read, frame i at start + i / fps.
        fps: frames per second that come out, whatever the rate of the file.
        crop: (top, left, height, width) as fractions of the upright picture; None = all of it.
        size: (height, width) in pixels that come out; None = the pixels of the file.
    """

    start: float
    duration: float
    fps: float
    crop: tuple[float, float, float, float] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_window(self.start, self.duration, self.fps, "fps")
        if self.crop is not None:
            top, left, height, width = self.crop
            inside = min(top, left) >= 0 and min(height, width) > 0 and max(top + height, left + width) <= 1 + 1e-6
            if not inside:
                raise ValueError(
                    f"crop={self.crop} must be (top, left, height, width) as fractions of the picture that stay in [0, 1]"
                )
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={self.size} must be (height, width) in pixels, at least 1 each")

    @property
    def num_frames(self) -> int:
        return round(self.duration * self.fps)


@dataclass(frozen=True)
class AudioWindow:
    """Which sound to read.

    Args:
        start: second of the first sample.
        duration: seconds; round(duration * sample_rate) samples are read.
        sample_rate: in Hz, whatever the rate of the file.
        follows: index of a video window of the same call. Its first frame is not exactly at the second that was asked
            for; this sound window moves by the same difference. None = the window stays where it is.
    """

    start: float
    duration: float
    sample_rate: int
    follows: int | None = None

    def __post_init__(self) -> None:
        _check_window(self.start, self.duration, self.sample_rate, "sample_rate")

    @property
    def num_samples(self) -> int:
        return round(self.duration * self.sample_rate)


@dataclass(frozen=True)
class Frames:
    """Frames of one window: data (T, H, W, 3) uint8 RGB, upright; start = true second of the first; times (T,) float64
    true second of each; padded: the clip ended inside the window and its frames are repeated from the first onwards."""

    data: np.ndarray
    start: float
    times: np.ndarray
    padded: bool


@dataclass(frozen=True)
class Samples:
    """Sound of one window: data (n,) float32 mono in [-1, 1]; start in seconds; padded: zeros stand where no sound is."""

    data: np.ndarray
    start: float
    padded: bool


def read_frames(
    path: str | Path,
    *,
    start: float,
    duration: float,
    fps: float,
    crop: tuple[float, float, float, float] | None = None,
    size: tuple[int, int] | None = None,
) -> Frames:
    """Read one window of frames; see `VideoWindow` for the arguments and `read_clip` for the rules."""
    frames, _ = read_clip(path, video=[VideoWindow(start, duration, fps, crop, size)])
    return frames[0]


def read_samples(path: str | Path, *, start: float, duration: float, sample_rate: int) -> Samples:
    """Read one window of sound; see `AudioWindow` for the arguments and `read_clip` for the rules."""
    _, samples = read_clip(path, audio=[AudioWindow(start, duration, sample_rate)])
    return samples[0]


def read_clip(
    path: str | Path, *, video: Sequence[VideoWindow] = (), audio: Sequence[AudioWindow] = ()
) -> tuple[list[Frames], list[Samples]]:
    """Read any number of windows out of one opened file.

    A window of frames that runs past the end of the last frame repeats its own frames from the first onwards; one that
    starts past the end repeats the last frame. Sound is mixed to mono by the plain mean of all channels, resampled, and
    is zero wherever the file has none: before its first sample, after its last, in gaps between packets, where packets
    are damaged, or everywhere if there is no track that can be decoded. Each result says so in `padded`.

    Args:
        path: a file of this machine; nothing is fetched over a network.
        video: windows of frames, in any order.
        audio: windows of sound, in any order.

    Returns:
        One `Frames` per video window and one `Samples` per audio window, in the order asked for.

    Raises:
        DecodeError: the file cannot be opened, or frames are asked for and none can be decoded.
        ValueError: `follows` names no video window.
    """
    for window in audio:
        if window.follows is not None and not 0 <= window.follows < len(video):
            raise ValueError(f"follows={window.follows} must be the index of one of the {len(video)} video windows")
    with Reader(path) as reader:
        frames = _read_video(reader, video)
        samples = []
        for window in audio:
            start = window.start
            if window.follows is not None:
                start += frames[window.follows].start - video[window.follows].start
            samples.append(_read_audio(reader, start, window))
    return frames, samples


class Reader:
    """One opened file that yields decoded frames from wanted seconds on, also when its index is broken.

    Attributes:
        video, audio: the first stream of the kind that a decoder exists for, None where there is none; cover pictures
            of songs do not count as video.

    Raises:
        DecodeError: the file does not exist, is empty or is no media file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DecodeError(path, "the file does not exist")
        if self.path.stat().st_size == 0:
            raise DecodeError(path, "the file is empty")
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
                container_options={"protocol_whitelist": "file"},
                metadata_errors="replace",
                timeout=OPEN_SECONDS,
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(self.path, f"no media file that can be opened ({_reason(error)})") from error
        self.video = _first_decodable(self.container.streams.video)
        self.audio = _first_decodable(self.container.streams.audio)
        self._at_beginning = True

    def frames_from(self, kind: str, seconds: float) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """Decoded frames with their seconds, in rising time; the first lies at or before `seconds` unless it is the
        first of the file.

        Args:
            kind: "video" or "audio", a stream that exists.
            seconds: where to begin.
        """
        stream = getattr(self, kind)
        first = stream.start_time
        if first is None or seconds > float(first * stream.time_base) + MERGE_SECONDS:
            for back in BACK_SECONDS:
                self._at_beginning = False
                try:
                    self.container.seek(math.floor((seconds - back) / stream.time_base), stream=stream)
                except (av.error.FFmpegError, OverflowError):
                    continue
                decoded = self._decode(stream)
                head = next(decoded, None)
                if head is not None and head[0] <= seconds + TIME_TOLERANCE:
                    yield head
                    yield from decoded
                    return
        if not self._at_beginning:  # a seek to the beginning loses the first packet of some tracks: open afresh
            self.container.close()
            self._open()
            stream = getattr(self, kind)
        self._at_beginning = False
        yield from self._decode(stream)

    def _decode(self, stream: av.stream.Stream) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """What decodes from here on: damaged packets are left out, and so are frames whose time does not rise."""
        stream.codec_context.thread_count = 1
        latest, step, fruitless = -math.inf, 0.0, 0
        for packet in _packets(self.container, stream):
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, ValueError, EOFError):
                decoded = []
            fruitless += 1
            for frame in decoded:
                seconds = frame_seconds(frame)
                if seconds is None:
                    seconds = latest + step if latest > -math.inf else 0.0
                if seconds <= latest:
                    continue
                latest, step, fruitless = seconds, frame_duration(frame, stream), 0
                yield seconds, frame
            if fruitless > MAX_FRUITLESS:
                return


def frame_seconds(frame: av.VideoFrame | av.AudioFrame) -> float | None:
    """Time of a decoded frame on the container's clock; None if it carries none."""
    ticks = frame.pts if frame.pts is not None else frame.dts
    return None if ticks is None or frame.time_base is None else float(ticks * frame.time_base)


def frame_duration(frame: av.VideoFrame | av.AudioFrame, stream: av.stream.Stream) -> float:
    """How long a decoded frame lasts in seconds, from the average rate of the stream if it does not say itself."""
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 1 / 25


def to_mono(frame: av.AudioFrame) -> np.ndarray:
    """Decoded sound -> (n,) float32: the plain mean of its channels, full scale = 1."""
    values = frame.to_ndarray()  # (channels, n) planar, (1, n * channels) packed
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    mono = values.mean(axis=0, dtype=np.float64)  # (n,)
    if values.dtype.kind == "u":
        mono = mono / 128 - 1
    elif values.dtype.kind == "i":
        mono = mono / 2.0 ** (8 * values.dtype.itemsize - 1)
    return np.nan_to_num(mono, posinf=1.0, neginf=-1.0).astype(np.float32)


def _read_video(reader: Reader, windows: Sequence[VideoWindow]) -> list[Frames]:
    if not windows:
        return []
    if reader.video is None:
        raise DecodeError(reader.path, "no video track that can be decoded")
    pictures = [_Pictures(window) for window in windows]
    targets = sorted(
        ((window.start + i / window.fps), index)
        for index, window in enumerate(windows)
        for i in range(window.num_frames)
    )
    # split where the way to the next wanted frame is long enough to seek
    far = [i for i in range(1, len(targets)) if targets[i][0] - targets[i - 1][0] > MERGE_SECONDS]
    for begin, end in itertools.pairwise([0, *far, len(targets)]):
        _pick_frames(reader, targets[begin:end], pictures)
    return [each.finish() for each in pictures]


def _pick_frames(reader: Reader, targets: list[tuple[float, int]], pictures: list["_Pictures"]) -> None:
    """Decode once over the targets (second, index of the window), which are sorted."""
    wanted = iter(targets)
    target, index = next(wanted)
    previous = None  # (seconds, frame)
    for seconds, frame in reader.frames_from("video", target):
        while target + TIME_TOLERANCE < seconds:
            pictures[index].take(*(previous or (seconds, frame)))
            following = next(wanted, None)
            if following is None:
                return
            target, index = following
        previous = (seconds, frame)
    if previous is None:
        raise DecodeError(reader.path, "no frame of the video track can be decoded")
    end = previous[0] + frame_duration(previous[1], reader.video)
    for target, index in itertools.chain([(target, index)], wanted):
        if target + TIME_TOLERANCE < end or not pictures[index].times:
            pictures[index].take(*previous, past_end=target + TIME_TOLERANCE >= end)


class _Pictures:
    """Collects the pictures of one window, converting each wanted frame once."""

    def __init__(self, window: VideoWindow) -> None:
        self.window = window
        self.reformatter = VideoReformatter()
        self.size = window.size
        self.data, self.times = [], []
        self.past_end = False

    def take(self, seconds: float, frame: av.VideoFrame, past_end: bool = False) -> None:
        self.past_end |= past_end
        if self.times and self.times[-1] == seconds:  # several targets fall on one frame
            self.data.append(self.data[-1])
        else:
            self.data.append(self._convert(frame))
        self.times.append(seconds)

    def finish(self) -> Frames:
        num_frames = self.window.num_frames
        order = np.arange(num_frames) % len(self.times)  # 0, 1, 2, 0, 1, ... when three of five frames exist
        padded = self.past_end or len(self.times) < num_frames
        times = np.asarray(self.times)[order]
        return Frames(data=np.stack([self.data[i] for i in order]), start=float(times[0]), times=times, padded=padded)

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8, upright, cropped, resized.

        The whole picture is resized so that the crop has its size, and then cut: swscale converts and resizes in one
        pass, and its bilinear filter widens with the factor, so that shrinking does not alias.
        """
        turns = round(frame.rotation / 90) % 4  # quarter turns counterclockwise
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)  # upright
        top, left, crop_height, crop_width = self.window.crop or (0.0, 0.0, 1.0, 1.0)
        if self.size is None:  # kept for the next frames: they are stacked
            self.size = (max(1, round(crop_height * height)), max(1, round(crop_width * width)))
        full_height, full_width = round(self.size[0] / crop_height), round(self.size[1] / crop_width)
        stored = (full_width, full_height) if turns % 2 else (full_height, full_width)
        picture = self.reformatter.reformat(
            frame, height=stored[0], width=stored[1], format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
        ).to_ndarray()
        picture = np.rot90(picture, turns)
        row = min(round(top * full_height), full_height - self.size[0])
        column = min(round(left * full_width), full_width - self.size[1])
        return picture[row : row + self.size[0], column : column + self.size[1]]


def _read_audio(reader: Reader, start: float, window: AudioWindow) -> Samples:
    """Place decoded sound by its timestamps on a grid of the source's rate, then resample the grid."""
    silence = np.zeros(window.num_samples, dtype=np.float32)
    if reader.audio is None:
        return Samples(silence, start, padded=True)
    grid = None
    for seconds, frame in reader.frames_from("audio", start - PREROLL_SECONDS):
        if seconds > start + window.duration + LEAD_SECONDS:
            break
        if grid is None:
            grid = _Grid(start - LEAD_SECONDS, window.duration + 2 * LEAD_SECONDS, frame.sample_rate)
        if frame.sample_rate == grid.sample_rate:
            grid.place(seconds, frame)
    if grid is None:
        return Samples(silence, start, padded=True)
    resampled = _resample(grid.values, grid.sample_rate, window.sample_rate)
    skip = round(LEAD_SECONDS * window.sample_rate)
    heard = resampled[skip : skip + window.num_samples]
    silence[: len(heard)] = np.clip(heard, -1, 1)
    lead = round(LEAD_SECONDS * grid.sample_rate)
    missing = np.count_nonzero(~grid.filled[lead : lead + round(window.duration * grid.sample_rate)])
    return Samples(silence, start, padded=missing > 0.002 * grid.sample_rate)  # 2 ms: two ticks of Matroska


class _Grid:
    """Mono sound on a grid of the source's own rate; value i stands at (first + i) / sample_rate seconds."""

    def __init__(self, start: float, duration: float, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.first = round(start * sample_rate)
        self.values = np.zeros(math.ceil(duration * sample_rate) + 1, dtype=np.float32)
        self.filled = np.zeros(len(self.values), dtype=bool)
        self._expected = None  # grid position right after the last frame

    def place(self, seconds: float, frame: av.AudioFrame) -> None:
        position = seconds * self.sample_rate - self.first
        # Timestamps are rounded to ticks (1 ms in Matroska), so a difference of one tick is no gap
        tolerance = 1 + max(float(frame.time_base), 5e-4) * self.sample_rate
        if self._expected is None or abs(position - self._expected) > tolerance:
            self._expected = round(position)
        begin, end = self._expected, self._expected + frame.samples
        self._expected = end
        low, high = max(begin, 0), min(end, len(self.values))
        if low < high:
            self.values[low:high] = to_mono(frame)[low - begin : high - begin]
            self.filled[low:high] = True


def _resample(values: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """(n,) float32 at one rate -> (m,) at another; value 0 stays at the same second."""
    if source_rate == target_rate:
        return values
    frame = av.AudioFrame.from_ndarray(values[None], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = source_rate, Fraction(1, source_rate), 0
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=target_rate)
    parts = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts])


def _packets(container: av.container.InputContainer, stream: av.stream.Stream) -> Iterator[av.Packet]:
    """Packets of one stream and the empty one that ends it; a damaged place is stepped over a few times."""
    for _ in range(3):
        try:
            yield from container.demux(stream)
            return
        except (av.error.FFmpegError, ValueError):
            continue


def _first_decodable(streams: Sequence[av.stream.Stream]) -> av.stream.Stream | None:
    for stream in streams:
        is_cover = av.stream.Disposition.attached_pic in stream.disposition
        if stream.codec_context is not None and not is_cover:
            return stream
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_window(start: float, duration: float, rate: float, name: str) -> None:
    if not math.isfinite(start):
        raise ValueError(f"start={start} must be a finite number of seconds")
    if not (duration > 0 and rate > 0 and round(duration * rate) >= 1):
        raise ValueError(f"duration={duration} seconds at {name}={rate} must hold at least one: raise one of them")
