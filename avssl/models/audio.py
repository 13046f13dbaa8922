"""The audio encoder of AVID: ten plain 2-D convolutions over a spectrogram.

Takes (B, 1, S, F) and returns (B, dim). B clips, S spectrogram steps, F frequency bins, C channels.
"""

from collections import OrderedDict

from torch import Tensor, nn

from avssl.models.heads import Encoder, scaled_channels

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
