"""Published checkpoints, made here by the names of their originals: what is recognized, taken over and refused."""

import pickle
import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pytorchvideo.models import hub
from torch import Tensor

from avssl.models.importers import read_checkpoint
from avssl.weights.layouts import from_caffe2, from_slowfast
from avssl.weights.published import _shapes, import_published, read_memory, recognize

GOLDEN = np.load(Path(__file__).parents[1] / "fixtures" / "avid_model.npz")


def by_rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights from a name and a shape alone: the recorded outputs belong to them."""
    wave = np.sin(0.37 * np.arange(int(np.prod(shape))) + zlib.crc32(name.encode()) % 1000).reshape(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        wave = 1 + 0.1 * wave
    elif len(shape) == 1:
        wave = 0.1 * wave
    else:
        wave = wave * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(wave).float()


@pytest.fixture(scope="module")
def avid() -> dict[str, Tensor]:
    """The weights of a published AVID-CMA checkpoint: its names and shapes, filled by the rule."""
    lines = [line.split(" ") for line in str(GOLDEN["state_dict"]).split("\n")]
    shapes = {name: tuple(int(side) for side in shape.split("x") if side) for name, shape in lines}
    return {f"module.{name}": by_rule(name, shape) for name, shape in shapes.items()}


def criterion(score: float = 2.0) -> dict[str, Tensor]:
    return {
        "nce_average.view1_mem": torch.ones(5, 128),
        "nce_average.view2_mem": torch.zeros(5, 128),
        "criterion.avg_exp_score": torch.tensor([score]),
    }


def zeros(names: dict[str, str], encoder: str) -> dict[str, Tensor]:
    """Entries {our name: theirs} without values of their own."""
    return {theirs: torch.zeros(_shapes(encoder)[ours]) for ours, theirs in names.items()}


def slowfast_names() -> dict[str, str]:
    """{our name: SlowFast's} of Slow R50, from what its modules are called: stages s1 to s5, a stem of conv and bn,
    blocks of branch1 and branch2 with the layers a, b and c.
    """
    names = {}
    for name in _shapes("slow_r50"):
        parts = name.split(".")  # blocks.N[.res_blocks.B][.branch2].layer.entry
        stage = f"s{int(parts[1]) + 1}.pathway0"
        if parts[1] == "0":
            layer = {"conv": "conv", "norm": "bn"}[parts[2]]
            names[name] = f"{stage}_stem.{layer}.{parts[3]}"
        elif parts[4] == "branch2":
            kind, letter = parts[5].split("_")
            names[name] = f"{stage}_res{parts[3]}.branch2.{letter}{'_bn' if kind == 'norm' else ''}.{parts[6]}"
        else:
            names[name] = f"{stage}_res{parts[3]}.branch1{'_bn' if 'norm' in parts[4] else ''}.{parts[5]}"
    return names


def test_avid_gives_the_recorded_embeddings(avid: dict[str, Tensor]) -> None:
    found = import_published(avid, path="avid.pth.tar", extras={"train_criterion": criterion()})
    assert (found.layout, found.model.video, found.model.audio) == ("avid_cma", "r2plus1d_avid", "conv2d_avid")
    assert len(found.report.matched) == len(avid) == 267
    assert not found.report.missing + found.report.unexpected + found.report.left_out
    inputs = {
        "video": np.sin(0.013 * np.arange(2 * 3 * 8 * 56 * 56)).reshape(2, 3, 8, 56, 56),
        "audio": np.cos(0.017 * np.arange(2 * 100 * 129)).reshape(2, 1, 100, 129),
    }
    for modality, x in inputs.items():
        with torch.no_grad():
            features = found.encoders[modality].eval()(torch.from_numpy(x).float())
            embedding = found.heads[modality].eval()(features)
        np.testing.assert_allclose(features, GOLDEN[f"{modality}.pool.mean"], atol=1e-4)
        np.testing.assert_allclose(embedding, GOLDEN[f"{modality}_embedding"], atol=1e-4)
    assert {name: value.shape for name, value in found.memory.items()} == {
        "banks.video.z": (5, 128),
        "banks.audio.z": (5, 128),
        "log_z": (),
    }
    assert found.memory["banks.video.z"].all()
    assert found.memory["log_z"].item() == pytest.approx(np.log(2))


def test_an_unset_constant_is_no_memory() -> None:
    assert "log_z" not in read_memory({"train_criterion": criterion(-1.0)})
    assert read_memory({}) == {}


@pytest.mark.parametrize("name", ["r2plus1d_18", "mvit_v2_s"])
def test_torchvision_networks_are_told_apart(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models.video, name)(weights=None).state_dict()
    found = import_published({key: torch.zeros(value.shape) for key, value in state.items()}, path="w.pth")
    assert (found.layout, found.model.video) == ("torchvision", name)
    assert len(found.report.left_out) == 2  # the classifier
    assert found.data["pixel_mean"] == list(torchvision.models.get_model_weights(name).DEFAULT.transforms().mean)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.backbone.", "net.module."])
def test_one_prefix_of_all_names_is_found_and_said(prefix: str) -> None:
    weights = {f"{prefix}{name}": torch.zeros(shape) for name, shape in _shapes("r3d_18").items()}
    found = import_published(weights, path="w.pth")
    assert (found.layout, found.model.video, found.report.missing) == ("torchvision", "r3d_18", [])
    assert found.report.prefix == prefix.replace("_orig_mod.", "")
    weights[f"{prefix}layer1.0.conv1.0.weight"] += float("nan")
    with pytest.raises(ValueError, match=r"w.pth: layer1.0.conv1.0.weight holds NaN or infinity"):
        import_published(weights, path="w.pth")


def test_gdt_and_selavi_give_their_video_encoder() -> None:
    weights = {f"video_network.base.{name}": name for name in _shapes("r2plus1d_18")}
    state = zeros({ours: theirs for theirs, ours in weights.items()}, "r2plus1d_18")
    beside = {name: torch.zeros(1) for name in ("audio_network.base.conv1.weight", "mlp_v0.weight", "mlp_a.bias")}
    found = import_published({f"module.{name}": value for name, value in (state | beside).items()}, path="gdt.pth")
    assert (found.layout, list(found.encoders), len(found.heads)) == ("gdt", ["video"], 0)
    assert found.report.left_out == sorted(beside)
    assert found.data["num_frames"] == 30


def test_slowfast_names() -> None:
    names = slowfast_names()
    assert {from_slowfast(theirs): theirs for theirs in names.values()} == names
    assert recognize([*names.values(), "head.projection.weight"], path="SLOW_8x8_R50.pyth") == "slowfast"
    state = {theirs: torch.full(_shapes("slow_r50")[ours], i) for i, (ours, theirs) in enumerate(names.items())}
    own = {f"backbone.{name}": value for name, value in state.items()}
    beside = {"backbone_hist.s1.pathway0_stem.conv.weight", "queue_x", "ptr", "backbone.head.projection.weight"}
    found = import_published(own | {name: torch.zeros(1) for name in beside}, path="moco.pyth")
    assert (found.layout, found.report.left_out) == ("slowfast", sorted(beside))
    loaded = found.encoders["video"].state_dict()
    assert all(torch.equal(loaded[ours], state[theirs]) for ours, theirs in names.items())


def test_caffe2_names() -> None:
    """The blobs of a .pkl, from SlowFast's names: bn entries end in s, b, rm and riv, and none counts batches."""
    ends = {"bias": "b", "running_mean": "rm", "running_var": "riv"}
    blobs = {}
    for ours, theirs in slowfast_names().items():
        if theirs.endswith("num_batches_tracked"):
            continue
        module, entry = theirs.rsplit(".", 1)
        module = module.replace("s1.pathway0_stem.conv", "conv1").replace("s1.pathway0_stem.bn", "res_conv1_bn")
        for stage in range(2, 6):
            module = module.replace(f"s{stage}.pathway0_res", f"res{stage}_")
        module = module.replace(".branch2.", "_branch2").replace(".branch1", "_branch1")
        blob = f"{module}_{ends.get(entry, 's' if module.endswith('bn') else 'w')}"
        assert from_caffe2(blob) == ours
        blobs[blob] = torch.ones(_shapes("slow_r50")[ours])
    beside = {"pred_w": torch.ones(2, 2), "conv1_w_momentum": torch.ones(2), "lr": torch.ones(1)}
    found = import_published(blobs | beside, path="SLOW_8x8_R50.pkl")
    assert (found.layout, found.report.left_out) == ("caffe2", sorted(beside))
    assert found.encoders["video"].state_dict()["blocks.4.res_blocks.2.branch2.norm_c.bias"].all()


def test_a_pickle_is_read_when_it_is_trusted(tmp_path: Path) -> None:
    paths = {"caffe2": tmp_path / "SLOW.pkl", "torch": tmp_path / "gdt.pth"}
    weights = {"conv1_w": np.ones((2, 3), dtype=np.float32)}
    paths["caffe2"].write_bytes(pickle.dumps({"blobs": weights, "cfg": "text"}, protocol=2))
    torch.save({"model": {"conv1_w": torch.ones(2, 3)}, "args": Namespace(lr=1.0)}, paths["torch"])
    for path in paths.values():
        with pytest.raises(ValueError, match=r"holds more than tensors.*--trust-pickle, which runs whatever code"):
            read_checkpoint(path, named=str(path))
        found, beside = read_checkpoint(path, named=str(path), trust_pickle=True)
        assert torch.equal(found["conv1_w"], torch.ones(2, 3))
        assert set(beside) < {"cfg", "args"}
    paths["torch"].write_text("no pickle")
    with pytest.raises(ValueError, match=r"gdt.pth cannot be used"):
        read_checkpoint(paths["torch"], named=str(paths["torch"]), trust_pickle=True)


def test_pytorchvideo_networks_and_their_byol() -> None:
    with torch.device("meta"):
        names = list(hub.slow_r50(pretrained=False).state_dict())
    own = {name: name for name in names if not name.startswith("blocks.5.")}
    assert recognize(own, path="w.pyth") == "pytorchvideo"
    state = {f"backbone.0.{name}": value for name, value in zeros(own, "slow_r50").items()}
    beside = {"backbone.1.0.weight", "backbone_mmt.0.blocks.0.conv.weight", "predictor.0.weight"}
    found = import_published(state | {name: torch.zeros(1) for name in beside}, path="byol.pyth")
    assert (found.model.video, found.report.left_out) == ("slow_r50", sorted(beside))


def test_x3d_has_to_be_named() -> None:
    state = zeros({name: name for name in _shapes("x3d_s")}, "x3d_s")
    with pytest.raises(ValueError, match=r"w.pyth fits x3d_xs, x3d_s, x3d_m alike: say with --encoder"):
        import_published(state, path="w.pyth")
    assert import_published(state, path="w.pyth", encoder="x3d_s").data["num_frames"] == 13
    with pytest.raises(ValueError, match=r"w.pyth is not of s3d: encoders of its layout are x3d_xs"):
        import_published(state, path="w.pyth", encoder="s3d")


@pytest.mark.parametrize(
    "change, match",
    [
        ({"layer4.1.conv2.0.weight": None}, r"lacks video.layer4.1.conv2.0.weight \(1 such entry\)"),
        ({"layer5.weight": torch.zeros(1)}, r"has, and we have not, layer5.weight \(1 such entry\)"),
        ({"stem.1.bias": torch.zeros(3)}, r"differs in shape: stem.1.bias is \(3,\), here \(64,\)"),
        ({"stem.0.weight": None}, "which are of no known layout: known are avid_cma"),
    ],
)
def test_entries_that_do_not_fit_are_named(change: dict[str, Tensor | None], match: str) -> None:
    state = zeros({name: name for name in _shapes("mc3_18")}, "mc3_18") | change
    with pytest.raises(ValueError, match=f"w.pth.*{match}"):
        import_published({name: value for name, value in state.items() if value is not None}, path="w.pth")
