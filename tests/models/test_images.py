"""ResNets on spectrograms and on single frames."""

import pytest
import torch
import torchvision
from torch import nn

from avssl.config import ModelConfig
from avssl.models import build_encoder


def build(modality, name):
    torch.manual_seed(0)
    return build_encoder(modality, ModelConfig(**{modality: name})).eval()


def original_of(encoder, name):
    original = getattr(torchvision.models, name)(weights=None)
    original.conv1 = encoder.conv1
    original.load_state_dict(original.state_dict() | encoder.state_dict())
    original.fc = nn.Identity()
    return original.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_frames_are_encoded_one_by_one(name):
    encoder = build("video", f"{name}_frames")
    x = torch.randn(2, 3, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        frames = encoder.frames(x)
        features = encoder.forward_features(x)
        expected = original_of(encoder, name)(x[1, :, 2][None])[0]  # the third frame of the second clip
    assert frames.shape == (2, 3, encoder.dim)
    torch.testing.assert_close(frames[1, 2], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(x), frames.mean(dim=1))
    torch.testing.assert_close(features["conv5x"].mean(dim=(3, 4)).transpose(1, 2), frames)


def test_frames_of_a_wrong_clip():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 40, 48\): expected \(B, 3, T, H, W\)"):
        build("video", "resnet18_frames").frames(torch.zeros(2, 3, 40, 48))


def test_spectrogram_resnet_equals_the_library():
    encoder = build("audio", "resnet18_audio")
    x = torch.randn(2, 1, 100, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), original_of(encoder, "resnet18")(x), rtol=1e-4, atol=1e-5)
