"""The views of a clip: what each draws in the worker and how it is applied to the batch on its device.

A recipe is two functions. `draw` takes all randomness of one clip from its own numpy generator and returns parameters,
which travel with the sample; `apply` takes a batch and its parameters and draws nothing. A new recipe: write the two,
add one line to VIEWS. A method may want several clips of a video by one recipe: video, video.1, video.2 are three views.

Letters: B batch, T frames, H x W pixels, N patches of a frame, P pixels of a patch's side, n samples, S spectrogram
steps, F frequency bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from avssl.config import DataConfig
from avssl.transforms import audio, video


class Draw(Protocol):
    """Draw the parameters of one clip.

    Args:
        rng: the generator of this clip; None = the evaluation view, which is always the same.
        data: the configuration.
        width: of the upright picture in pixels; sound ignores it.
        height: likewise.

    Returns:
        {parameter: array}; for video `crop` is (4,) float64: top, left, height, width as fractions of the picture, to
        be cut out at decoding.

    Raises:
        ValueError: a value of `data` is out of range.
    """

    def __call__(
        self, rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int
    ) -> dict[str, np.ndarray]: ...


class Apply(Protocol):
    """Apply the drawn parameters to a batch.

    Args:
        x: video (B, T, H, W, 3) uint8, or sound (B, n) float32 in [-1, 1]; not changed.
        params: {parameter: (B, ...)}, on the CPU, where they were drawn.
        data: the configuration.

    Returns:
        video (B, 3, T, H, W), patches (B, T, N, 3, 1, P, P) or sound (B, 1, S, F), float32.

    Raises:
        ValueError: `x` has another shape or type.
    """

    def __call__(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor: ...


@dataclass(frozen=True)
class View:
    """What a view needs from a clip, and how it is applied."""

    modality: Literal["video", "audio"]
    draw: Draw
    apply: Apply


def draw_avid_video(
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int
) -> dict[str, np.ndarray]:
    """Resized crop, flip and colour jitter, one draw for all frames of the clip; evaluation: the centre crop alone."""
    if rng is None:
        return {
            "crop": video.centre_crop(width=width, height=height),
            "flip": np.asarray(False),
            "jitter": np.asarray(video.NEUTRAL_FACTORS, dtype=np.float32),
            "order": np.arange(4),
        }
    return {
        "crop": video.random_crop(rng, width=width, height=height, min_area=data.min_crop_area),
        "flip": np.asarray(rng.random() < data.flip),
        "jitter": video.random_jitter(rng, data.jitter),
        "order": rng.permutation(4),
    }


def apply_avid_video(x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
    """Flip, colour jitter, ImageNet's mean and deviation: (B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float32."""
    planes = video.flip_(video.to_planes(x), params["flip"])  # flipped as bytes: a quarter of the memory to move
    clips = planes.float().div_(255)
    return video.normalise_(video.color_jitter_(clips, params["jitter"], params["order"]))


def draw_avid_audio(
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int
) -> dict[str, np.ndarray]:
    """The gain of the clip, in 1 +- data.volume_jitter; evaluation: 1."""
    if not 0 <= data.volume_jitter < 1:
        raise ValueError(f"data.volume_jitter={data.volume_jitter} must be in [0, 1): the gain is drawn from 1 +- this")
    gain = 1.0 if rng is None else rng.uniform(1 - data.volume_jitter, 1 + data.volume_jitter)
    return {"gain": np.asarray(gain, dtype=np.float32)}


