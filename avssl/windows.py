"""Seconds of a track, and windows of frames and of sound to be read. No torch here: workers stay light."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEAD_SECONDS = 0.2  # by which audio may begin before the video of a file: encoders put up to 0.1 s of padding there


def beginning(video_start: np.ndarray, audio_start: np.ndarray) -> np.ndarray:
    """(...) seconds of the container's clock at which files begin; NaN = no such track. Lists count from there.

    The first frame is the beginning, unless there is audio long before it.
    """
    is_late = np.isnan(video_start) | (video_start - audio_start > LEAD_SECONDS)
    return np.where(is_late, audio_start, video_start)


class Span(NamedTuple):
    """Seconds [start, end] of a track on the container's clock."""

    start: float
    end: float

    def clamp(self, start: float, duration: float) -> float:
        """The start nearest to `start` at which a window of `duration` lies inside; the span's start when it is too
        short.
        """
        return max(self.start, min(start, self.end - duration))


@dataclass(frozen=True)
class VideoWindow:
    """Which frames to read.

    Args:
        start: second of the first frame.
        duration: seconds; round(duration * fps) frames are read, frame i at start + i / fps.
        fps: frames per second that come out, whatever the rate of the file.
        crop: (top, left, height, width) as fractions of the upright frame; None = all of it. Turning and
            mirroring by metadata is applied, the shape of pixels is not.
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
                    f"crop={self.crop} must be (top, left, height, width), fractions of the frame that stay in [0, 1]"
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


def _check_window(start: float, duration: float, rate: float, name: str) -> None:
    if not math.isfinite(start):
        raise ValueError(f"start={start} must be a finite number of seconds")
    if not (duration > 0 and rate > 0 and round(duration * rate) >= 1):
        raise ValueError(f"duration={duration} seconds at {name}={rate} must hold at least one: raise one of them")
