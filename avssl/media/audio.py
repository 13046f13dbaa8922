"""Decoded audio: mixing to mono, placing by timestamps, resampling.

Letters: n, m samples.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avssl.media.reader import DecodeError

BLOCK_FRAMES, BLOCK_SECONDS = 32, (1.0, 10.0)  # audio that is placed together: at least, at most
JUMP_SECONDS = 5e-4  # audio further than this from where it should continue is placed anew
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


class Run:
    """Frames without a gap. They begin at the median of their timestamps: a single one is rounded.

    Args:
        scale: samples per unit of the positions: 1, or the sample rate if they are seconds.
    """

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.frames: list[av.AudioFrame] = []
        self.length = 0  # samples
        self._anchors: list[float] = []  # start of the run by each frame's timestamp

    def add(self, position: float, frame: av.AudioFrame) -> None:
        self._anchors.append(position - self.length / self.scale)
        self.frames.append(frame)
        self.length += frame.samples

    def gap(self, position: float) -> float:
        """Distance of a frame at this position from where it would continue the run, by the first frame."""
        return abs(position - self.length / self.scale - self._anchors[0])

    @property
    def begin(self) -> float:
        return float(np.median(self._anchors))


class Grid:
    """Mono audio on a grid of the source's own rate.

    Attributes:
        values: (n,) float32, value i at (first + i) / sample_rate seconds; zero where nothing was placed.
        filled: (n,) bool, where something was placed.
    """

    def __init__(self, start: float, duration: float, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.first = round(start * sample_rate)
        self.values = np.zeros(math.ceil(duration * sample_rate) + 1, dtype=np.float32)
        self.filled = np.zeros(len(self.values), dtype=bool)
        self._run = Run(scale=1)
        self._format: tuple[str, int] | None = None

    def add(self, seconds: float, frame: av.AudioFrame) -> None:
        position = seconds * self.sample_rate - self.first
        format = (frame.format.name, frame.layout.nb_channels)
        if self._run.frames and (format != self._format or self._run.gap(position) > self._tolerance):
            self.place()
        if not self._run.frames:
            # one tick of MP3 in AVI is a packet
            ticks = max(float(frame.time_base), MIN_TICK) * self.sample_rate
            self._format, self._tolerance = format, 1 + min(ticks, frame.samples / 2)
        self._run.add(position, frame)

    def place(self) -> None:
        """Write what was added since the last gap."""
        run, self._run = self._run, Run(scale=1)
        if not run.frames:
            return
        ends = round(run.begin) + np.cumsum([frame.samples for frame in run.frames])
        inside = [i for i, end in enumerate(ends) if end > 0 and end - run.frames[i].samples < len(self.values)]
        if inside:
            begin = int(ends[inside[0]]) - run.frames[inside[0]].samples
            low, high = max(begin, 0), min(int(ends[inside[-1]]), len(self.values))
            self.values[low:high] = to_mono(*(run.frames[i] for i in inside))[low - begin : high - begin]
            self.filled[low:high] = True


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

    Consecutive runs go through one resampler; one that is off by more than JUMP_SECONDS, after a gap or by clock drift,
    begins anew at its own time.

    Args:
        shift: seconds added to all times, which must not be below 0 then.
    """
    resampler, begin, end, position, source_rate, fed = None, 0.0, 0.0, 0, 0, 0
    for run in _runs(frames):
        if resampler is None or run.scale != source_rate or abs(run.begin - end) > JUMP_SECONDS:
            if resampler is not None:
                yield from _pieces(resampler.resample(None), position)
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
            begin, source_rate, fed = run.begin, run.scale, 0
            position = max(0, round((begin + shift) * rate))  # the median may lie a little before the first frame
        values = np.concatenate([to_mono(frame) for frame in run.frames])  # formats may differ
        for piece in _pieces(resampler.resample(mono_frame(values, source_rate, fed)), position):
            yield piece
            position += len(piece[1])
        fed += len(values)
        end = begin + fed / source_rate
    if resampler is not None:
        yield from _pieces(resampler.resample(None), position)


def _runs(frames: Iterable[tuple[float, av.AudioFrame]]) -> Iterator[Run]:
    """Join frames to a second or more, positions in seconds."""
    run = None
    at_least, at_most = BLOCK_SECONDS
    for seconds, frame in frames:
        if run is not None:
            tolerance = 1 / run.scale + max(float(frame.time_base), MIN_TICK)
            is_apart = frame.sample_rate != run.scale or run.gap(seconds) > tolerance
            is_long = len(run.frames) >= BLOCK_FRAMES and run.length > at_least * run.scale
            if is_apart or is_long or run.length > at_most * run.scale:
                yield run
                run = None
        run = run or Run(frame.sample_rate)
        run.add(seconds, frame)
    if run is not None:
        yield run


def _pieces(frames: list[av.AudioFrame], position: int) -> Iterator[tuple[int, np.ndarray]]:
    for frame in frames:
        samples = np.clip(np.rint(frame.to_ndarray()[0] * 32768), -32768, 32767).astype(np.int16)
        yield position, samples
        position += len(samples)


def without_gaps(pieces: Iterable[tuple[int, np.ndarray]], rate: int, path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Contiguous pieces: gaps become zeros, and where pieces overlap, the earlier one counts.

    Raises:
        DecodeError: a gap is longer than MAX_GAP_SECONDS.
    """
    end = None
    for position, samples in pieces:
        end = position if end is None else end
        if position - end > MAX_GAP_SECONDS * rate:
            raise DecodeError(path, f"its audio has a gap of {(position - end) / rate:.0f} seconds")
        while position > end:
            zeros = np.zeros(min(position - end, rate), dtype=np.int16)
            yield end, zeros
            end += len(zeros)
        fresh = samples[end - position :]
        yield end, fresh
        end += len(fresh)
