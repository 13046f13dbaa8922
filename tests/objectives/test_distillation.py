"""BYOL's and SimSiam's losses equal the recorded numbers; the target gets no gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl.objectives.distillation import negative_cosine

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_one_direction_of_byol_equals_the_recorded_loss_and_gradient() -> None:
    recorded = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "families.npz").items()}
    p = recorded["simsiam.p"].clone().requires_grad_()
    loss = 2 + 2 * negative_cosine(p, recorded["simsiam.z"])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(recorded["byol.loss"]), rel=1e-4)
    assert (p.grad - recorded["byol.grad_p"]).norm() <= 1e-4 * recorded["byol.grad_p"].norm()


def test_one_direction_of_simsiam_equals_the_recorded_loss_and_gradient() -> None:
    recorded = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "families.npz").items()}
    p = recorded["simsiam.p"].clone().requires_grad_()
    loss = negative_cosine(p, recorded["simsiam.z"])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(recorded["simsiam.loss"]), rel=1e-4)
    assert (p.grad - recorded["simsiam.grad_p"]).norm() <= 1e-4 * recorded["simsiam.grad_p"].norm()


def test_it_is_half_the_squared_distance_and_counts_the_present_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    p, z = (torch.randn(5, 8, generator=generator).requires_grad_() for _ in range(2))
    present = torch.tensor([True, False, True, True, False])
    distance = (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(dim=1)
    loss = negative_cosine(p, z, present=present)
    torch.testing.assert_close(2 + 2 * loss, distance[present].mean())
    loss.backward()
    assert z.grad is None
    assert not p.grad[~present].any()
    assert p.grad[present].any(dim=1).all()
