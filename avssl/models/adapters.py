"""Video encoders of other libraries: one adapter for pytorchvideo, one for torchvision. Nothing here downloads.

All take (B, 3, T, H, W), either memory format, and return (B, dim). B clips, T frames, H x W pixels, C channels.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torchvision
from pytorchvideo.models import hub
from pytorchvideo.models.x3d import ProjectedPool
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from avssl.models.heads import MAPS, Encoder

X3D_DIMS = (24, 24, 48, 96, 192, 2048)
BOTTLENECK_DIMS = (64, 256, 512, 1024, 2048, 2048)
PYTORCHVIDEO = {  # name: its name in the library, channels of MAPS
    "x3d_xs": ("x3d_xs", X3D_DIMS),
    "x3d_s": ("x3d_s", X3D_DIMS),
    "x3d_m": ("x3d_m", X3D_DIMS),
    "slow_r50": ("slow_r50", BOTTLENECK_DIMS),
    "csn_r101": ("csn_r101", BOTTLENECK_DIMS),
    "r2plus1d_50": ("r2plus1d_r50", BOTTLENECK_DIMS),
}


class PytorchvideoVideo(Encoder):
    """A video network of pytorchvideo with random weights; parameters keep its names, without the classifier.

    Args:
        name: a key of PYTORCHVIDEO.

    Source: pytorchvideo.models.hub.
    Differs from pytorchvideo: pools over the whole last map, not over a window that fits the published clip length and
    size only (at these, both are the same). X3D's projection to 2048 channels behind the pooling belongs to the trunk.
    """

    def __init__(self, name: str) -> None:
        library_name, dims = PYTORCHVIDEO[name]
        super().__init__(
            modality="video",
            layout="(B, 3, T, H, W)",
            in_channels=3,
            min_size=(1, 32, 32),  # the trunk's stride
            feature_dims=dict(zip(MAPS, dims, strict=True)),
            classifier="blocks.5.proj.",
        )
        self.blocks = getattr(hub, library_name)(pretrained=False).blocks
        head = self.blocks[-1]
        head.proj = head.dropout = head.activation = None
        if isinstance(head.pool, ProjectedPool):
            head.pool.pool = nn.AdaptiveAvgPool3d(1)
        else:
            head.pool = nn.AdaptiveAvgPool3d(1)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        features = {}
        for name, block in zip(MAPS, self.blocks, strict=True):
            features[name] = x = block(x)  # (B, C, T', H', W'); the last: (B, dim)
        return features


class TorchvisionVideo(Encoder):
    """A video network of torchvision with random weights; parameters keep its names, without the classifier.

    Args:
        name: a key of TORCHVISION.

    Differs from torchvision: S3D pools over the whole last map, not over a window of 2 x 7 x 7. MViT takes clips of any
    length and size: its tables of relative positions are interpolated to the clip's, as torchvision's own attention
    does once it is told the size. No stochastic depth, because two calls on the same clips must agree.
    """

    def __init__(self, name: str) -> None:
        trunk = TORCHVISION[name]
        super().__init__(
            modality="video",
            layout="(B, 3, T, H, W)",
            in_channels=3,
            min_size=trunk.min_size,
            feature_dims=dict(zip(trunk.names, trunk.dims, strict=True)),
            classifier=f"{trunk.classifier}.",
        )
        self.maps = trunk.maps
        model = getattr(torchvision.models.video, name)(weights=None)
        for child_name, child in model.named_children():
            if child_name not in ("avgpool", trunk.classifier):
                self.add_module(child_name, child)
        for module in self.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        return dict(zip(self.feature_dims, self.maps(self, x), strict=True))


def _resnet_maps(trunk: nn.Module, x: Tensor) -> Iterator[Tensor]:
    for stage in (trunk.stem, trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        x = stage(x)  # (B, C, T', H', W')
        yield x
    yield x.mean(dim=(2, 3, 4))  # (B, dim)


def _s3d_maps(trunk: nn.Module, x: Tensor) -> Iterator[Tensor]:
    layers = trunk.features
    for stage in (layers[:1], layers[1:4], layers[4:7], layers[7:13], layers[13:]):  # each but the first begins to pool
        x = stage(x)  # (B, C, T', H', W')
        yield x
    yield x.mean(dim=(2, 3, 4))  # (B, dim)


def _swin_maps(trunk: nn.Module, x: Tensor) -> Iterator[Tensor]:
    layers = trunk.features
    for stage in (trunk.patch_embed, layers[:1], layers[1:3], layers[3:5], layers[5:]):  # later ones begin by merging
        x = stage(x)  # (B, T', H', W', C)
        yield x.permute(0, 4, 1, 2, 3)
    yield trunk.norm(x).mean(dim=(1, 2, 3))  # (B, dim)


def _mvit_maps(trunk: nn.Module, x: Tensor) -> Iterator[Tensor]:
    x = trunk.conv_proj(x)  # (B, C, T', H', W')
    yield x
    size = tuple(x.shape[2:])
    x = trunk.pos_encoding(x.flatten(2).transpose(1, 2))  # (B, 1 + T' H' W', C): the class token comes first
    blocks = trunk.blocks
    for stage in (blocks[:1], blocks[1:3], blocks[3:14], blocks[14:]):  # each but the first begins to pool
        for block in stage:
            x, size = block(x, size)
        yield x[:, 1:].transpose(1, 2).unflatten(2, size)  # (B, C, T', H', W')
    yield trunk.norm(x)[:, 0]  # (B, dim)


class _Trunk(NamedTuple):
    """What the adapter must know of a network of torchvision."""

    maps: Callable[[nn.Module, Tensor], Iterator[Tensor]]
    dims: tuple[int, ...]  # channels of the maps
    min_size: tuple[int, int, int]
    classifier: str
    names: tuple[str, ...] = MAPS


_RESNET = _Trunk(_resnet_maps, (64, 64, 128, 256, 512, 512), (1, 16, 16), "fc")  # 16: the trunk's stride
_TOKEN_MAPS = ("patches", "stage1", "stage2", "stage3", "stage4", "pool")
_TOKEN_DIMS = (96, 96, 192, 384, 768, 768)
TORCHVISION = {
    "r2plus1d_18": _RESNET,
    "r3d_18": _RESNET,
    "mc3_18": _RESNET,
    # 5 frames and 17 pixels: the last pooling, without padding, needs two of each
    "s3d": _Trunk(_s3d_maps, (64, 192, 480, 832, 1024, 1024), (5, 17, 17), "classifier"),
    "mvit_v2_s": _Trunk(_mvit_maps, _TOKEN_DIMS, (1, 1, 1), "head", _TOKEN_MAPS),
    "swin3d_t": _Trunk(_swin_maps, _TOKEN_DIMS, (1, 1, 1), "head", _TOKEN_MAPS),
}
