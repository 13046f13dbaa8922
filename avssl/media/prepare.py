"""One training copy of one clip: small frames that decode fast, mono audio, and the times of the source.

    python -m avssl.media.prepare        (a worker, see workers.py)

A copy is an MP4 with H.264 video and PCM audio, interleaved by the second: 326 clips/s through `read_clip` (8 frames of
112 x 112 and 2 s of audio from random places of four real clips of 10 s, 340 x 256, one core) at 37.4 dB and 0.47 s to
make with preset medium, 322 at 38.8 dB and 0.29 s with the one chosen; the clips as they were give 36. The reader takes
PCM from the offsets in the index (quirks.py).

Video ticks at 90 kHz and audio at its rate, so every frame keeps its time to 6 microseconds. MP4 holds no negative
times: a clip that begins before 0 is shifted as a whole to begin at 0 (`source_shift` of the manifest).
"""

import contextlib
import errno
import heapq
import itertools
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from avssl.files import WriteError, atomic_write
from avssl.media import shards
from avssl.media.audio import mono_frame, resample_stream, without_gaps
from avssl.media.probe import PLAUSIBLE_FPS, Probe, content_key, probe
from avssl.media.reader import TIME_TOLERANCE, WOBBLE_SECONDS, DecodeError, Reader, frame_duration
from avssl.media.upright import Orientation, Orientations
from avssl.workers import serve

T = TypeVar("T")
P = TypeVar("P", bound=Probe)
EXTENSION = ".mp4"
VERSION = 3  # of the copies: another one makes all of them anew
CLOCK = 90_000  # ticks per second of video
MOVIE_CLOCK = 360_000  # ticks of track starts: the least common multiple of CLOCK and 24 kHz
ENCODER = {"preset": "veryfast", "tune": "fastdecode", "crf": "20", "mbtree": "0"}
PACKET_SECONDS = 1.0  # of audio in one packet
RECORD = "avssl.prepare "  # begins the comment of a copy
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no other file can be written either


@dataclass(frozen=True)
class Settings:
    """How copies are made."""

    short_side: int = 128  # pixels of the shorter side of the upright frame, at most; both sides become even
    gop: int = 12  # largest distance of keyframes in frames
    fps: float | None = None  # frames per second; None = every frame keeps its own time
    sample_rate: int = 24000  # Hz

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise ValueError(f"short_side={self.short_side} must be at least 16 pixels")
        if self.gop < 1:
            raise ValueError(f"gop={self.gop} must be at least 1 frame (1 = only keyframes)")
        if self.fps is not None and not 0 < self.fps <= PLAUSIBLE_FPS:
            raise ValueError(f"fps={self.fps:g} must be above 0 and at most {PLAUSIBLE_FPS}")
        if not 4000 <= self.sample_rate <= 192_000:
            raise ValueError(f"sample_rate={self.sample_rate} must be 4000 to 192000 Hz")


@dataclass(frozen=True)
class Record:
    """What a copy was made of; stored inside the copy."""

    source_key: str  # content key of the source
    settings: dict[str, Any]  # `Settings` as a dict, and the version
    shift: float = 0.0  # seconds added to all times, because the source begins before 0
    reason: str = ""  # why the source has no audio; empty if it has
    holes: Sequence[Sequence[float]] | None = None  # of the source, see `Probe`: in the copy silence fills them


@dataclass(frozen=True)
class Prepared:
    """Result for one clip."""

    # written now, kept from before, failed (see facts.status, facts.reason), or stopped: failed for a reason that holds
    # for all clips, such as a full disk
    state: Literal["written", "kept", "failed", "stopped"]
    source_key: str  # see `Record`
    shift: float
    facts: Probe  # of the copy; of a failed clip, only status and reason


def prepare_clip(source: str | Path, target: str | Path, settings: Settings) -> Prepared:
    """Make the copy of one clip unless it exists; never raises for a bad file, and never leaves half a copy.

    At `target` a copy of another source or with other settings is replaced, any other file is not.
    """
    target = Path(target)
    record = read_record(target)
    if record is not None and _is_of(record, source, settings):
        return Prepared("kept", record.source_key, record.shift, _facts(target, record))
    found = probe(source)
    if record is None and target.exists():
        return _failed(found, f"{target.name} exists in the target folder and is no copy made by this tool")
    if found.status not in ("ok", "no_video"):
        return _failed(found, found.reason)
    if found.status == "no_video" and found.audio_start is None:
        return _failed(found, "neither video nor audio can be read")
    starts = [start for start in (found.video_start, found.audio_start) if start is not None]
    shift = max(0.0, -min(starts))
    record = Record(found.content_key, _versioned(settings), shift, found.reason, found.holes)
    try:
        with atomic_write(target) as unfinished:
            _write(source, unfinished, settings, record)
            facts = _facts(unfinished, record)
            _check_copy(source, found, facts, shift)
    except DecodeError as error:
        return _failed(found, error.reason)
    except (av.error.FFmpegError, WriteError) as error:
        cause = error.__cause__ or error
        if getattr(cause, "errno", None) in FULL:
            return replace(_failed(found, str(WriteError(target, OSError(cause.errno, "")))), state="stopped")
        return _failed(found, f"the copy cannot be written ({getattr(cause, 'strerror', None) or cause})")
    except OverflowError:
        return _failed(found, "its times cannot be stored")
    except MemoryError:
        return _failed(found, "it needs more memory than a worker may take")
    return Prepared("written", found.content_key, shift, facts)


