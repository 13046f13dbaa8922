"""The views of a clip: what each draws in the worker and how it is applied to the batch on its device.

A recipe is two functions. `draw` takes all randomness of one clip from its own numpy generator and returns parameters,
which travel with the sample; `apply` takes a batch and its parameters and draws nothing. A new recipe: write the two,
add one line to VIEWS. A method may want several clips of a video by one recipe: then video, video.1, video.2 are views.

Letters: B batch, T frames, H x W pixels, N patches of a frame, P pixels of a patch's side, n samples, S spectrogram
steps, F frequency bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from avssl.config import DataConfig
from avssl.transforms import audio, video

WALK_CROP_AREA, WALK_CROP_ASPECT = (0.8, 0.95), (0.7, 1.3)  # of the frame that the walk's grid is laid over, and
WALK_PATCH_AREA, WALK_PATCH_ASPECT = (0.7, 0.9), (3 / 4, 4 / 3)  # of what is cut out of each cell of each frame


class Draw(Protocol):
    """Draw the parameters of one clip.

    Args:
        rng: the generator of this clip; None = the evaluation view, which is always the same.
        data: the configuration.
        width: of the upright picture in pixels; sound ignores it.
        height: likewise.
        number: of the clip among those that are drawn from its video: 0 for the first.

    Returns:
        {parameter: array}, the same names for every clip of a configuration; for video `crop` is (4,) float64: top,
        left, height, width as fractions of the picture, to be cut out at decoding.

    Raises:
        ValueError: a value of `data` is out of range.
    """

    def __call__(
        self, rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int, number: int
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
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int, number: int
) -> dict[str, np.ndarray]:
    """Resized crop, flip, colour jitter, grey, blur and solarization, one draw for all frames of the clip; evaluation:
    the centre crop alone.

    What no clip of the configuration gets has no parameter and takes nothing from the generator. With the defaults of
    DataConfig these are `jitter_probability`, `grey`, `blur` and `solarize`: the recipe of AVID.
    """
    blur = video.of_clip(data.blur, number, key="data.blur")
    solarize = video.of_clip(data.solarize, number, key="data.solarize")
    neutral = np.asarray(video.NEUTRAL_FACTORS, dtype=np.float32)
    if rng is None:
        params = {
            "crop": video.centre_crop(width=width, height=height),
            "flip": np.asarray(False),
            "jitter": neutral,
            "order": np.arange(4),
        }
    else:
        params = {
            "crop": video.random_crop(
                rng,
                width=width,
                height=height,
                min_area=data.min_crop_area,
                max_area=data.max_crop_area,
                aspect=data.crop_aspect,
            ),
            "flip": np.asarray(rng.random() < data.flip),
            "jitter": video.random_jitter(rng, data.jitter),
            "order": rng.permutation(4),
        }
        if data.jitter_probability != 1 and not video.happens(
            rng, data.jitter_probability, key="data.jitter_probability"
        ):
            params["jitter"] = neutral
    if data.grey != 0:
        params["grey"] = np.asarray(rng is not None and video.happens(rng, data.grey, key="data.grey"))
    if any(data.blur):
        blurred = rng is not None and video.happens(rng, blur, key="data.blur")
        sigma = video.random_sigma(rng, size=data.size) if blurred else 0.0
        params["blur"] = np.asarray(sigma, dtype=np.float32)
    if any(data.solarize):
        params["solarize"] = np.asarray(rng is not None and video.happens(rng, solarize, key="data.solarize"))
    return params


def apply_avid_video(x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
    """Flip, colour jitter, grey, blur, solarization, mean and deviation, in the order of MoCo v2 and BYOL.

    (B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float32.
    """
    planes = video.flip_(video.to_planes(x), params["flip"])  # flipped as bytes: a quarter of the memory to move
    clips = video.color_jitter_(planes.float().div_(255), params["jitter"], params["order"])
    if "grey" in params:
        video.grey_(clips, params["grey"])
    if "blur" in params:
        video.blur_(clips, params["blur"])
    if "solarize" in params:
        video.solarize_(clips, params["solarize"])
    return video.normalise_(clips, mean=data.pixel_mean, std=data.pixel_std)


def draw_avid_audio(
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int, number: int
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
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int, number: int
) -> dict[str, np.ndarray]:
    """As `draw_avid_video`, without a crop: what is cut out is the box of a track."""
    data = data.replace(size=data.patch_size)
    drawn = draw_avid_video(rng, data, width=width, height=height, number=number)
    return {name: value for name, value in drawn.items() if name != "crop"}


def draw_walk(
    rng: np.random.Generator | None, data: DataConfig, *, width: int, height: int, number: int
) -> dict[str, np.ndarray]:
    """A crop of all frames, and in it the places of a grid of overlapping cells, each jittered by itself.

    Returns:
        crop (4,) and cells (T, N, 4) float32: top, left, height, width as fractions, cells of the crop.

    Source: videowalk utils/augs.py with `--frame-aug grid`; as there, no colours are changed.
    """
    if data.num_frames < 3:
        raise ValueError(f"data.num_frames={data.num_frames}: a walk there and back needs at least 3 frames")
    if not 0 < data.patch_size <= data.size:
        raise ValueError(f"data.patch_size={data.patch_size} must be at least 1 and at most data.size={data.size}")
    side = data.patch_size / data.size
    places = np.linspace(0, 1 - side, data.patch_grid)
    corners = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)  # (N, 2)
    cells = np.concatenate([corners, np.full_like(corners, side)], axis=1)  # (N, 4)
    cells = np.broadcast_to(cells, (data.num_frames, *cells.shape))
    if rng is None:
        return {"crop": video.centre_crop(width=width, height=height), "cells": cells.astype(np.float32)}
    (least, most), aspect = WALK_CROP_AREA, WALK_CROP_ASPECT
    crop = video.random_crop(rng, width=width, height=height, min_area=least, max_area=most, aspect=aspect)
    shape = (*cells.shape[:2], 1)
    area, aspect = rng.uniform(*WALK_PATCH_AREA, shape), np.exp(rng.uniform(*np.log(WALK_PATCH_ASPECT), shape))
    sides = np.concatenate([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=-1).clip(max=1)  # (T, N, 2)
    inside = rng.uniform(size=sides.shape) * (1 - sides)
    cells = np.concatenate([cells[..., :2] + inside * side, sides * side], axis=-1)
    return {"crop": crop, "cells": cells.astype(np.float32)}


def apply_walk(x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
    """Normalise, then cut the cells out: (B, T, H, W, 3) uint8 -> (B, T, N, 3, 1, P, P) float32."""
    clips = video.to_planes(x).float().div_(255)  # (B, 3, T, H, W)
    video.normalise_(clips, mean=data.pixel_mean, std=data.pixel_std)
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


def evaluate_view(name: Literal["video", "audio"], x: Tensor, data: DataConfig) -> Tensor:
    """What evaluation makes of decoded clips: the centre crop, and no augmentation.

    Args:
        x: whole frames (B, T, H, W, 3) uint8 of any size, or sound (B, n) float32 in [-1, 1] at data.sample_rate, of
            at least data.audio_seconds; what is longer is left out.

    Returns:
        (B, 3, T, size, size) or (B, 1, S, F), float32.

    Raises:
        ValueError: `x` has another shape or type, or too few samples.
    """
    width, height = (x.shape[-2], x.shape[-3]) if name == "video" and x.dim() == 5 else (data.size, data.size)
    drawn = VIEWS[name].draw(None, data, width=width, height=height, number=0)
    if name == "video" and x.dim() == 5:
        top, left, rows, columns = (
            round(part * side) for part, side in zip(drawn["crop"], (height, width, height, width), strict=True)
        )
        frames = x[:, :, top : top + rows, left : left + columns].movedim(-1, 2)  # (B, T, 3, h, w)
        x = resize(frames, [data.size, data.size], antialias=True).movedim(2, -1)
    params = {key: torch.from_numpy(np.stack([value] * len(x))) for key, value in drawn.items()}
    return VIEWS[name].apply(x, params, data)


def numbered(name: str, number: int) -> str:
    """The name of a recipe's view by its number: video, then video.1."""
    return f"{name}.{number}" if number else name


def number_of(name: str) -> int:
    """Which of the clips by one recipe a view is: 0 for video, 1 for video.1."""
    return int(name.partition(".")[2] or 0)
