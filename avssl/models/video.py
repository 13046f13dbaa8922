"""The video encoder of AVID, a variant of R(2+1)D.

Takes (B, 3, T, H, W), either memory format, and returns (B, dim). B clips, T frames, H x W pixels, C channels.
"""

import torch
from torch import Tensor, nn

from avssl.models.heads import Encoder, scaled_channels

STAGES = ("conv2x", "conv3x", "conv4x", "conv5x")
NUM_BLOCKS = {10: 1, 18: 2}  # depth -> residual blocks per stage


class R2Plus1DAvid(Encoder):
    """R(2+1)D as AVID uses it: full 3-D stem, blocks of equal width in space and time, global maximum at the end.

    Args:
        depth: 18 (two blocks per stage, the published one) or 10 (one block per stage).
        width: multiplies every channel count (64 to 512 at width 1).

    Raises:
        ValueError: another depth, or a width that is not positive.

    Source: AVID-CMA, models/video.py; the same parameter names, so its weights load once `video_model.` is stripped.
    Differs from AVID-CMA: at depth 10 a stage is a sequence of one block (`conv2x.0.`), not the block itself.
    """

    def __init__(self, *, depth: int = 18, width: float = 1.0) -> None:
        if depth not in NUM_BLOCKS:
            raise ValueError(f"r2plus1d_avid depth={depth}: expected one of {', '.join(map(str, NUM_BLOCKS))}")
        channels = scaled_channels(width)
        super().__init__(
            modality="video",
            layout="(B, 3, T, H, W)",
            in_channels=3,
            min_size=(1, 32, 32),  # the trunk's stride
            feature_dims={"conv1": channels[0], **dict(zip(STAGES, channels, strict=True)), "pool": channels[-1]},
        )
        self.conv1 = nn.Sequential(
            nn.Conv3d(3, channels[0], (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(channels[0]),
            nn.ReLU(inplace=True),
            MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        in_channels = channels[0]
        for name, out_channels in zip(STAGES, channels, strict=True):
            blocks = [SpaceTimeBlock(in_channels, out_channels, stride=1 if name == "conv2x" else 2)]
            blocks += [SpaceTimeBlock(out_channels, out_channels) for _ in range(NUM_BLOCKS[depth] - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            in_channels = out_channels

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        features = {}
        for name in ("conv1", *STAGES):  # stages 3 to 5 halve T, H and W
            features[name] = x = self.get_submodule(name)(x)  # (B, C, T', H', W')
        features["pool"] = x.flatten(2).max(dim=2).values  # (B, dim)
        return features


class MaxPool3d(nn.MaxPool3d):
    """A maximum in the precision of its input, which loses nothing. Autocast on CPU makes it float32, and with it the
    shortcuts of the whole first stage: more to move, and a conversion before every convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input)


class SpaceTimeBlock(nn.Module):
    """Two (space 1x3x3, time 3x1x1) pairs around a shortcut; the shortcut has no BatchNorm of its own.

    Source: AVID-CMA, models/network_blocks.py (BasicR2P1DBlock), whose parameter names are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.spt_conv1 = _space(in_channels, out_channels, stride)
        self.spt_bn1 = nn.BatchNorm3d(out_channels)
        self.tmp_conv1 = _time(out_channels, stride)
        self.tmp_bn1 = nn.BatchNorm3d(out_channels)
        self.spt_conv2 = _space(out_channels, out_channels, 1)
        self.spt_bn2 = nn.BatchNorm3d(out_channels)
        self.tmp_conv2 = _time(out_channels, 1)
        self.out_bn = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        if stride != 1 or in_channels != out_channels:
            self.res_conv = nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False)
        else:
            self.res_conv = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.spt_bn1(self.spt_conv1(x)))
        y = self.relu(self.tmp_bn1(self.tmp_conv1(y)))
        y = self.relu(self.spt_bn2(self.spt_conv2(y)))
        return self.relu(self.out_bn(self.tmp_conv2(y) + self.res_conv(x)))


def _space(in_channels: int, out_channels: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False)


def _time(channels: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False)
