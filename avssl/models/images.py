"""2-D ResNets of torchvision on pictures that are not photographs: a spectrogram, or the frames of a clip one by one.

B clips, T frames, H x W pixels, S spectrogram steps, F frequency bins, C channels, N pictures.
"""

import torchvision
from torch import Tensor, nn

from avssl.models.heads import MAPS, Encoder

RESNET_DIMS = {"resnet18": (64, 64, 128, 256, 512, 512), "resnet50": (64, 256, 512, 1024, 2048, 2048)}
STRIDE = 32  # smaller sides would meet the bfloat16 bug of guard.py, and leave less than one position


class _ImageResNet(Encoder):
    """A ResNet with random weights; parameters keep torchvision's names, without the classifier."""

    def __init__(self, name: str, *, modality: str, layout: str, min_size: tuple[int, ...]) -> None:
        super().__init__(
            modality=modality,
            layout=layout,
            in_channels=1 if modality == "audio" else 3,
            min_size=min_size,
            feature_dims=dict(zip(MAPS, RESNET_DIMS[name], strict=True)),
            classifier="fc.",
        )
        for child_name, child in getattr(torchvision.models, name)(weights=None).named_children():
            if child_name not in ("avgpool", "fc"):
                self.add_module(child_name, child)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Pictures (N, in_channels, H, W) -> the stages (N, C, H', W') and pool (N, dim)."""
        features = {"conv1": self.maxpool(self.relu(self.bn1(self.conv1(x))))}
        x = features["conv1"]
        for name, stage in zip(MAPS[1:5], (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            features[name] = x = stage(x)  # (N, C, H', W')
        features["pool"] = x.mean(dim=(2, 3))  # (N, dim)
        return features


class SpectrogramResNet(_ImageResNet):
    """A ResNet over a spectrogram (B, 1, S, F), such as the log-mel one.

    Args:
        name: resnet18 or resnet50.

    Differs from torchvision: the first convolution has one input channel, so weights learned on photographs do not fit.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, modality="audio", layout="(B, 1, S, F)", min_size=(STRIDE, STRIDE))
        self.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        return self.maps(x)


class FrameResNet(_ImageResNet):
    """A ResNet over every frame of a clip (B, 3, T, H, W) by itself, for methods that work on frames.

    Its output as an encoder is the mean over the frames; maps keep the frames apart, (B, C, T, H', W').

    Args:
        name: resnet18 or resnet50.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, modality="video", layout="(B, 3, T, H, W)", min_size=(1, STRIDE, STRIDE))

    def frames(self, x: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> one vector per frame (B, T, dim). Raises ValueError as `check_input` does."""
        self.check_input(x)
        return self.maps(_frames_of(x))["pool"].unflatten(0, (-1, x.shape[2]))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        features = {  # (B, T, C, H', W'), pool (B, T, dim)
            name: feature.unflatten(0, (-1, x.shape[2])) for name, feature in self.maps(_frames_of(x)).items()
        }
        pool = features.pop("pool").mean(dim=1)  # (B, dim)
        return {name: feature.transpose(1, 2) for name, feature in features.items()} | {"pool": pool}


def _frames_of(x: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B T, 3, H, W), without a copy when the channels lie last."""
    return x.transpose(1, 2).flatten(0, 1)
