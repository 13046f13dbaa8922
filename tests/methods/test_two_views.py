"""What two-view methods share: adversarial views, and frame differences as a second modality."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avssl.config import DataConfig
from avssl.methods.base import Encode
from avssl.training.checkpoint import export_encoders
from avssl.transforms.recipes import Clip, Window
from avssl.transforms.views import RECIPES, View
from tests.support.contract import CASES, NUM, batch_of, build, progress

TWO_VIEWS = ("simclr", "moco_v3", "byol", "simsiam", "barlow", "vicreg", "sigreg", "simclr across")


@pytest.mark.parametrize("name, num_parts", [*((name, 1) for name in TWO_VIEWS), ("simclr", 2), ("byol", 2)])
def test_adversarial_views_raise_the_loss_within_their_bound(name: str, num_parts: int) -> None:
    method = build(name, adversarial=0.05, adversarial_steps=2).eval()
    batch = batch_of(method, 0)
    before = {entry: value.clone() for entry, value in method.state_dict().items()}
    with torch.no_grad():  # as a caller may have it
        harder = method.harder(batch, progress(0), num_parts=num_parts)
    for view in method.views:
        change = getattr(harder, view.modality)[view.name] - getattr(batch, view.modality)[view.name]
        assert 0 < float(change.abs().max()) <= 0.05 + 1e-6
    losses = []
    for each in (batch, harder):
        encode = Encode(method.networks, method.views, each)
        losses.append(method.loss(encode, each, progress(0)).loss.item())
    assert losses[1] > losses[0]
    assert method(batch, progress(0)).loss.item() == pytest.approx(losses[1], rel=1e-4)
    assert all(p.grad is None for p in method.parameters())
    assert all(torch.equal(value, before[entry]) for entry, value in method.state_dict().items())


def test_looking_for_harder_views_moves_no_statistics() -> None:
    plain, hard = build("simclr").train(), build("simclr", adversarial=0.0001).train()
    batch = batch_of(plain, 0)
    for method in (plain, hard):
        method(batch, progress(0))
    moved = [dict(method.named_buffers()) for method in (plain, hard)]
    assert all(torch.allclose(moved[0][name], moved[1][name], atol=1e-3) for name in moved[0])
    assert {int(count) for name, count in moved[1].items() if "num_batches" in name} <= {1, 2}  # by heads: two views


def test_frame_differences_by_hand() -> None:
    data = DataConfig(manifest="none", size=32, num_frames=3, jitter=(0, 0, 0, 0), flip=0.0)
    frames = torch.randint(256, (2, 3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip, rng = Clip(64, 64, None, None), np.random.default_rng(0)
    params = RECIPES["differences"].plan(rng, data, clip, Window(0.0)).params
    params = {name: torch.from_numpy(np.stack([value, value])) for name, value in params.items()}
    whole, changes = (RECIPES[name].apply(frames, params, data) for name in ("video", "differences"))
    assert changes.shape == whole.shape
    torch.testing.assert_close(changes[:, :, 1:], whole[:, :, 1:] - whole[:, :, :-1])
    assert torch.equal(changes[:, :, 0], changes[:, :, 1])
    assert (View("x", recipe="differences").network, View("x").network) == ("differences", "video")
    with pytest.raises(ValueError, match=r"data\.num_frames=1: a difference needs 2 frames"):
        RECIPES["differences"].plan(rng, data.replace(num_frames=1), clip, Window(0.0))


@pytest.mark.parametrize("case", ["simclr across differences", "swav across differences"])
def test_the_network_of_differences_learns_and_is_not_exported(case: str, tmp_path: Path) -> None:
    method = build(case).train()
    step = method(batch_of(method, 0), progress(0))
    step.loss.backward()
    assert all(p.grad is not None for p in method.own_encoders["differences"].parameters())
    assert set(step.embeddings) == {"video", "differences"}
    assert set(step.features) == {"video"}
    export_encoders(tmp_path / "encoders.safetensors", method)
    names = load_file(tmp_path / "encoders.safetensors")
    assert names
    assert all(name.startswith("video.") for name in names)


def test_what_joint_cannot_share_is_refused() -> None:
    across = {**CASES["simclr across differences"][1], "name": "simclr"}
    with pytest.raises(ValueError, match=r"parts\.b and a both have a network differences"):
        build("joint", parts={"a": across, "b": across})
    with pytest.raises(ValueError, match=r"method\.parts\.simclr\.adversarial: for a method by itself"):
        build("joint", parts={"simclr": {"adversarial": 0.1}, "byol": {}})
    method = build("joint", parts={"a": across, "infonce": {}}).train()
    batch = batch_of(method, 0)
    method(batch, progress(0)).loss.backward()
    assert all(p.grad is not None for p in method.parts["a"].own_encoders["differences"].parameters())
    silent = dataclasses.replace(batch, has_audio=torch.zeros(NUM, dtype=torch.bool))
    assert method(silent, progress(0)).loss.isfinite()
