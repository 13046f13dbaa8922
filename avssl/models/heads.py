"""What all encoders share: what an encoder is, how channel counts scale, and the projection head on top.

The encoders themselves live in the other files of this folder; they are built by name in `avssl.models.build_encoder`.
After training a classifier may stand on an encoder, or on one of its maps.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAP_SIZE = 9216  # most numbers of a map that a classifier looks at
MAPS = ("conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool")  # of trunks with a stem and four stages


class Encoder(nn.Module):
    """A trunk that turns a batch of inputs into one vector per clip, and can hand out its intermediate maps.

    A subclass calls `__init__` with the numbers below and writes `forward_features`, which begins with `check_input`.

    Args:
        modality: "video" or "audio".
        layout: the expected shape as text, such as "(B, 3, T, H, W)".
        in_channels: channels on axis 1.
        min_size: smallest length of each axis after the channels, in pixels, frames or bins.
        feature_dims: channels of every map that `forward_features` returns, in order; "pool" is the output.
        classifier: how the library's names of the parameters that we leave out begin; "" where nothing is left out.
    """

    def __init__(
        self,
        *,
        modality: str,
        layout: str,
        in_channels: int,
        min_size: tuple[int, ...],
        feature_dims: dict[str, int],
        classifier: str = "",
    ) -> None:
        super().__init__()
        self.modality = modality
        self.layout = layout
        self.in_channels = in_channels
        self.min_size = min_size
        self.feature_dims = feature_dims
        self.classifier = classifier
        self.dim = feature_dims["pool"]

    def forward(self, x: Tensor) -> Tensor:
        """Clips in the encoder's layout -> (B, dim). Raises ValueError as `check_input` does."""
        return self.forward_features(x)["pool"]

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Clips in the encoder's layout -> the maps of `feature_dims`: stages (B, C, ...), at last pool (B, dim)."""
        raise TypeError(f"{type(self).__name__} defines no forward_features")

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless x has the layout's axes and channels and is at least `min_size` large."""
        where = f"{type(self).__name__} input of shape {tuple(x.shape)}"
        if x.dim() != 2 + len(self.min_size) or x.shape[1] != self.in_channels:
            raise ValueError(f"{where}: expected {self.layout}, with {self.in_channels} channel(s) on axis 1")
        if any(size < least for size, least in zip(x.shape[2:], self.min_size, strict=True)):
            raise ValueError(
                f"{where}: too small, expected at least {self.min_size} on the last axes of {self.layout}: "
                "use larger frames or longer audio"
            )


class MLP(nn.Module):
    """Linear layers with ReLU between them, as `mlp` builds them; not normalized to unit length.

    Attributes:
        arguments: of the call that built it: what an export keeps.
    """

    def __init__(self, layers: nn.Sequential, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.projection = layers
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        """(B, dims[0]) -> (B, dims[-1]), in float32 whatever the autocast: bfloat16 rounds away how close embeddings
        differ.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.projection(x.float())


def mlp(
    dims: Sequence[int],
    *,
    norm: Literal["none", "hidden", "out", "all"] = "none",
    bias_hidden: bool | None = None,
    bias_out: bool = True,
    affine_out: bool | Literal["scale"] = True,
) -> MLP:
    """Every projection head, predictor and small classifier.

    Args:
        dims: of the input, the hidden layers and the output; two = one linear layer.
        norm: where BatchNorm stands: behind the hidden linear layers, behind the last one, or both.
        bias_hidden: whether hidden linear layers have a bias; None = only where no norm follows.
        bias_out: likewise of the last one.
        affine_out: whether the last norm has a scale and a shift, or a scale alone.

    Source: norm none or out with 512-512-128: AVID-CMA, models/av_wrapper.py. Differs from AVID-CMA with out: without
    it, the embeddings of small sets start and stay almost equal, as maxima of non-negative maps have a large mean.
    """
    arguments = {
        "dims": list(dims),
        "norm": norm,
        "bias_hidden": bias_hidden,
        "bias_out": bias_out,
        "affine_out": affine_out,
    }
    hidden_norm = norm in ("hidden", "all")
    layers: list[nn.Module] = []
    for in_dim, out_dim in itertools.pairwise(dims[:-1]):
        layers.append(nn.Linear(in_dim, out_dim, bias=not hidden_norm if bias_hidden is None else bias_hidden))
        layers += [nn.BatchNorm1d(out_dim), nn.ReLU()] if hidden_norm else [nn.ReLU()]
    layers.append(nn.Linear(dims[-2], dims[-1], bias=bias_out))
    if norm in ("out", "all"):
        layers.append(nn.BatchNorm1d(dims[-1], affine=bool(affine_out)))
        if affine_out == "scale":
            layers[-1].bias.requires_grad_(False)  # stays 0
    return MLP(nn.Sequential(*layers), arguments)


class Classifier(nn.Module):
    """A linear classifier on what `describe_maps` makes of an encoder's maps.

    Args:
        in_dim: numbers per clip.
        classes: names, in the order of the outputs.
        modality: whose encoder it stands on; both = the pooled outputs of both, see `side_by_side`.
        stage: name of the map, pool for the encoder's output.
        batch_norm: normalize the inputs over the batch first, with a scale and a shift of their own.
        multi_label: a clip may have several classes: each output is a class by itself.
    """

    def __init__(
        self,
        in_dim: int,
        classes: Sequence[str],
        *,
        modality: Literal["video", "audio", "both"],
        stage: str = "pool",
        batch_norm: bool = False,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.in_dim, self.classes, self.modality, self.stage = in_dim, tuple(classes), modality, stage
        self.norm = nn.BatchNorm1d(in_dim) if batch_norm else None
        self.linear = nn.Linear(in_dim, len(self.classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> logits (B, number of classes), in float32 whatever the autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return self.linear(x.float() if self.norm is None else self.norm(x.float()))


def describe_maps(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's maps (B, C, ...) as vectors (B, d), d at most MAP_SIZE: the maximum over time and over the cells of
    a grid as fine as that allows, and no finer than the map. The pooled output stays as it is.

    Source: AVID-CMA, configs/benchmark/kinetics (grids of 12, 8, 6 and 4 cells a side for 64 to 512 channels).
    """
    vectors = {}
    for name, x in maps.items():
        if x.dim() > 2:
            x = x.amax(dim=2) if x.dim() == 5 else x  # (B, C, H', W') of video, (B, C, S', F') of sound
            finest = max(1, math.isqrt(MAP_SIZE // x.shape[1]))
            x = F.adaptive_max_pool2d(x, tuple(min(finest, side) for side in x.shape[2:])).flatten(1)
        vectors[name] = x
    return vectors


def side_by_side(video: Tensor, audio: Tensor) -> Tensor:
    """Outputs of both encoders (B, dim_video) and (B, dim_audio) as one vector, each of unit length so that neither
    outweighs the other: (B, dim_video + dim_audio)."""
    return torch.cat([F.normalize(video, dim=1), F.normalize(audio, dim=1)], dim=1)


def scaled_channels(width: float) -> tuple[int, int, int, int]:
    """Channels of the four stages, 64 to 512 at width 1: the first is a multiple of 8, the others double it.

    Raises:
        ValueError: width is not positive.
    """
    if not width > 0:
        raise ValueError(f"width={width}: expected a positive multiplier of the channel counts, such as 0.25 or 1")
    first = max(8, 8 * round(64 * width / 8))
    return first, 2 * first, 4 * first, 8 * first
