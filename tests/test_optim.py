"""Learning rates at the steps where they turn, and which decay is coupled."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl.config import OptimConfig
from avssl.optim import build_optimizer, learning_rate

FIXTURES = Path(__file__).parent / "fixtures"


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
    with pytest.raises(ValueError, match=r"name=lion in OptimConfig: expected one of adam, adamw, sgd, lars, larc"):
        OptimConfig(name="lion")


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(FIXTURES / "lars.npz").items()}


def recorded_parameters(recorded: dict[str, torch.Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(recorded[name].clone()) for name in ("matrix", "vector")]


def set_gradients(parameters: list[nn.Parameter], recorded: dict[str, torch.Tensor], step: int) -> None:
    for parameter, name in zip(parameters, ("matrix", "vector"), strict=True):
        parameter.grad = recorded[f"grad_{name}{step}"].clone()


LARS = OptimConfig(name="lars", lr=0.3, weight_decay=0.01, momentum=0.9)


def test_lars_equals_three_recorded_steps(recorded: dict[str, torch.Tensor]) -> None:
    parameters = recorded_parameters(recorded)
    optimizer = build_optimizer(parameters, LARS)
    for step in range(3):
        set_gradients(parameters, recorded, step)
        optimizer.step()
    for parameter, name in zip(parameters, ("matrix", "vector"), strict=True):
        torch.testing.assert_close(parameter.detach(), recorded[f"{name}_after"], rtol=1e-5, atol=1e-7)


def test_lars_takes_plain_steps_where_a_norm_is_zero() -> None:
    """A layer that starts at zero has no size to adapt to; one without gradient and decay stays where it is."""
    still, zero = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer([still, zero], OptimConfig(name="lars", lr=0.5, weight_decay=0.0))
    still.grad, zero.grad = torch.zeros(2, 2), torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_a_restored_optimiser_continues_bit_equal(recorded: dict[str, torch.Tensor], name: str) -> None:
    parameters = recorded_parameters(recorded)
    optimizer = build_optimizer(parameters, OptimConfig(name=name, lr=0.3, weight_decay=0.01))
    for step in range(2):
        set_gradients(parameters, recorded, step)
        optimizer.step()
    others = copy.deepcopy(parameters)
    restored = build_optimizer(others, OptimConfig(name=name, lr=0.1))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, chosen in ((optimizer, parameters), (restored, others)):
        set_gradients(chosen, recorded, 2)
        each.step()
    assert all(torch.equal(*pair) for pair in zip(parameters, others, strict=True))


def test_fused_adam_moves_channels_last_weights_as_the_plain_one_does() -> None:
    """A fused step walks through memory: weight, gradient and moments must lie there alike."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, 2, 3, 3, generator=generator)
    inputs = torch.randn(2, 3, 4, 5, 5, generator=generator)
    moved = []
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        weight = nn.Parameter(start.clone(memory_format=memory_format))
        optimizer = torch.optim.Adam([weight], lr=0.1, weight_decay=0.01)
        if memory_format == torch.channels_last_3d:
            optimizer = build_optimizer([weight], OptimConfig(name="adam", lr=0.1, weight_decay=0.01))
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.conv3d(inputs, weight).square().mean().backward()
            optimizer.step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-5)
