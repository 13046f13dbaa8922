"""Recipes of views: what is read and drawn for one clip in a worker (`plan`), and what is done to a batch on its device
(`apply`, which draws nothing).

Letters: B batch, T frames, H x W pixels, N patches of a frame, P pixels of a patch's side, n samples, S spectrogram
steps, F frequency bins.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from avssl.config import DataConfig
from avssl.transforms import audio, video
from avssl.windows import AudioWindow, Span, VideoWindow

WALK_CROP_AREA, WALK_CROP_ASPECT = (0.8, 0.95), (0.7, 1.3)  # of each frame, which the walk's grid is laid over, and
NUM_MASKS = 2  # of the spectrogram's steps, and of its bands
WALK_PATCH_AREA, WALK_PATCH_ASPECT = (0.7, 0.9), (3 / 4, 4 / 3)  # of what is cut out of each of its cells


@dataclass(frozen=True)
class Clip:
    """What is known of a clip before its file is opened."""

    width: int  # pixels of the upright frame
    height: int
    video: Span | None  # seconds of the frames; None = the clip has none
    audio: Span | None  # likewise
    holes: Sequence[Sequence[float]] = ()  # [begin, end] seconds in which the file has nothing


@dataclass(frozen=True)
class Window:
    """Where in a clip a view lies."""

    start: float  # seconds
    box: tuple[float, float, float, float] | None = None  # top, left, height, width as fractions; None = drawn
    track: int = -1  # number of the track that the box is of
    present: bool = True  # False = the clip lacks what the view shows: nothing is read


@dataclass(frozen=True)
class Plan:
    """What is read for a view, and what was drawn for it.

    Args:
        windows: all of the recipe's modality; what they give is joined along the first axis and takes the `shape`.
        shape: of the array that the dataset hands over: (T, H, W, 3) uint8, or (n,) float32.
        params: {parameter: array}, the same names for every clip of a configuration.
    """

    windows: tuple[VideoWindow, ...] | tuple[AudioWindow, ...]
    shape: tuple[int, ...]
    params: dict[str, np.ndarray]


class Recipe(Protocol):
    """How a view is made. All recipes stand in `avssl.transforms.views.RECIPES`."""

    modality: Literal["video", "audio"]

    def seconds(self, data: DataConfig) -> float:
        """Length of the window that a view needs."""

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        """Decide what is read of one clip, and draw its parameters.

        Args:
            rng: the generator of this clip; None = evaluation, which is always the same.
            data: the configuration, with the changes of the view.
            clip: its size and seconds.
            window: where the view lies; of an absent one nothing is read, its parameters are drawn all the same.
        """

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        """Apply drawn parameters to a batch.

        Args:
            x: (B, *shape) as planned: frames uint8 or sound float32 in [-1, 1]; not changed.
            params: {parameter: (B, ...)}, on the CPU, where they were drawn.
            data: as for `plan`.

        Returns:
            video (B, 3, T, H, W) or (B, ..., 3, T, H, W), or sound (B, 1, S, F), float32.

        Raises:
            ValueError: `x` has another shape or type.
        """


class Video:
    """A clip as AVID, MoCo v2 and BYOL augment frames: one draw for all frames of the clip."""

    modality: Literal["video", "audio"] = "video"

    def seconds(self, data: DataConfig) -> float:
        return data.num_frames / data.fps

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        params = self.draw(rng, data, width=clip.width, height=clip.height)
        box = params["crop"].tolist() if window.box is None else window.box
        size = (data.size, data.size)
        frames = VideoWindow(window.start, self.seconds(data), data.fps, crop=tuple(box), size=size)
        return Plan((frames,), (data.num_frames, *size, 3), params)

    def draw(
        self, rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int
    ) -> dict[str, np.ndarray]:
        """Resized crop, flip, color jitter, gray, blur and solarization; evaluation: the center crop alone.

        What no clip of the configuration gets has no parameter and takes nothing from the generator. With the defaults
        of DataConfig these are `jitter_probability`, `gray`, `blur` and `solarize`: the recipe of AVID.

        Returns:
            `crop` (4,) float64: top, left, height, width as fractions of the frame, to be cut out at decoding;
            flip, jitter, order, and gray, blur, solarize where they are on.
        """
        neutral = np.asarray(video.NEUTRAL_FACTORS, dtype=np.float32)
        if rng is None:
            crop = video.center_crop(width=width, height=height, share=data.center_crop)
            params = {"crop": crop, "flip": np.asarray(False), "jitter": neutral, "order": np.arange(4)}
        else:
            crop = video.random_crop(
                rng,
                width=width,
                height=height,
                min_area=data.min_crop_area,
                max_area=data.max_crop_area,
                aspect=data.crop_aspect,
            )
            params = {"crop": crop, "flip": np.asarray(rng.random() < data.flip)}
            params["jitter"] = video.random_jitter(rng, data.jitter)
            params["order"] = rng.permutation(4)
            if data.jitter_probability != 1 and not video.bernoulli(rng, data.jitter_probability):
                params["jitter"] = neutral
        if data.gray:
            params["gray"] = np.asarray(rng is not None and video.bernoulli(rng, data.gray))
        if data.blur:
            blurred = rng is not None and video.bernoulli(rng, data.blur)
            sigma = video.random_sigma(rng, size=data.size) if blurred else 0.0
            params["blur"] = np.asarray(sigma, dtype=np.float32)
        if data.solarize:
            params["solarize"] = np.asarray(rng is not None and video.bernoulli(rng, data.solarize))
        return params

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        """Flip, color jitter, gray, blur, solarization, mean and deviation, in the order of MoCo v2 and BYOL:
        (B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float32.
        """
        planes = video.flip_(video.to_planes(x), params["flip"])  # flipped as bytes: a quarter of the memory to move
        return self.color(planes, params, data)

    def color(self, planes: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        """What follows the flip: (n, 3, T, H, W) uint8 with parameters (n, ...) -> the same shape, float32."""
        clips = video.color_jitter_(planes.float().div_(255), params["jitter"], params["order"])
        if "gray" in params:
            video.gray_(clips, params["gray"])
        if "blur" in params:
            video.blur_(clips, params["blur"])
        if "solarize" in params:
            video.solarize_(clips, params["solarize"])
        return video.normalize_(clips, mean=data.pixel_mean, std=data.pixel_std)


class Differences(Video):
    """What changes from frame to frame, as a modality beside the frames: each less the one before it, of the normalized
    clip; the first twice, so that there are as many. A network of its own sees it.
    """

    network = "differences"

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        if data.num_frames < 2:
            raise ValueError(f"data.num_frames={data.num_frames}: a difference needs 2 frames")
        return super().plan(rng, data, clip, window)

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        clips = super().apply(x, params, data)  # (B, 3, T, H, W)
        changes = clips.diff(dim=2)
        return torch.cat([changes[:, :, :1], changes], dim=2)


class Audio:
    """Another sound in the background, gain, the configured spectrogram, and stripes of it that are masked."""

    modality: Literal["video", "audio"] = "audio"

    def seconds(self, data: DataConfig) -> float:
        return data.audio_seconds

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        gain = 1.0 if rng is None else rng.uniform(1 - data.volume_jitter, 1 + data.volume_jitter)
        params = {"gain": np.asarray(gain, dtype=np.float32)}
        if data.background:
            drawn = np.zeros(2) if rng is None else rng.random(2)
            params["background"] = (drawn * [data.background, 1]).astype(np.float32)  # share, place
        if data.time_mask or data.band_mask:
            largest = np.array([data.time_mask, data.band_mask])[:, None]
            width, place = np.zeros((2, 2, 2)) if rng is None else rng.random((2, 2, NUM_MASKS))
            width = width * largest
            params["masks"] = np.stack([place * (1 - width), width], axis=-1).astype(np.float32)  # (2, M, 2)
        sound = AudioWindow(window.start, data.audio_seconds, data.sample_rate)
        return Plan((sound,), (sound.num_samples,), params)

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        """(B, n) float32 -> (B, 1, S, F) float32, S = round(seconds / hop); (B, 1, n) without a spectrogram."""
        if "background" in params:
            share, place = params["background"].unbind(dim=1)
            x = audio.mix_background(x, share=share, place=place)
        samples = x * params["gain"].unsqueeze(1).to(x.device, non_blocking=True)
        if data.spectrogram == "none":
            return samples.unsqueeze(1)
        num_steps = round(data.audio_seconds / data.hop_seconds)
        settings = {"sample_rate": data.sample_rate, "n_fft": data.n_fft, "hop_seconds": data.hop_seconds}
        if data.spectrogram == "avid":
            decibel = audio.avid_log_spectrogram(samples, **settings, num_steps=num_steps)
            found = audio.avid_normalize(decibel, sample_rate=data.sample_rate, n_fft=data.n_fft)
        else:
            found = audio.log_mel(samples, **settings, num_mels=data.num_mels, num_steps=num_steps)
        return audio.mask_stripes(found, params["masks"]) if "masks" in params else found


class Patch(Video):
    """One frame of a tracked patch, cut out at the box of its track; colors as in `Video`."""

    def seconds(self, data: DataConfig) -> float:
        return 1 / data.fps

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        data = _as_patch(data)
        size = (data.size, data.size)
        frame = VideoWindow(window.start, self.seconds(data), data.fps, crop=window.box, size=size)
        params = self.draw(rng, data, width=clip.width, height=clip.height)
        del params["crop"]  # what is cut out is the box of the track
        return Plan((frame,), (1, *size, 3), params)


@functools.cache
def _as_patch(data: DataConfig) -> DataConfig:
    return data.replace(size=data.patch_size)


class Walk(Video):
    """All frames of a clip as a grid of overlapping cells, each frame and each cell jittered by itself: where a camera
    stands still, the place in the grid must not tell which cells belong together.

    Source: videowalk utils/augs.py with `--frame-aug grid`; as there, no colors are changed.
    """

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        params, size = self.draw(rng, data, width=clip.width, height=clip.height), (data.size, data.size)
        frames = tuple(
            VideoWindow(window.start + i / data.fps, 1 / data.fps, data.fps, crop=tuple(box), size=size)
            for i, box in enumerate(params["crop"].tolist())
        )
        return Plan(frames, (data.num_frames, *size, 3), params)

    def draw(
        self, rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int
    ) -> dict[str, np.ndarray]:
        """A crop of each frame, and in it the places of the cells.

        Returns:
            crop (T, 4) and cells (T, N, 4) float32: top, left, height, width as fractions, cells of the crop.
        """
        if data.num_frames < 3:
            raise ValueError(f"data.num_frames={data.num_frames}: a walk there and back needs at least 3 frames")
        if data.patch_size > data.size:
            raise ValueError(f"data.patch_size={data.patch_size} must be at least 1 and at most data.size={data.size}")
        side = data.patch_size / data.size
        places = np.linspace(0, 1 - side, data.patch_grid)
        corners = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)  # (N, 2)
        cells = np.concatenate([corners, np.full_like(corners, side)], axis=1)  # (N, 4)
        cells = np.broadcast_to(cells, (data.num_frames, *cells.shape))
        if rng is None:
            crop = np.tile(video.center_crop(width=width, height=height, share=data.center_crop), (data.num_frames, 1))
            return {"crop": crop, "cells": cells.astype(np.float32)}
        (least, most), aspect = WALK_CROP_AREA, WALK_CROP_ASPECT
        how = {"width": width, "height": height, "min_area": least, "max_area": most, "aspect": aspect}
        crop = np.stack([video.random_crop(rng, **how) for _ in range(data.num_frames)])
        shape = (*cells.shape[:2], 1)
        area, aspect = rng.uniform(*WALK_PATCH_AREA, shape), np.exp(rng.uniform(*np.log(WALK_PATCH_ASPECT), shape))
        sides = np.concatenate([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=-1).clip(max=1)  # (T, N, 2)
        inside = rng.uniform(size=sides.shape) * (1 - sides)
        cells = np.concatenate([cells[..., :2] + inside * side, sides * side], axis=-1)
        return {"crop": crop, "cells": cells.astype(np.float32)}

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        """Normalize, then cut the cells out: (B, T, H, W, 3) uint8 -> (B, T, N, 3, 1, P, P) float32."""
        clips = video.to_planes(x).float().div_(255)  # (B, 3, T, H, W)
        video.normalize_(clips, mean=data.pixel_mean, std=data.pixel_std)
        cells = params["cells"].to(x.device, non_blocking=True)
        frames = clips.transpose(1, 2).flatten(0, 1)  # (B T, 3, H, W)
        patches = video.crop_boxes(frames, cells.flatten(0, 1), size=data.patch_size)  # (B T, N, 3, P, P)
        return patches.unflatten(0, cells.shape[:2]).unsqueeze(4)
