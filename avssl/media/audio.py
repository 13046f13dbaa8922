"""Decoded audio: mixing to mono, placing by timestamps, resampling.

Letters: n, m samples.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avssl.media.reader import WOBBLE_SECONDS, DecodeError

BLOCK_FRAMES, BLOCK_SECONDS = 32, (1.0, 10.0)  # audio that is placed together: at least, at most
PAST_FRAMES, LOOK_SECONDS = 64, 1.0  # before and behind a step of the timestamps, to tell a gap from wobble
MIN_TICK = 5e-4  # seconds; timestamps are rounded to ticks (1 ms in Matroska), so a difference of one tick is no gap
MAX_GAP_SECONDS = 600.0  # filled with zeros
CANCELED = 0.2  # of the power of mixed independent channels: below, their correlation is under -0.8


def to_mono(*frames: av.AudioFrame) -> np.ndarray:
    """Consecutive decoded frames of one format -> (n,) float32, full scale = 1: the plain mean of the channels, or one
    of them where they cancel each other (stereo of opposite phase).
    """
    values = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)  # (channels, n), or (1, n * channels)
    num_channels = frames[0].layout.nb_channels
    if not frames[0].format.is_planar:
        values = values.reshape(-1, num_channels).T
    kind, itemsize = values.dtype.kind, values.dtype.itemsize
    if kind == "u":  # 8 bits around 128
        values = values - np.int16(128)
    scale = np.float32({"i": 2.0 ** (1 - 8 * itemsize), "u": 1 / 128}.get(kind, 1.0))
    mono = values[0] * scale if num_channels == 1 else (values.mean(axis=0, dtype=np.float64) * scale)  # (n,)
    if num_channels > 1:
        power = np.square(values, dtype=np.float64).mean(axis=1) * float(scale) ** 2  # (channels,)
        if np.square(mono).mean() * num_channels**2 < CANCELED * power.sum():
            mono = values[np.argmax(power > power.max() / 2)] * scale  # the first of the loud ones: the same everywhere
    mono = mono.astype(np.float32, copy=False)
    if kind == "f":
        return np.nan_to_num(mono, copy=False, posinf=1.0, neginf=-1.0)  # only damaged audio has such values
    return mono


@dataclass
class Run:
    """Contiguous frames of one format.

    Attributes:
        anchors: when the first sample of all audio was, by each frame's timestamp and if there were no gaps.
        elapsed: seconds of audio before this run.
        begin: second of its first sample.
        continues: whether that is where the run before it ends.
    """

    elapsed: float
    frames: list[av.AudioFrame] = field(default_factory=list)
    anchors: list[float] = field(default_factory=list)
    begin: float = 0.0
    continues: bool = False

    @property
    def rate(self) -> int:
        return self.frames[0].sample_rate

    @property
    def seconds(self) -> float:
        return sum(frame.samples for frame in self.frames) / self.rate

    def place(self, before: "Run | None") -> None:
        """Begin where the run `before` it ends, unless the timestamps have gone WOBBLE_SECONDS away from it."""
        anchors = np.array(self.anchors)
        middle = np.sort(anchors)[len(anchors) // 4 : len(anchors) - len(anchors) // 4]
        if np.ptp(anchors) <= float(self.frames[0].time_base):  # only rounded: the same wherever reading began
            middle = np.median(anchors)
        self.begin = float(middle.mean()) + self.elapsed
        if before is not None:
            end = before.begin + before.seconds
            self.continues = abs(self.begin - end) <= WOBBLE_SECONDS
            self.begin = end if self.continues else self.begin


def runs(frames: Iterable[tuple[float, av.AudioFrame]]) -> Iterator[Run]:
    """Decoded frames with their seconds -> runs of up to BLOCK_SECONDS, placed by the timestamps of all their frames.

    A single timestamp is rounded, and those of recorders wobble by tens of milliseconds around the line of contiguous
    audio. Only a step that stays is a gap; a clock that drifts is followed in steps of WOBBLE_SECONDS.
    """
    source = iter(frames)
    ahead: deque[tuple[float, av.AudioFrame]] = deque()  # (anchor, frame)
    past: deque[float] = deque(maxlen=PAST_FRAMES)  # anchors since the last gap
    run, before, fed, done = None, None, 0.0, 0.0  # seconds of audio read, and of audio put into runs
    while True:
        while fed - done < LOOK_SECONDS and (read := next(source, None)) is not None:
            ahead.append((read[0] - fed, read[1]))
            fed += read[1].samples / read[1].sample_rate
        if not ahead:
            break
        frame = ahead[0][1]
        if run is not None:
            is_gap = _is_gap(past, [anchor for anchor, _ in ahead], _tolerance(frame))
            is_long = len(run.frames) >= BLOCK_FRAMES and done - run.elapsed > BLOCK_SECONDS[0]
            if is_gap or is_long or done - run.elapsed > BLOCK_SECONDS[1] or _format(frame) != _format(run.frames[0]):
                run.place(before)
                yield run
                run, before = None, None if is_gap else run
                if is_gap:
                    past.clear()
        run = run or Run(done)
        anchor, frame = ahead.popleft()
        run.frames.append(frame)
        run.anchors.append(anchor)
        past.append(anchor)
        done += frame.samples / frame.sample_rate
    if run is not None:
        run.place(before)
        yield run


def _format(frame: av.AudioFrame) -> tuple[str, int, int]:
    return frame.format.name, frame.layout.nb_channels, frame.sample_rate


def _tolerance(frame: av.AudioFrame) -> float:
    """Seconds by which timestamps are off through rounding; one tick of MP3 in AVI is a packet."""
    return 1 / frame.sample_rate + min(max(float(frame.time_base), MIN_TICK), frame.samples / frame.sample_rate / 2)


def _is_gap(past: Sequence[float], ahead: Sequence[float], tolerance: float) -> bool:
    """Whether the anchors step to another line and stay there; what wobbles comes back."""
    step = ahead[0] - past[-1]
    if abs(step) <= tolerance:
        return False
    values = _without_outliers(np.array([*past, *ahead])) * np.sign(step)
    apart = values[len(past) :].min() - values[: len(past)].max()
    return bool(apart > max(tolerance, min(_largest_fall(values), WOBBLE_SECONDS)))


def _without_outliers(values: np.ndarray) -> np.ndarray:
    """A value that is further than WOBBLE_SECONDS from the median of itself and its neighbors does not wobble, it is
    damaged: that median in its place.
    """
    if len(values) < 3:
        return values
    medians = np.median([values[:-2], values[1:-1], values[2:]], axis=0)
    is_damaged = np.abs(values[1:-1] - medians) > WOBBLE_SECONDS
    return np.concatenate([values[:1], np.where(is_damaged, medians, values[1:-1]), values[-1:]])


def _largest_fall(values: np.ndarray) -> float:
    """Of a later value below an earlier one."""
    return float((np.maximum.accumulate(values) - values).max())


def until(frames: Iterable[tuple[float, av.AudioFrame]], end: float) -> Iterator[tuple[float, av.AudioFrame]]:
    """Frames up to a second; where timestamps wobble, up to it by the line through all of them."""
    anchors, elapsed = [], 0.0
    for seconds, frame in frames:
        if seconds > end and (seconds > end + WOBBLE_SECONDS or not anchors or np.median(anchors) + elapsed > end):
            return
        anchors.append(seconds - elapsed)
        elapsed += frame.samples / frame.sample_rate
        yield seconds, frame


def on_grid(
    frames: Iterable[tuple[float, av.AudioFrame]], start: float, duration: float, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mono audio on a grid of the source's own rate; frames of another rate are left out.

    Returns:
        (n,) float32, value i at start + i / sample_rate seconds, zero where nothing is; (n,) bool: where something is.
    """
    first = round(start * sample_rate)
    values = np.zeros(math.ceil(duration * sample_rate) + 1, dtype=np.float32)
    filled = np.zeros(len(values), dtype=bool)
    last = None  # where the run before ends
    for run in runs(frames):
        if run.rate != sample_rate:
            last = None
            continue
        begin = last if run.continues and last is not None else round(run.begin * sample_rate) - first
        ends = begin + np.cumsum([frame.samples for frame in run.frames])
        last = int(ends[-1])
        inside = [i for i, end in enumerate(ends) if end > 0 and end - run.frames[i].samples < len(values)]
        if inside:
            begin = int(ends[inside[0]]) - run.frames[inside[0]].samples
            low, high = max(begin, 0), min(int(ends[inside[-1]]), len(values))
            values[low:high] = to_mono(*(run.frames[i] for i in inside))[low - begin : high - begin]
            filled[low:high] = True
    return values, filled


