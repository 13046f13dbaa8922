"""Weights from a file: what every kind of checkpoint looks like, made here, and what is refused."""

import pytest
import torch
import torchvision
from pytorchvideo.models import hub
from safetensors.torch import save_file
from torch import nn

from avssl.config import ModelConfig, from_dict, with_overrides
from avssl.models import build_encoder
from avssl.training.loop import train
from avssl.weights.load import load_run
from tests.support.runs import TINY

VIDEO = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
SMALL = {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125}


def test_torchvision_checkpoint(tmp_path):
    original = torchvision.models.video.mc3_18(weights=None).eval()
    torch.save(original.state_dict(), tmp_path / "mc3_18.pth")
    encoder = build_encoder("video", ModelConfig(video="mc3_18", video_weights=str(tmp_path / "mc3_18.pth"))).eval()
    original.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(encoder(VIDEO), original(VIDEO))


def test_pytorchvideo_checkpoint(tmp_path):
    original = hub.x3d_xs(pretrained=False).eval()
    torch.save({"model_state": original.state_dict(), "epoch": 3}, tmp_path / "X3D_XS.pyth")
    encoder = build_encoder("video", ModelConfig(video="x3d_xs", video_weights=str(tmp_path / "X3D_XS.pyth"))).eval()
    original.blocks[5].pool.pool = nn.AdaptiveAvgPool3d(1)
    original.blocks[5].proj = original.blocks[5].activation = None
    with torch.no_grad():
        torch.testing.assert_close(encoder(VIDEO), original(VIDEO))


@pytest.mark.parametrize(
    "wrapper, prefix, file",
    [
        ("model", "module.{}_model.", "avid.pth.tar"),  # AVID-CMA
        (None, "{}.", "encoders.safetensors"),  # avssl, exported
        ("model", "encoders.{}.", "last.pt"),  # avssl, a run
        ("state_dict", "module.", "one_tower.pth"),
    ],
)
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_two_tower_checkpoints(tmp_path, modality, wrapper, prefix, file):
    encoders = {name: build_encoder(name, ModelConfig(**SMALL)) for name in ("video", "audio")}
    if "{}" not in prefix:
        encoders = {modality: encoders[modality]}
    weights = {name: encoder.state_dict() for name, encoder in encoders.items()}
    state = {f"{prefix.format(name)}{key}": value for name, own in weights.items() for key, value in own.items()}
    if wrapper is None:
        save_file(state, tmp_path / file)
    else:
        torch.save({wrapper: state}, tmp_path / file)
    encoder = build_encoder(modality, ModelConfig(**SMALL, **{f"{modality}_weights": str(tmp_path / file)}))
    for key, value in weights[modality].items():
        assert torch.equal(encoder.state_dict()[key], value), key


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "backbone.", "module._orig_mod.", "model.net._orig_mod.trunk.", "encoder_q.module."]
)
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_any_one_prefix_is_found_and_said(tmp_path, capsys, modality, prefix):
    weights = build_encoder(modality, ModelConfig(**SMALL)).state_dict()
    others = {"head.weight": torch.zeros(2)} if "mod" not in prefix else {}
    torch.save({f"{prefix}{key}": value for key, value in weights.items()} | others, tmp_path / "w.pt")
    encoder = build_encoder(modality, ModelConfig(**SMALL, **{f"{modality}_weights": str(tmp_path / "w.pt")}))
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in weights.items())
    plain = prefix.replace("_orig_mod.", "").removeprefix("module.")
    said = f"w.pt: names begin with {plain}; {len(others)} others are left out"
    assert (said in capsys.readouterr().err) == bool(plain)


def test_two_networks_in_one_file_are_not_guessed(tmp_path):
    weights = build_encoder("video", ModelConfig(**SMALL)).state_dict()
    torch.save({f"{name}.{key}": value for name in ("q", "k") for key, value in weights.items()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w.pt holds 2 such networks, under q\. and k\.: give a file of one"):
        build_encoder("video", ModelConfig(**SMALL, video_weights=str(tmp_path / "w.pt")))


def _drop_one(state):
    del state["conv1.0.weight"]


def _add_one(state):
    state["extra.weight"] = torch.zeros(1)


def _reshape_one(state):
    state["conv1.1.bias"] = torch.zeros(5)


def _break_one(state):
    state["conv1.0.weight"][0, 0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    "change, match",
    [
        (_break_one, r"conv1.0.weight holds NaN or infinity \(1 such entries\): the training failed, or the file"),
        (_drop_one, r"has no conv1.0.weight \(1 of \d+ entries missing\): choose the file of this network"),
        (_add_one, r"has extra.weight, which the encoder has not \(1 such entries\)"),
        (_reshape_one, r"conv1.1.bias is \(5,\), in the encoder \(8,\) \(1 such entries\)"),
    ],
)
def test_weights_of_another_network(tmp_path, change, match):
    state = build_encoder("video", ModelConfig(**SMALL)).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"model.video_weights=.*w.pt.*{match}"):
        build_encoder("video", ModelConfig(**SMALL, video_weights=str(tmp_path / "w.pt")))


class Unpickled:
    """Not a tensor: reading it would run code."""


@pytest.mark.parametrize("content", ["nothing", "text", "object", "no tensors", "a list"])
def test_files_that_are_no_weights(tmp_path, content):
    path, match = tmp_path / "w.pt", "cannot be used"
    if content == "nothing":
        match = "does not exist: give the path of a local file"
    elif content == "text":
        path.write_text("weights")
    elif content == "object":
        torch.save({"model": Unpickled()}, path)
    else:
        torch.save({"epoch": 3} if content == "no tensors" else [torch.zeros(1)], path)
        match = "holds no weights"
    with pytest.raises(ValueError, match=f"model.audio_weights=.*w.pt.* {match}") as error:
        build_encoder("audio", ModelConfig(audio_weights=str(path)))
    assert "\n" not in str(error.value)


def test_damaged_safetensors(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 3)
    with pytest.raises(ValueError, match="cannot be used"):
        build_encoder("video", ModelConfig(video_weights=str(tmp_path / "w.safetensors")))


def test_weights_besides_an_earlier_run(tmp_path):
    model = ModelConfig(video_weights=str(tmp_path / "w.pt"), init="runs/avid")
    with pytest.raises(ValueError, match=r"model.video_weights=.* and model.init=runs/avid both say"):
        build_encoder("video", model)


def test_a_run_needs_the_file_only_to_start(clip_set, tmp_path):
    small = [f"model.{key}={value}" for key, value in SMALL.items()]
    start = build_encoder("video", ModelConfig(**SMALL))
    torch.save(start.state_dict(), tmp_path / "w.pt")
    given = [
        *TINY, *small, f"data.manifest={clip_set.root / 'manifest.parquet'}", f"run.dir={tmp_path / 'run'}",
        f"model.video_weights={tmp_path / 'w.pt'}",
    ]  # fmt: skip
    plain = with_overrides({}, given)
    with pytest.raises(ValueError, match="both say"):
        train(from_dict(plain | {"model": plain["model"] | {"init": "runs/avid"}}, source="test"))
    assert not train(from_dict(plain | {"run": plain["run"] | {"max_steps": 1}}, source="test"))
    before = load_run(tmp_path / "run", trained=False).method.encoders["video"].state_dict()
    assert all(torch.equal(before[key], value) for key, value in start.state_dict().items())
    (tmp_path / "w.pt").unlink()
    assert train(from_dict(plain, source="test"))  # goes on
    load_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"w.pt does not exist"):
        load_run(tmp_path / "run", trained=False)
