"""Learning rates at the steps where they turn, and which decay is coupled."""

import math

import pytest
import torch
from torch import nn

from avssl.config import OptimConfig
from avssl.optim import build_optimizer, learning_rate


def rate(step: int, **settings: object) -> float:
    return learning_rate(step, steps_per_epoch=10, optim=OptimConfig(lr=1.0, epochs=4, **settings))


def test_multistep_drops_at_its_milestones() -> None:
    found = [rate(step, schedule="multistep", milestones=[1, 3], gamma=0.1) for step in (0, 9, 10, 29, 30, 39)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rate(39, schedule="multistep") == 1.0  # the published recipe: constant


def test_warmup_then_cosine() -> None:
    found = [rate(step, schedule="cosine", warmup_epochs=1) for step in range(40)]
    assert found[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert found[10] == 1.0
    assert found[25] == pytest.approx(0.5)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[39] == pytest.approx(0.5 * (1 + math.cos(math.pi * 29 / 30)))


@pytest.mark.parametrize("name, coupled", [("adam", True), ("adamw", False)])
def test_weight_decay_is_coupled_in_adam_only(name: str, coupled: bool) -> None:
    """With no gradient but a decay, coupled Adam takes a full step of lr; decoupled shrinks by lr * decay."""
    parameter = nn.Parameter(torch.full((3,), 2.0))
    optimizer = build_optimizer([parameter], OptimConfig(name=name, lr=0.1, weight_decay=0.01))
    parameter.grad = torch.zeros(3)
    optimizer.step()
    expected = 2.0 - 0.1 if coupled else 2.0 * (1 - 0.1 * 0.01)
    assert torch.allclose(parameter, torch.full((3,), expected), atol=1e-4)


def test_sgd_has_momentum() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], OptimConfig(name="sgd", lr=1.0, momentum=0.5, weight_decay=0.0))
    for expected in (-1.0, -2.5):
        parameter.grad = torch.ones(1)
        optimizer.step()
        assert float(parameter.detach()) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"optim\.name=lion: expected adam, adamw or sgd"):
        build_optimizer([parameter], OptimConfig(name="lion"))
