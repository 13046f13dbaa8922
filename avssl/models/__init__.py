"""Encoders by name. A new one is a class in video.py or audio.py and a line in ENCODERS.

Each builder takes `depth` and `width` and returns an `Encoder` (see heads.py), whose maps the probes read by name.
"""

import difflib
from collections.abc import Callable
from typing import Literal

from avssl import config
from avssl.models.audio import Conv2DAvid
from avssl.models.heads import Encoder
from avssl.models.video import R2Plus1DAvid, TorchvisionVideo, guard_conv3d


def _torchvision(name: str) -> Callable[..., Encoder]:
    def build(*, depth: int, width: float) -> Encoder:
        if depth != 18 or width != 1:
            raise ValueError(
                f"{name} with depth={depth}, width={width}: torchvision's encoder has depth 18 and width 1 only"
            )
        return TorchvisionVideo(name)

    return build


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "r2plus1d_avid": R2Plus1DAvid,
    "r2plus1d_18": _torchvision("r2plus1d_18"),
    "r3d_18": _torchvision("r3d_18"),
    "conv2d_avid": Conv2DAvid,
}


def build_encoder(modality: Literal["video", "audio"], model: config.ModelConfig) -> Encoder:
    """Build the encoder that the configuration names for one modality, with random weights, safe under bfloat16 on CPU.

    Raises:
        ValueError: an unknown name (with near matches), an encoder of the other modality, or a depth or width that the
            encoder does not have.
    """
    match modality:
        case "video":
            name, depth, width = model.video, model.video_depth, model.video_width
        case "audio":
            name, depth, width = model.audio, model.audio_depth, model.audio_width
        case _:
            raise ValueError(f"modality={modality!r}: expected video or audio")
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known encoders: {', '.join(ENCODERS)}"
        raise ValueError(f"model.{modality}={name} is not an encoder: {hint}")
    encoder = ENCODERS[name](depth=depth, width=width)
    if encoder.modality != modality:
        raise ValueError(f"model.{modality}={name} is an encoder for {encoder.modality}: choose one for {modality}")
    return guard_conv3d(encoder)