def read_record(target: str | Path) -> Record | None:
    """What a copy was made of; None if the file does not exist or is no copy."""
    try:
        with Reader(target) as reader:
            comment = reader.container.metadata.get("comment", "")
        return Record(**json.loads(comment.removeprefix(RECORD))) if comment.startswith(RECORD) else None
    except (DecodeError, ValueError, TypeError):
        return None


def _versioned(settings: Settings) -> dict[str, Any]:
    return {"version": VERSION} | asdict(settings)


def _is_of(record: Record, source: str | Path, settings: Settings) -> bool:
    """Whether a copy was made of this file in its present state, with these settings."""
    same_settings = record.settings == _versioned(settings)
    return same_settings and shards.is_file(source) and record.source_key == content_key(source)


def _facts(target: Path, record: Record) -> Probe:
    return with_source(probe(target), record)


def with_source(found: P, record: Record) -> P:
    """Facts of a copy; holes, and the reason of missing audio, are those of the source."""
    holes = record.holes and [[second + record.shift for second in hole] for hole in record.holes]
    found = replace(found, holes=holes)
    return found if found.has_audio or not record.reason else replace(found, reason=record.reason)


def _check_copy(source: str | Path, found: Probe, facts: Probe, shift: float) -> None:
    """Raises DecodeError: the copy lacks a track or begins at another time."""
    if facts.status != found.status:
        raise DecodeError(source, f"its copy cannot be read back ({facts.reason})")
    if facts.status == "no_video" and facts.audio_start is None:
        raise DecodeError(source, "its audio is too short to be resampled")
    for name, tolerance in (("video_start", TIME_TOLERANCE), ("audio_start", WOBBLE_SECONDS)):
        before, after = getattr(found, name), getattr(facts, name)
        if before is not None and after is not None and abs(before + shift - after) > tolerance:
            raise DecodeError(source, f"its copy has {name} {after:.4f} s instead of {before + shift:.4f} s")


def _failed(found: Probe, reason: str) -> Prepared:
    status = found.status if found.status not in ("ok", "no_video") else "unreadable"
    return Prepared("failed", found.content_key, 0.0, Probe(status=status, reason=reason))


def peek(items: Iterable[T]) -> tuple[T | None, Iterator[T]]:
    """The first item or None, and an iterator over all items."""
    items = iter(items)
    first = list(itertools.islice(items, 1))
    return (first[0] if first else None), itertools.chain(first, items)


def _write(source: str | Path, target: Path, settings: Settings, record: Record) -> None:
    """Stream video and audio from two openings of the source into one file, in the order of their times."""
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Reader(source))
        audio = stack.enter_context(Reader(source))
        clocks = {"movie_timescale": str(MOVIE_CLOCK), "video_track_timescale": str(CLOCK)}
        container = stack.enter_context(av.open(str(target), "w", format="mp4", options=clocks))
        container.flags |= av.container.Flags.bitexact.value  # the same bytes each time
        container.metadata["comment"] = RECORD + json.dumps(asdict(record))
        tracks = []
        if video.video is not None:
            tracks.append(_video_packets(container, video, settings, record.shift))
        if audio.audio is not None:
            tracks.append(_audio_packets(container, audio, settings, record.shift))
        # each adds its stream before its first packet, and merging fetches the first of all before it yields any
        for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def _video_packets(
    container: av.container.OutputContainer, reader: Reader, settings: Settings, shift: float
) -> Iterator[av.Packet]:
    first, frames = peek(reader.frames_from("video", -math.inf))
    if first is None:
        return
    timed = ((seconds, frame_duration(frame, reader.video), frame) for seconds, frame in frames)
    timed = timed if settings.fps is None else _at_rate(timed, settings.fps)
    rate = settings.fps or reader.video.average_rate
    resize = Resizer(first[1], settings.short_side)
    yield from encode_video(container, timed, resize, rate=rate, gop=settings.gop, options=ENCODER, shift=shift)


