"""Adapters beside the libraries' own networks with the same weights, and what stays of their names."""

import socket

import pytest
import torch
import torchvision
from pytorchvideo.models import hub
from torch import nn

from avssl.config import ModelConfig
from avssl.models import build_encoder
from avssl.models.adapters import PYTORCHVIDEO, TORCHVISION

PUBLISHED_X3D = {"x3d_xs": (4, 160), "x3d_s": (13, 160), "x3d_m": (16, 224)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an encoder asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def build(name):
    torch.manual_seed(0)
    return build_encoder("video", ModelConfig(video=name)).eval()


def original_of(encoder, name, library):
    """The library's network with the encoder's weights; its classifier is its own until it is taken away."""
    original = (
        getattr(hub, PYTORCHVIDEO[name][0])(pretrained=False)
        if library is hub
        else getattr(torchvision.models.video, name)(weights=None)
    ).eval()
    state = original.state_dict() | encoder.state_dict()
    assert state.keys() == original.state_dict().keys()
    left_out = [key for key in state if key not in encoder.state_dict()]
    assert left_out
    assert all(key.startswith(encoder.classifier) for key in left_out)
    original.load_state_dict(state)
    return original


def random_clip(num_frames, size):
    return torch.randn(1, 3, num_frames, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_X3D)
def test_x3d_at_its_published_size_equals_the_library(name):
    encoder = build(name)
    original = original_of(encoder, name, hub)
    original.blocks[5].proj = original.blocks[5].activation = None
    x = random_clip(*PUBLISHED_X3D[name])
    with torch.no_grad():
        output = encoder(x)
        torch.testing.assert_close(output, original(x))
    assert output.shape == (1, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("name, last", [("slow_r50", (4, 2, 2)), ("csn_r101", (1, 2, 2)), ("r2plus1d_50", (1, 2, 2))])
def test_pytorchvideo_with_a_window_that_fits_equals_the_library(name, last):
    encoder = build(name)
    original = original_of(encoder, name, hub)
    head = original.blocks[5]
    head.proj = head.activation = None
    head.pool = nn.AvgPool3d(last)
    x = random_clip(4, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), original(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, num_frames, size",
    [
        ("r2plus1d_18", 4, 48),
        ("r3d_18", 4, 48),
        ("mc3_18", 4, 48),
        ("s3d", 16, 64),
        ("mvit_v2_s", 8, 64),
        ("swin3d_t", 5, 90),
    ],
)
def test_torchvision_equals_the_library(name, num_frames, size):
    encoder = build(name)
    original = original_of(encoder, name, torchvision)
    if name == "s3d":
        original.avgpool = nn.AvgPool3d(2)  # a window that fits
    elif name == "mvit_v2_s":  # the library believes these instead of looking at the clip
        original.pos_encoding.temporal_size, original.pos_encoding.spatial_size = 4, (16, 16)
    setattr(original, TORCHVISION[name].classifier, nn.Identity())
    x = random_clip(num_frames, size)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), original(x), rtol=1e-4, atol=1e-5)


def test_mvit_uses_where_its_patches_are():
    encoder, x = build("mvit_v2_s"), random_clip(8, 64)
    with torch.no_grad():
        assert not torch.allclose(encoder(x), encoder(x.flip(2)), atol=1e-4)  # the tables are read at this size too
