"""Reading windows of frames and audio out of clips: numpy out, so that worker processes stay light (no torch here).

Time is the container's clock: pts x time_base, never shifted. The frame at second t is the last one with
pts <= t + 1e-4; before the first frame, the first. Audio is placed by its timestamps on the same clock.

Letters: T frames, H x W pixels, n samples.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from avssl.media.audio import on_grid, resample, until
from avssl.media.decoders import Decoder, open_source
from avssl.media.reader import (
    LIMITS,
    MERGE_SECONDS,
    TIME_TOLERANCE,
    DecodeError,
    LazyFrame,
    Limits,
    Source,
    error_text,
    frame_duration,
)
from avssl.media.upright import Orientations
from avssl.windows import AudioWindow, VideoWindow

PREROLL_SECONDS = 0.25  # AAC, Opus and MP3 need the packets before a sample to decode it rightly
MAX_SHRINK = 1.5  # up to this factor bilinear interpolation does not alias visibly
MEAN_OF_COLORS = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
WHOLE = (0.0, 0.0, 1.0, 1.0)  # no crop
LEAD_SECONDS = 0.02  # audio resampled around a window, so that its edges are not the resampler's


@dataclass(frozen=True)
class Frames:
    """Frames of one window: data (T, H, W, 3) uint8 RGB, upright; start, times (T,): true second of the first, of each;
    padded: the clip ended inside the window and its frames are repeated from the first on."""

    data: np.ndarray
    start: float
    times: np.ndarray
    padded: bool


@dataclass(frozen=True)
class Samples:
    """Audio of one window: data (n,) float32 mono in [-1, 1]; start in seconds; padded: zeros where none exists."""

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
    decoder: Decoder = "pyav",
) -> Frames:
    """Read one window of frames; see `VideoWindow` for the arguments and `read_clip` for the rules."""
    frames, _ = read_clip(path, video=[VideoWindow(start, duration, fps, crop, size)], decoder=decoder)
    return frames[0]


def read_samples(
    path: str | Path, *, start: float, duration: float, sample_rate: int, decoder: Decoder = "pyav"
) -> Samples:
    """Read one window of audio; see `AudioWindow` for the arguments and `read_clip` for the rules."""
    _, samples = read_clip(path, audio=[AudioWindow(start, duration, sample_rate)], decoder=decoder)
    return samples[0]


def read_clip(
    path: str | Path,
    *,
    video: Sequence[VideoWindow] = (),
    audio: Sequence[AudioWindow] = (),
    decoder: Decoder = "pyav",
    opener: Callable[[str | Path], Source] | None = None,
    limits: Limits = LIMITS,
) -> tuple[list[Frames], list[Samples]]:
    """Read any number of windows out of one opened file, results in the order asked for.

    A window of frames that runs past the end of the last frame repeats its own frames from the first onwards; one that
    starts past the end repeats the last frame. Audio is mixed to mono (`to_mono`), resampled, and zero wherever the
    file has none: before its first sample, after its last, in gaps and damaged packets, or everywhere without a
    decodable track. `padded` of a result says so.

    Args:
        path: a local file; nothing is fetched over a network.
        decoder: the library that decodes frames; audio is always decoded by PyAV.
        opener: opens the file instead, such as `ClipCache.open`.

    Raises:
        DecodeError: the file cannot be opened, has no decodable frames for a video window, exceeds `limits`, or
            `decoder` would give wrong frames of it.
        DecoderMissingError: `decoder` is not installed.
        ValueError: `follows` names no video window.
    """
    for window in audio:
        if window.follows is not None and not 0 <= window.follows < len(video):
            raise ValueError(f"follows={window.follows} must be the index of one of the {len(video)} video windows")
    with opener(path) if opener else open_source(path, decoder=decoder, limits=limits) as reader:
        try:
            frames = _read_video(reader, video, limits)
            samples = []
            for window in audio:
                start = window.start
                if window.follows is not None:
                    start += frames[window.follows].start - video[window.follows].start
                samples.append(_read_audio(reader, start, window))
        except av.error.FFmpegError as error:  # such as a pixel format that cannot be converted
            raise DecodeError(path, f"cannot be decoded ({error_text(error)})") from error
    return frames, samples


def _read_video(reader: Source, windows: Sequence[VideoWindow], limits: Limits) -> list[Frames]:
    if not windows:
        return []
    if reader.video is None:
        raise DecodeError(reader.path, "no video track that can be decoded")
    turned = Orientations()
    collectors = [_Collector(reader.path, window, limits.max_bytes, turned) for window in windows]
    targets = sorted(
        (window.start + i / window.fps, index) for index, window in enumerate(windows) for i in range(window.num_frames)
    )
    # split where the next wanted frame is far enough to seek
    far = [i for i in range(1, len(targets)) if targets[i][0] - targets[i - 1][0] > MERGE_SECONDS]
    for begin, end in itertools.pairwise([0, *far, len(targets)]):
        _pick_frames(reader, targets[begin:end], collectors)
    return [each.finish() for each in collectors]


def _pick_frames(reader: Source, targets: list[tuple[float, int]], collectors: list["_Collector"]) -> None:
    """Decode once over the sorted targets (second, index of the window)."""
    previous, position = None, 0  # (seconds, frame) before the present one; next target
    for seconds, frame in reader.frames_from("video", targets[0][0], [target for target, _ in targets]):
        while position < len(targets) and targets[position][0] + TIME_TOLERANCE < seconds:
            collectors[targets[position][1]].take(*(previous or (seconds, frame)))
            position += 1
        if position == len(targets):
            return
        previous = (seconds, frame)
    if previous is None:
        raise DecodeError(reader.path, "no frame of the video track can be decoded")
    end = previous[0] + frame_duration(previous[1], reader.video)
    for target, index in targets[position:]:
        past_end = target + TIME_TOLERANCE >= end
        if not past_end or not collectors[index].times:
            collectors[index].take(*previous, past_end=past_end)


class _Collector:
    """Collects the frames of one window, converting each wanted frame once."""

    def __init__(self, path: Path, window: VideoWindow, max_bytes: int, turned: Orientations) -> None:
        self.path, self.turned = path, turned
        self.window = window
        self.max_bytes = max_bytes
        self.reformatter, self.narrower = VideoReformatter(), VideoReformatter()
        self.data: np.ndarray | None = None  # (T, H, W, 3), made when the first image tells its size
        self.times: list[float] = []
        self.maps: tuple | None = None  # shape of a frame, and its `_crop_maps`
        self.past_end = False

    def take(self, seconds: float, frame: av.VideoFrame | LazyFrame, past_end: bool = False) -> None:
        self.past_end |= past_end
        number = len(self.times)
        if number and self.times[-1] == seconds:  # several targets fall on one frame
            self.data[number] = self.data[number - 1]
        else:
            self._convert(frame, number)
        self.times.append(seconds)

    def finish(self) -> Frames:
        num_frames, num_taken = self.window.num_frames, len(self.times)
        order = np.arange(num_frames) % num_taken  # 0, 1, 2, 0, 1, ... when three of five frames exist
        data = self.data if num_taken == num_frames else self.data[order]
        times = np.asarray(self.times)[order]
        return Frames(data, start=float(times[0]), times=times, padded=self.past_end or num_taken < num_frames)

    def _convert(self, taken: av.VideoFrame | LazyFrame, number: int) -> None:
        """Write frame `number`: upright, cropped, resized.

        swscale converts to RGB and, where the frame shrinks a lot, resizes it in the same pass with a filter that
        widens with the factor. The crop is then cut out bilinearly at its exact position: from 100 pixels to 80 this
        is within 0.9 gray levels of Pillow's filter, whole pixels of a resized image within 4.
        """
        frame = taken.decode() if isinstance(taken, LazyFrame) else taken
        turned = taken.orientation if isinstance(taken, LazyFrame) else self.turned.of(taken)
        width, height = turned.size(frame.width, frame.height)  # upright
        if self.data is None:
            self._allocate(height, width)
        size, crop = self.data.shape[1:3], self.window.crop or WHOLE
        height, width = (
            side if part * side <= MAX_SHRINK * num else max(1, round(num / part))
            for side, part, num in zip((height, width), crop[2:], size, strict=True)
        )
        stored = turned.size(width, height)
        if isinstance(taken, LazyFrame) and taken.narrow and stored != (frame.width, frame.height):
            # Another library made RGB of it without smoothing chroma, which resizing from the stored pixels does.
            # Converting back to that format first halves the difference.
            frame = self.narrower.reformat(frame, format=taken.narrow, interpolation=MEAN_OF_COLORS, threads=1)
        bilinear = Interpolation.BILINEAR
        image = self.reformatter.reformat(
            frame, width=stored[0], height=stored[1], format="rgb24", interpolation=bilinear, threads=1
        ).to_ndarray()
        image = turned.upright(image)
        if self.window.crop is None and (height, width) == size:
            self.data[number] = image
            return
        if self.maps is None or self.maps[0] != (height, width):  # frames may change their size
            self.maps = ((height, width), *_crop_maps(height, width, crop, size))
        out = self.data[number]
        cv2.remap(image, *self.maps[1:], cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REPLICATE)

    def _allocate(self, height: int, width: int) -> None:
        """Allocate all frames once the size of the first, upright, is known."""
        _, _, crop_height, crop_width = self.window.crop or WHOLE
        size = self.window.size or (max(1, round(crop_height * height)), max(1, round(crop_width * width)))
        if 3 * self.window.num_frames * math.prod(size) > self.max_bytes:
            wanted = f"{self.window.num_frames} frames of {size[1]}x{size[0]} pixels"
            raise DecodeError(
                self.path, f"{wanted} are more than max_bytes={self.max_bytes}: ask for fewer or smaller ones"
            )
        self.data = np.empty((self.window.num_frames, *size, 3), dtype=np.uint8)


def _crop_maps(
    height: int, width: int, crop: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a crop lies in a frame of this size, as OpenCV's fixed-point maps."""
    # the center of output pixel x is at left + (x + 0.5) / num * part; that of pixel 0 of the frame at 0.5
    rows, columns = (
        (start + (np.arange(num) + 0.5) / num * part) * side - 0.5
        for side, start, part, num in zip((height, width), crop[:2], crop[2:], size, strict=True)
    )
    return cv2.convertMaps(*np.meshgrid(columns.astype(np.float32), rows.astype(np.float32)), cv2.CV_16SC2)


def _read_audio(reader: Source, start: float, window: AudioWindow) -> Samples:
    """Place decoded audio by its timestamps on a grid of the source's rate, then resample the grid."""
    data = np.zeros(window.num_samples, dtype=np.float32)
    if reader.audio is None:
        return Samples(data, start, padded=True)
    frames = reader.frames_from("audio", start - PREROLL_SECONDS)
    frames = list(until(frames, start + window.duration + LEAD_SECONDS))
    if not frames:
        return Samples(data, start, padded=True)
    missing, lead = window.duration, round(LEAD_SECONDS * window.sample_rate)
    for rate in {frame.sample_rate for _, frame in frames}:  # one, unless files of several rates were joined
        values, filled = on_grid(frames, start - LEAD_SECONDS, window.duration + 2 * LEAD_SECONDS, rate)
        output = resample(values, rate, window.sample_rate)[lead : lead + window.num_samples]
        data[: len(output)] += output
        begin = round(LEAD_SECONDS * rate)
        missing -= np.count_nonzero(filled[begin : begin + round(window.duration * rate)]) / rate
    np.clip(data, -1, 1, out=data)
    return Samples(data, start, padded=bool(missing > 0.002))  # 2 ms: two ticks of Matroska