def encode_video(
    container: av.container.OutputContainer,
    timed: Iterable[tuple[float, float, av.VideoFrame]],
    resize: "Resizer",
    *,
    rate: Fraction | float | None,
    gop: int,
    options: dict[str, str],
    shift: float,
) -> Iterator[av.Packet]:
    """H.264 packets of resized frames with their own times; the stream is added to the container before the first.

    Args:
        timed: (second, duration in seconds, frame), rising.
        rate: frames per second, a hint for the encoder; None = not known.
        gop: largest distance of keyframes in frames.
        options: of x264.
        shift: seconds added to all times, which must not be below 0 then.
    """
    first, timed = peek(timed)
    if first is None:
        return
    colorspace = resize(first[2]).colorspace
    rate = Fraction(rate).limit_denominator(1001) if rate and rate <= PLAUSIBLE_FPS else Fraction(25)
    stream = container.add_stream("libx264", rate=max(rate, Fraction(1)), options=options)
    context = stream.codec_context
    context.height, context.width = resize.upright
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, CLOCK)
    context.gop_size, context.max_b_frames = gop, 0
    context.thread_count = 1
    context.color_range, context.colorspace = ColorRange.MPEG, colorspace

    durations = deque()  # of frames inside the encoder, which drops them
    previous = -1
    for seconds, duration, frame in timed:
        tick = round((seconds + shift) * CLOCK)
        if tick <= previous:  # closer than 11 microseconds to the one before
            continue
        previous = tick
        small = resize(frame)
        small.pts, small.time_base = tick, context.time_base
        durations.append(max(1, round(duration * CLOCK)))
        for packet in stream.encode(small):
            packet.duration = durations.popleft()
            yield packet
    for packet in stream.encode(None):
        packet.duration = durations.popleft()
        yield packet


def _at_rate(
    timed: Iterable[tuple[float, float, av.VideoFrame]], fps: float
) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Frames at start + i / fps; as in decode.py the frame at t is the last one with pts <= t + 1e-4."""
    shown, number, start, end = None, 0, 0.0, 0.0
    for seconds, duration, frame in timed:
        start = seconds if shown is None else start
        while shown is not None and start + number / fps + TIME_TOLERANCE < seconds:
            yield start + number / fps, 1 / fps, shown
            number += 1
        shown, end = frame, seconds + duration
    while number == 0 or start + number / fps + TIME_TOLERANCE < end:
        yield start + number / fps, 1 / fps, shown
        number += 1


class Resizer:
    """Frames of one clip -> small upright yuv420p of one size, by the first frame.

    Attributes:
        upright: (height, width) of the output, both even.
        colorspace: of RGB input; None = as in the source.
    """

    def __init__(self, first: av.VideoFrame, short_side: float, *, pixel_aspect: float = 1.0) -> None:
        """Pixels of the source are `pixel_aspect` times as wide as high; output pixels are square."""
        size = (first.width * pixel_aspect, first.height)
        scale = min(1.0, short_side / min(size))
        if scale < 1:
            self.width, self.height = (max(2, round(side * scale / 2) * 2) for side in size)
        else:  # at most a row and a column are lost
            self.width, self.height = (max(2, int(side) // 2 * 2) for side in size)
        self.orientations = Orientations()
        self.upright = self.orientations.of(first).size(self.width, self.height)[::-1]
        self.colorspace = Colorspace.SMPTE170M if first.format.is_rgb else None
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        turned = self.orientations.of(frame)
        width, height = turned.size(*self.upright[::-1])
        small = self.reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            dst_colorspace=self.colorspace,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        )
        if turned != Orientation(False, 0):
            small = _turn(small, turned)
        small.pict_type = 0  # the encoder chooses, not the source
        return small


def _turn(frame: av.VideoFrame, turned: Orientation) -> av.VideoFrame:
    """A yuv420p frame upright."""
    height, width = frame.height, frame.width
    values = frame.to_ndarray().reshape(-1)  # the three planes one after another
    sizes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    ends = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
    planes = [turned.upright(part.reshape(size)) for part, size in zip(np.split(values, ends), sizes, strict=True)]
    stacked = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, planes[0].shape[1])
    turned = av.VideoFrame.from_ndarray(np.ascontiguousarray(stacked), format="yuv420p")
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned


def _audio_packets(
    container: av.container.OutputContainer, reader: Reader, settings: Settings, shift: float
) -> Iterator[av.Packet]:
    first, frames = peek(reader.frames_from("audio", -math.inf))
    if first is None:
        return
    rate = settings.sample_rate
    stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
    pieces = resample_stream(frames, rate, shift)
    for position, samples in _in_packets(without_gaps(pieces, rate, reader.path), round(PACKET_SECONDS * rate)):
        yield from stream.encode(mono_frame(samples, rate, position))
    yield from stream.encode(None)


def _in_packets(pieces: Iterable[tuple[int, np.ndarray]], size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Contiguous pieces -> packets of `size` samples, the last one shorter."""
    begin, pending, length = None, [], 0
    for position, samples in pieces:
        begin = position if begin is None else begin
        pending.append(samples)
        length += len(samples)
        while length >= size:
            joined = np.concatenate(pending)
            yield begin, joined[:size].copy()
            begin, pending, length = begin + size, [joined[size:]], length - size
    if length:
        yield begin, np.concatenate(pending)


def _run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Make a copy or, with dry_run, only find out whether it exists."""
    source, target, settings = job["source"], job["target"], Settings(**job["settings"])
    if not job["dry_run"]:
        return asdict(prepare_clip(source, target, settings))
    try:
        with Reader(source) as reader:
            seconds = reader.stated_seconds
    except DecodeError:
        return {"done": False, "seconds": 0.0}
    known = read_record(target)
    return {"done": known is not None and _is_of(known, source, settings), "seconds": seconds}


if __name__ == "__main__":
    serve(_run_job)
