"""Every encoder by its name: the recorded numbers of AVID-CMA, shapes, gradients in bfloat16, errors."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl.config import ModelConfig
from avssl.models import ENCODERS, build_encoder
from avssl.models.guard import GuardedConv3d
from avssl.models.heads import mlp
from avssl.training.setup import fast_precision

pytestmark = pytest.mark.slow
GOLDEN = np.load(Path(__file__).parents[1] / "fixtures" / "avid_model.npz")
MAPS = ["conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool"]
TOKEN_MAPS = ["patches", "stage1", "stage2", "stage3", "stage4", "pool"]
AUDIO_NAMES = ["conv2d_avid", "conv1d_cpc", "resnet18_audio"]
VIDEO_NAMES = [name for name in ENCODERS if name not in AUDIO_NAMES]
TOKEN_NAMES = ["mvit_v2_s", "swin3d_t", "vit"]


def build(name):
    """The encoder with random weights; the AVID trunks at a quarter of their width."""
    torch.manual_seed(0)
    modality = "audio" if name in AUDIO_NAMES else "video"
    width = 0.25 if name.endswith("avid") else 1
    return build_encoder(modality, ModelConfig(**{modality: name, f"{modality}_width": width}))


def random_input(name, *, num_clips=2, num_frames=4, size=32):
    if name == "s3d":
        num_frames += 3  # it needs five
    shape = (num_clips, 1, size + 8, size + 1) if name in AUDIO_NAMES else (num_clips, 3, num_frames, size, size)
    shape = (num_clips, 1, 100 * size + 7) if name == "conv1d_cpc" else shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def avid_modules():
    """The four modules of the published model, by the prefix that their parameters carry there."""
    return {
        "video_model": build_encoder("video", ModelConfig()),
        "audio_model": build_encoder("audio", ModelConfig()),
        "video_proj": mlp([512, 512, 512, 128]),
        "audio_proj": mlp([512, 512, 512, 128]),
    }


@torch.no_grad()
def fill_by_rule(module, prefix):
    """Weights from the names and shapes alone: the recorded outputs belong to them."""
    for name, tensor in module.state_dict().items():
        wave = np.sin(0.37 * np.arange(tensor.numel()) + zlib.crc32(f"{prefix}.{name}".encode()) % 1000)
        if tensor.dtype == torch.int64:
            wave = 0 * wave
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            wave = 1 + 0.1 * wave
        elif tensor.dim() == 1:
            wave = 0.1 * wave
        else:
            wave = wave * np.sqrt(2 / tensor[0].numel())
        tensor.copy_(torch.from_numpy(wave).reshape(tensor.shape))
    return module.eval()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_outputs_equal_the_recorded_ones(modality, channels_last):
    if modality == "video":
        x = np.sin(0.013 * np.arange(2 * 3 * 8 * 56 * 56)).reshape(2, 3, 8, 56, 56)
        memory_format = torch.channels_last_3d
    else:
        x = np.cos(0.017 * np.arange(2 * 100 * 129)).reshape(2, 1, 100, 129)
        memory_format = torch.channels_last
    x = torch.from_numpy(x).float()
    modules = avid_modules()
    encoder = fill_by_rule(modules[f"{modality}_model"], f"{modality}_model")
    head = fill_by_rule(modules[f"{modality}_proj"], f"{modality}_proj")
    if channels_last:
        encoder, x = encoder.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
    with torch.no_grad():
        features = encoder.forward_features(x)
        embedding = head(encoder(x))
    compared = 0
    for name, feature in features.items():
        if f"{modality}.{name}.mean" in GOLDEN:
            mean = feature.flatten(2).mean(dim=2) if feature.dim() > 2 else feature  # (B, C)
            np.testing.assert_allclose(mean.numpy(), GOLDEN[f"{modality}.{name}.mean"], rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared == {"video": 6, "audio": 5}[modality]
    np.testing.assert_allclose(embedding.numpy(), GOLDEN[f"{modality}_embedding"], rtol=1e-4, atol=1e-5)


def test_state_dict_has_the_published_names_and_shapes():
    published = [line.split(" ") for line in str(GOLDEN["state_dict"]).split("\n")]
    ours = [
        [f"{prefix}.{name}", "x".join(map(str, tensor.shape))]
        for prefix, module in avid_modules().items()
        for name, tensor in module.state_dict().items()
    ]
    assert ours == published


def test_number_of_parameters_at_full_size():
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in avid_modules().items()}
    assert counts == {
        "video_model": 15_379_136,
        "audio_model": 4_725_696,
        "video_proj": 590_976,
        "audio_proj": 590_976,
    }


def test_audio_maps_of_two_seconds():
    with torch.no_grad():
        features = build_encoder("audio", ModelConfig()).forward_features(torch.randn(1, 1, 200, 257))
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "conv1": (64, 100, 129),
        "conv2x": (64, 50, 65),
        "conv3x": (128, 25, 33),
        "conv4x": (256, 13, 17),
        "conv5x": (512, 13, 17),
        "pool": (512,),
    }


@pytest.mark.parametrize("size, num_frames, last", [(32, 4, (1, 1, 1)), (64, 8, (1, 2, 2)), (56, 16, (2, 2, 2))])
def test_video_maps_of_small_pictures(size, num_frames, last):
    with torch.no_grad():
        features = build("r2plus1d_avid").forward_features(torch.randn(2, 3, num_frames, size, size))
    assert features["conv1"].shape == (2, 16, num_frames, size // 4, size // 4)
    assert features["conv5x"].shape == (2, 128, *last)


@pytest.mark.parametrize("num_frames, size", [(4, 32), (7, 50)])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_says_what_it_returns(name, num_frames, size):
    encoder, x = build(name).eval(), random_input(name, num_frames=num_frames, size=size)
    with torch.no_grad():
        features = encoder.forward_features(x)
        output = encoder(x)
    assert list(features) == list(encoder.feature_dims) == (TOKEN_MAPS if name in TOKEN_NAMES else MAPS)
    for map_name, feature in features.items():
        assert feature.shape[:2] == (2, encoder.feature_dims[map_name])
        assert feature.dim() == (2 if map_name == "pool" else x.dim())
    assert output.shape == (2, encoder.dim)
    assert torch.equal(output, features["pool"])
    assert output.std() > 0


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_takes_its_smallest_input(name):
    encoder = build(name).eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, encoder.in_channels, *encoder.min_size)).shape == (2, encoder.dim)
    for axis, least in enumerate(encoder.min_size):
        if least > 1:
            size = [*encoder.min_size]
            size[axis] -= 1
            with pytest.raises(ValueError, match=r"too small, expected at least .* use larger frames or longer"):
                encoder(torch.zeros(2, encoder.in_channels, *size))


@pytest.mark.parametrize("name", ENCODERS)
def test_training_twice_gives_the_same(name):
    encoder, x = build(name).train(), random_input(name)
    with torch.no_grad():
        assert torch.equal(encoder(x), encoder(x))  # no dropout, no stochastic depth


@pytest.mark.parametrize("name", ["r2plus1d_avid", "r3d_18"])
def test_channels_last_gives_the_same_gradients(name):
    encoder, x = build(name).eval(), random_input(name)
    expected = parameter_gradients(encoder, x)
    encoder = encoder.to(memory_format=torch.channels_last_3d)
    actual = parameter_gradients(encoder, x.contiguous(memory_format=torch.channels_last_3d))
    for parameter, gradient in expected.items():
        assert (actual[parameter] - gradient).norm() < 1e-2 * gradient.norm(), parameter


@pytest.mark.parametrize(  # two frames in the stem and first stages, or behind one temporal stride
    "name, num_frames", [(name, frames) for name in ENCODERS for frames in ([2, 4] if name in VIDEO_NAMES else [1])]
)
def test_bfloat16_gradients_agree_with_float32(name, num_frames):
    if not name.endswith("avid") and fast_precision(torch.device("cpu")) == "float32":
        pytest.skip("bfloat16 is slow here, and run.precision=auto is float32")
    encoder = build(name).eval()  # batch statistics of a few clips would amplify the rounding
    reach_every_parameter(encoder, name)
    x = random_input(name, num_clips=4, num_frames=num_frames, size=64 if name in TOKEN_NAMES else 32)
    expected = parameter_gradients(encoder, x)
    actual = parameter_gradients(encoder, x, bfloat16=True)
    for parameter, gradient in expected.items():
        assert actual[parameter].isfinite().all(), parameter
        if parameter.endswith("pool_k.norm_act.0.bias"):
            continue  # all keys moved alike leave the attention as it is: the gradient is zero but for rounding
        cosine = (actual[parameter] / actual[parameter].norm() * (gradient / gradient.norm())).sum()
        assert cosine > 0.98, f"{parameter}: cosine {cosine:.4f}"
        assert actual[parameter].norm() / gradient.norm() == pytest.approx(1, abs=0.1), parameter


@torch.no_grad()
def reach_every_parameter(encoder, name):
    """pytorchvideo starts its residual branches at zero, behind which no gradient comes; torchvision starts S3D so
    small that the signal fades where no batch statistics restore it.
    """
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm3d) and not module.weight.any():
            module.weight.fill_(0.2)
        if isinstance(module, nn.Conv3d) and name == "s3d":
            nn.init.kaiming_normal_(module.weight)


def parameter_gradients(encoder, x, *, bfloat16=False):
    """Of a mean over every map: the pooled output alone follows single maxima, which rounding moves. Channels weigh
    differently, as their plain mean behind a LayerNorm is constant.
    """
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        features = encoder.forward_features(x)
    total = 0
    for feature in features.values():
        weight = torch.linspace(0.5, 1.5, feature.shape[1])  # (C,)
        total = total + (feature.float().movedim(1, -1) * weight).mean()
    total.backward()
    return {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_every_padded_convolution_is_guarded(name):
    padded = [m for m in build(name).modules() if isinstance(m, nn.Conv3d) and any(m.padding)]
    assert padded or name.endswith("frames") or name in ("swin3d_t", "vit")
    assert all(isinstance(m, GuardedConv3d) for m in padded)


@pytest.mark.parametrize("depth, num_blocks", [(10, 1), (18, 2)])
@pytest.mark.parametrize(
    "width, channels", [(0.25, (16, 32, 64, 128)), (0.3, (16, 32, 64, 128)), (0.01, (8, 16, 32, 64))]
)
def test_depth_and_width(depth, num_blocks, width, channels):
    video = build_encoder("video", ModelConfig(video_depth=depth, video_width=width))
    audio = build_encoder("audio", ModelConfig(audio_width=width))
    for encoder in (video, audio):
        assert tuple(encoder.feature_dims.values()) == (channels[0], *channels, channels[-1])
        assert encoder.dim == channels[-1]
    assert len(video.conv3x) == num_blocks


@pytest.mark.parametrize(
    "modality, model, match",
    [
        ("video", ModelConfig(video="r2plus1d_avd"), "model.video=r2plus1d_avd .* did you mean r2plus1d_avid"),
        ("video", ModelConfig(video="zzz"), "known encoders: r2plus1d_avid, "),
        ("video", ModelConfig(video="conv2d_avid"), "is an encoder for audio"),
        ("audio", ModelConfig(audio="resnet18_frames"), "is an encoder for video"),
        ("audio", ModelConfig(audio="r2plus1d_avid"), "is an encoder for video"),
        ("text", ModelConfig(), "modality='text'"),
        ("video", ModelConfig(video_depth=34), "depth=34: expected one of 10, 18"),
        ("audio", ModelConfig(audio_depth=18), "depth=18: expected 10"),
        ("video", ModelConfig(video="r3d_18", video_width=0.5), "r3d_18 with .* own depth .* leave the depth null"),
        (
            "video",
            ModelConfig(video="x3d_s", video_depth=18),
            "x3d_s with depth=18.* own depth and width only",
        ),
    ],
)
def test_wrong_configuration(modality, model, match):
    with pytest.raises(ValueError, match=match):
        build_encoder(modality, model)


@pytest.mark.parametrize(
    "name, shape, match",
    [
        ("r2plus1d_avid", (2, 3, 64, 64), r"shape \(2, 3, 64, 64\): expected \(B, 3, T, H, W\)"),
        ("r2plus1d_avid", (2, 8, 3, 64, 64), "3 channel"),
        ("r2plus1d_avid", (2, 3, 8, 64, 31), "too small"),
        ("r3d_18", (2, 3, 8, 15, 15), "too small"),
        ("conv2d_avid", (2, 40, 33), r"expected \(B, 1, S, F\)"),
        ("conv2d_avid", (2, 3, 40, 33), "1 channel"),
        ("conv2d_avid", (2, 1, 40, 15), "too small"),
    ],
)
def test_wrong_input(name, shape, match):
    with pytest.raises(ValueError, match=match):
        build(name)(torch.zeros(shape))


def test_vit_knows_where_its_tokens_are_and_has_no_batchnorm():
    encoder = build_encoder("video", ModelConfig(video="vit", video_depth=4, video_width=0.25)).eval()
    assert encoder.dim == 96
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    x = random_input("vit", num_frames=8, size=40)
    features = encoder.forward_features(x)
    assert {tuple(feature.shape[2:]) for name, feature in features.items() if name != "pool"} == {(4, 5, 5)}
    moved = x.roll((2, 8, 8), dims=(2, 3, 4))  # whole tubelets, which change places alone
    assert not torch.allclose(encoder(moved), features["pool"], atol=1e-4)
    assert torch.allclose(
        encoder.patches(moved).mean(dim=(2, 3, 4)), features["patches"].mean(dim=(2, 3, 4)), atol=1e-5
    )
    torch.testing.assert_close(encoder(x[:1]), features["pool"][:1])  # clips do not see each other
    with pytest.raises(ValueError, match=r"vit depth=6, width=1\.0: expected a multiple of 4"):
        build_encoder("video", ModelConfig(video="vit", video_depth=6))