def apply_avid_audio(x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
    """Gain, then the configured spectrogram: (B, n) float32 -> (B, 1, S, F) float32, S = round(seconds / hop)."""
    samples = x * params["gain"].unsqueeze(1).to(x.device, non_blocking=True)
    num_steps = round(data.audio_seconds / data.hop_seconds)
    settings = {"sample_rate": data.sample_rate, "n_fft": data.n_fft, "hop_seconds": data.hop_seconds}
    match data.spectrogram:
        case "avid":
            decibel = audio.avid_log_spectrogram(samples, **settings, num_steps=num_steps)
            return audio.avid_normalise(decibel, sample_rate=data.sample_rate, n_fft=data.n_fft)
        case "log_mel":
            return audio.log_mel(samples, **settings, num_mels=data.num_mels, num_steps=num_steps)
        case other:
            raise ValueError(f"data.spectrogram={other} is not known: choose avid or log_mel")


def draw_patch(
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int
) -> dict[str, np.ndarray]:
    """As `draw_avid_video`, without a crop: what is cut out is the box of a track."""
    drawn = draw_avid_video(rng, data, width=width, height=height)
    return {name: value for name, value in drawn.items() if name != "crop"}


WALK_CROP_AREA = (0.8, 0.95)  # share of the frame that the grid is laid over, and
WALK_PATCH_AREA = (0.7, 0.9)  # share of a cell that is cut out of it: drawn anew for every cell of every frame


def draw_walk(rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int) -> dict[str, np.ndarray]:
    """A crop of all frames, and in it the places of a grid of overlapping cells, each jittered by itself.

    Returns:
        crop (4,) and cells (T, N, 4) float32: top, left, height, width as fractions, cells of the crop.

    Source: videowalk utils/augs.py with `--frame-aug grid`; as there, no colours are changed.
    """
    if not 0 < data.patch_size <= data.size:
        raise ValueError(f"data.patch_size={data.patch_size} must be at least 1 and at most data.size={data.size}")
    side = data.patch_size / data.size
    places = np.linspace(0, 1 - side, data.patch_grid)
    corners = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)  # (N, 2)
    cells = np.broadcast_to(np.concatenate([corners, np.full_like(corners, side)], axis=1), (data.num_frames, len(corners), 4))
    if rng is None:
        return {"crop": video.centre_crop(width=width, height=height), "cells": cells.astype(np.float32)}
    crop = video.random_crop(rng, width=width, height=height, area=WALK_CROP_AREA)
    shape = (*cells.shape[:2], 1)
    area, aspect = rng.uniform(*WALK_PATCH_AREA, shape), np.exp(rng.uniform(*np.log(video.ASPECT_RANGE), shape))
    sides = np.concatenate([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=-1).clip(max=1)  # (T, N, 2)
    inside = rng.uniform(size=sides.shape) * (1 - sides)
    cells = np.concatenate([cells[..., :2] + inside * side, sides * side], axis=-1)
    return {"crop": crop, "cells": cells.astype(np.float32)}


def apply_walk(x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
    """Normalise, then cut the cells out: (B, T, H, W, 3) uint8 -> (B, T, N, 3, 1, P, P) float32."""
    clips = video.normalise_(video.to_planes(x).float().div_(255))  # (B, 3, T, H, W)
    cells = params["cells"].to(x.device, non_blocking=True)
    frames = clips.transpose(1, 2).flatten(0, 1)  # (B T, 3, H, W)
    patches = video.cut(frames, cells.flatten(0, 1), size=data.patch_size)  # (B T, N, 3, P, P)
    return patches.unflatten(0, cells.shape[:2]).unsqueeze(4)


VIEWS = {
    "video": View("video", draw_avid_video, apply_avid_video),
    "audio": View("audio", draw_avid_audio, apply_avid_audio),
    "patch": View("video", draw_patch, apply_avid_video),
    "walk": View("video", draw_walk, apply_walk),
}


def view_of(name: str) -> View:
    """The recipe of a view: that of video.1 is that of video."""
    return VIEWS[name.partition(".")[0]]


def numbered(name: str, number: int) -> str:
    """The name of a recipe's view by its number: video, then video.1."""
    return f"{name}.{number}" if number else name


def number_of(name: str) -> int:
    """Which of the clips by one recipe a view is: 0 for video, 1 for video.1."""
    return int(name.partition(".")[2] or 0)
