"""The views of a clip: what each draws in the worker and how it is applied to the batch on its device.

A recipe is two functions. `draw` takes all randomness of one clip from its own numpy generator and returns parameters,
which travel with the sample; `apply` takes a batch and its parameters and draws nothing. A new recipe: write the two,
add one line to VIEWS.

Letters: B batch, T frames, H x W pixels, n samples, S spectrogram steps, F frequency bins.
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
        video (B, 3, T, H, W) or sound (B, 1, S, F), float32.

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
    """Flip, colour jitter, grey, blur, solarization, ImageNet's mean and deviation, in the order of MoCo v2 and BYOL.

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
    return video.normalise_(clips)


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


VIEWS = {
    "video": View("video", draw_avid_video, apply_avid_video),
    "audio": View("audio", draw_avid_audio, apply_avid_audio),
}
