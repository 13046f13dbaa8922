"""Encoders by name. A new one is a class in this folder and a line in ENCODERS.

Each builder takes `depth` and `width` and returns an `Encoder` (see heads.py), whose maps the probes read by name.
"""

import importlib
from collections.abc import Callable
from typing import Literal

from avssl import config
from avssl.models.audio import Conv1DCpc, Conv2DAvid
from avssl.models.guard import guard_gradients
from avssl.models.heads import Encoder
from avssl.models.importers import load_weights
from avssl.models.video import R2Plus1DAvid
from avssl.models.vit import VideoViT


def _fixed(encoder: str, name: str) -> Callable[..., Encoder]:
    """The builder of a library's network, which has one depth and one width. The library is imported by the first that
    is built: torchvision takes 2 seconds, and AVID's trunks do without.
    """
    module, encoder = encoder.split(".")

    def build(*, depth: int | None = None, width: float = 1.0) -> Encoder:
        if depth is not None or width != 1:
            raise ValueError(
                f"{name} with depth={depth}, width={width}: the library's network has its own depth and width only: "
                "leave the depth null and the width 1, or choose an AVID trunk"
            )
        return getattr(importlib.import_module(f"avssl.models.{module}"), encoder)(name)

    return build


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "r2plus1d_avid": R2Plus1DAvid,
    "r2plus1d_18": _fixed("adapters.TorchvisionVideo", "r2plus1d_18"),
    "r3d_18": _fixed("adapters.TorchvisionVideo", "r3d_18"),
    "mc3_18": _fixed("adapters.TorchvisionVideo", "mc3_18"),
    "s3d": _fixed("adapters.TorchvisionVideo", "s3d"),
    "mvit_v2_s": _fixed("adapters.TorchvisionVideo", "mvit_v2_s"),
    "swin3d_t": _fixed("adapters.TorchvisionVideo", "swin3d_t"),
    "x3d_xs": _fixed("adapters.PytorchvideoVideo", "x3d_xs"),
    "x3d_s": _fixed("adapters.PytorchvideoVideo", "x3d_s"),
    "x3d_m": _fixed("adapters.PytorchvideoVideo", "x3d_m"),
    "slow_r50": _fixed("adapters.PytorchvideoVideo", "slow_r50"),
    "csn_r101": _fixed("adapters.PytorchvideoVideo", "csn_r101"),
    "r2plus1d_50": _fixed("adapters.PytorchvideoVideo", "r2plus1d_50"),
    "resnet18_frames": _fixed("images.FrameResNet", "resnet18"),
    "resnet50_frames": _fixed("images.FrameResNet", "resnet50"),
    "vit": VideoViT,
    "conv2d_avid": Conv2DAvid,
    "conv1d_cpc": Conv1DCpc,
    "resnet18_audio": _fixed("images.SpectrogramResNet", "resnet18"),
}


def build_encoder(modality: Literal["video", "audio"], model: config.ModelConfig) -> Encoder:
    """Build the encoder that the configuration names for one modality, with gradients that are right on CPU.

    Its weights are random, or those of the file that `model.video_weights` or `model.audio_weights` names.

    Raises:
        ValueError: an unknown name (with near matches), an encoder of the other modality, a depth or width that the
            encoder does not have, a file that cannot be read or holds other weights, or a file besides `model.init`.
    """
    if modality not in ("video", "audio"):
        raise ValueError(f"modality={modality!r}: expected video or audio")
    name, depth, width, weights = (
        getattr(model, key) for key in (modality, f"{modality}_depth", f"{modality}_width", f"{modality}_weights")
    )
    if name not in ENCODERS:
        hint = config.hint(name, ENCODERS, "known encoders")
        raise ValueError(f"model.{modality}={name} is not an encoder: {hint}")
    encoder = ENCODERS[name](width=width) if depth is None else ENCODERS[name](depth=depth, width=width)
    if encoder.modality != modality:
        raise ValueError(f"model.{modality}={name} is an encoder for {encoder.modality}: choose one for {modality}")
    if weights is not None:
        if model.init is not None:
            raise ValueError(
                f"model.{modality}_weights={weights} and model.init={model.init} both say where the {modality} encoder "
                "starts: give one of them"
            )
        load_weights(encoder, weights)
    return guard_gradients(encoder)
