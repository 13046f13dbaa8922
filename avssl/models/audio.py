"""The audio encoder of AVID, ten plain 2-D convolutions over a spectrogram, and that of CPC, five strided ones over
samples.

They take (B, 1, S, F) and (B, 1, n), and return (B, dim). B clips, S spectrogram steps, F frequency bins, n samples,
C channels.
"""

import math
from collections import OrderedDict

from torch import Tensor, nn

from avssl.models.heads import MAPS, Encoder, scaled_channels

KERNELS, STRIDES = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2)  # of CPC
BLOCKS = {"conv2x": "block1", "conv3x": "block2", "conv4x": "block3", "conv5x": "block4"}  # feature map -> module


class Conv2DAvid(Encoder):
    """A strided stem and four blocks of two 3x3 convolutions without shortcuts, global maximum at the end.

    Args:
        depth: 10, the published one.
        width: multiplies every channel count (64 to 512 at width 1).

    Raises:
        ValueError: another depth, or a width that is not positive.

    Source: AVID-CMA, models/audio.py; the same parameter names, so its weights load once `audio_model.` is stripped.
    """

    def __init__(self, *, depth: int = 10, width: float = 1.0) -> None:
        if depth != 10:
            raise ValueError(f"conv2d_avid depth={depth}: expected 10")
        channels = scaled_channels(width)
        super().__init__(
            modality="audio",
            layout="(B, 1, S, F)",
            in_channels=1,
            # The trunk's stride. Smaller, a strided 3x3 convolution would see a side of one bin, where the bfloat16
            # weight gradient of torch 2.11 on CPU writes out of bounds (guard.py).
            min_size=(16, 16),
            feature_dims={"conv1": channels[0], **dict(zip(BLOCKS, channels, strict=True)), "pool": channels[-1]},
        )
        self.conv1 = nn.Sequential(
            nn.Conv2d(1, channels[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        )
        in_channels = channels[0]
        for module_name, out_channels in zip(BLOCKS.values(), channels, strict=True):
            stride = 1 if module_name == "block4" else 2
            self.add_module(module_name, _block(in_channels, out_channels, stride))
            in_channels = out_channels

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        features = {"conv1": self.conv1(x)}  # (B, C, S/2, F/2)
        x = features["conv1"]
        for name, module_name in BLOCKS.items():
            features[name] = x = self.get_submodule(module_name)(x)  # (B, C, S', F')
        features["pool"] = x.flatten(2).max(dim=2).values  # (B, dim)
        return features


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            bn1=nn.BatchNorm2d(out_channels),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(out_channels),
            relu2=nn.ReLU(inplace=True),
        )
    )


class Conv1DCpc(Encoder):
    """Five strided convolutions over samples, a vector every 160 (10 ms at 16 kHz), and their mean; for
    `data.spectrogram=none`. No normalization, so nothing leaks from one block of a sound to another.

    Args:
        depth: 5, the published one.
        width: multiplies the 512 channels.

    Raises:
        ValueError: another depth, or a width that is not positive.

    Source: van den Oord et al. 2018, section 3.1. Differs from it: the paper predicts every vector from a context over
    all before it; here blocks of data.audio_seconds are encoded one by one (`CPC`). No padding, and He's initial
    weights, which the paper does not tell.
    """

    def __init__(self, *, depth: int = 5, width: float = 1.0) -> None:
        if depth != 5:
            raise ValueError(f"conv1d_cpc depth={depth}: expected 5")
        channels = scaled_channels(width)[-1]
        super().__init__(
            modality="audio",
            layout="(B, 1, n)",
            in_channels=1,
            min_size=(1 + sum((kernel - 1) * math.prod(STRIDES[:i]) for i, kernel in enumerate(KERNELS)),),
            feature_dims=dict.fromkeys(MAPS, channels),
        )
        for i, (name, kernel, stride) in enumerate(zip(MAPS, KERNELS, STRIDES, strict=False)):
            layer = nn.Conv1d(channels if i else 1, channels, kernel, stride=stride)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            self.add_module(name, layer)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        features = {}
        for name in MAPS[:-1]:
            features[name] = x = self.get_submodule(name)(x).relu()  # (B, C, n')
        features["pool"] = x.mean(dim=2)  # (B, dim)
        return features