def resample(values: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """(n,) float32 at one rate -> (m,) at another; value 0 stays at the same second."""
    if source_rate == target_rate:
        return values
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=target_rate)
    parts = resampler.resample(mono_frame(values, source_rate, 0)) + resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts])


def mono_frame(values: np.ndarray, sample_rate: int, position: int) -> av.AudioFrame:
    """(n,) float32 or int16, the first of them sample number `position`, as FFmpeg takes it."""
    format = "s16" if values.dtype == np.int16 else "fltp"
    frame = av.AudioFrame.from_ndarray(values[None], format=format, layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = sample_rate, Fraction(1, sample_rate), position
    return frame


def resample_stream(
    frames: Iterable[tuple[float, av.AudioFrame]], rate: int, shift: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Decoded frames with their seconds -> pieces of audio at `rate`: (position of the first sample, (n,) int16).

    Contiguous runs go through one resampler; one after a gap begins anew at its own time, which can be below 0.

    Args:
        shift: seconds added to all times.
    """
    resampler, position, rate_before, fed = None, 0, 0, 0
    for run in runs(frames):
        if not run.continues or run.rate != rate_before:
            if resampler is not None:
                yield from _pieces(resampler.resample(None), position)
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
            rate_before, fed, position = run.rate, 0, round((run.begin + shift) * rate)
        values = to_mono(*run.frames)
        for piece in _pieces(resampler.resample(mono_frame(values, run.rate, fed)), position):
            yield piece
            position += len(piece[1])
        fed += len(values)
    if resampler is not None:
        yield from _pieces(resampler.resample(None), position)


def _pieces(frames: list[av.AudioFrame], position: int) -> Iterator[tuple[int, np.ndarray]]:
    for frame in frames:
        samples = np.clip(np.rint(frame.to_ndarray()[0] * 32768), -32768, 32767).astype(np.int16)
        yield position, samples
        position += len(samples)


def without_gaps(pieces: Iterable[tuple[int, np.ndarray]], rate: int, path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Contiguous pieces from 0 on: gaps become zeros, and where pieces overlap, the earlier one counts.

    Raises:
        DecodeError: a gap is longer than MAX_GAP_SECONDS.
    """
    end = None
    for position, samples in pieces:
        end = max(position, 0) if end is None else end
        if position - end > MAX_GAP_SECONDS * rate:
            raise DecodeError(path, f"its audio has a gap of {(position - end) / rate:.0f} seconds")
        while position > end:
            zeros = np.zeros(min(position - end, rate), dtype=np.int16)
            yield end, zeros
            end += len(zeros)
        fresh = samples[end - position :]
        if len(fresh):
            yield end, fresh
        end += len(fresh)
