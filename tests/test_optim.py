"""Learning rates at the steps where they turn, and which decay is coupled."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl.config import OptimConfig
from avssl.training.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from avssl.training.setup import to_channels_last

FIXTURES = Path(__file__).parent / "fixtures"


def named(parameters: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer{i}.weight", parameter) for i, parameter in enumerate(parameters)]


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
    optimizer = build_optimizer([("weight", parameter)], OptimConfig(name=name, lr=0.1, weight_decay=0.01))
    parameter.grad = torch.zeros(3)
    optimizer.step()
    expected = 2.0 - 0.1 if coupled else 2.0 * (1 - 0.1 * 0.01)
    assert torch.allclose(parameter, torch.full((3,), expected), atol=1e-4)


def test_sgd_has_momentum() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(
        [("weight", parameter)], OptimConfig(name="sgd", lr=1.0, momentum=0.5, weight_decay=0.0)
    )
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
    optimizer = build_optimizer(named(parameters), LARS)
    for step in range(3):
        set_gradients(parameters, recorded, step)
        optimizer.step()
    for parameter, name in zip(parameters, ("matrix", "vector"), strict=True):
        torch.testing.assert_close(parameter.detach(), recorded[f"{name}_after"], rtol=1e-5, atol=1e-7)


def test_lars_takes_plain_steps_where_a_norm_is_zero() -> None:
    """A layer that starts at zero has no size to adapt to; one without gradient and decay stays where it is."""
    still, zero = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer(named([still, zero]), OptimConfig(name="lars", lr=0.5, weight_decay=0.0))
    still.grad, zero.grad = torch.zeros(2, 2), torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars", "larc"])
def test_a_restored_optimizer_continues_bit_equal(recorded: dict[str, torch.Tensor], name: str) -> None:
    parameters = recorded_parameters(recorded)
    optimizer = build_optimizer(named(parameters), OptimConfig(name=name, lr=0.3, weight_decay=0.01))
    for step in range(2):
        set_gradients(parameters, recorded, step)
        optimizer.step()
    others = copy.deepcopy(parameters)
    restored = build_optimizer(named(others), OptimConfig(name=name, lr=0.1, weight_decay=0.01))
    load_optimizer_state(restored, copy.deepcopy(optimizer_state(optimizer)))
    set_learning_rate(restored, 0.3, peak=0.3)
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
            optimizer = build_optimizer([("weight", weight)], OptimConfig(name="adam", lr=0.1, weight_decay=0.01))
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.conv3d(inputs, weight).square().mean().backward()
            optimizer.step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-5)


def test_larc_takes_the_norms_of_gradient_and_decay_apart_and_covers_every_parameter() -> None:
    """One step by hand, in float64."""
    matrix, vector = torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])
    parameters = [nn.Parameter(matrix.clone()), nn.Parameter(vector.clone())]
    optim = OptimConfig(name="larc", lr=0.5, weight_decay=0.1, momentum=0.9)
    optimizer = build_optimizer(named(parameters), optim)
    gradients = [torch.tensor([[0.6, -0.8]]), torch.tensor([4.0])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    for parameter, start, gradient in zip(parameters, (matrix, vector), gradients, strict=True):
        rate = 0.001 * start.norm() / (gradient.norm() + 0.1 * start.norm())
        torch.testing.assert_close(parameter.detach(), start - 0.5 * rate * (gradient + 0.1 * start))


def test_norms_and_biases_decay_only_where_asked() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for decays in (True, False):
        optimizer = build_optimizer(model.named_parameters(), OptimConfig(decay_norm_and_bias=decays, weight_decay=0.5))
        decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
        axis = 0.5 if decays else 0.0
        assert decay == {"0.weight": 0.5, "0.bias": axis, "1.weight": axis, "1.bias": axis}


def test_groups_have_their_own_rates() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    scales = {"b.": 0.5, "c.weight": "constant"}
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(lr=0.2), lr_scales=scales)
    set_learning_rate(optimizer, 0.1, peak=0.2)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    expected = {"a.weight": 0.1, "a.bias": 0.1, "b.weight": 0.05, "b.bias": 0.05, "c.weight": 0.2, "c.bias": 0.1}
    assert rates == expected
    with pytest.raises(ValueError, match=r"lr_scales names d\., but no parameter's name begins so"):
        build_optimizer(model.named_parameters(), OptimConfig(), lr_scales={"d.": 1.0})


def test_state_finds_its_parameter_by_name() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([("a", first), ("b", second)], OptimConfig(name="sgd", lr=0.1))
    first.grad, second.grad = torch.ones(2), 2 * torch.ones(3)
    optimizer.step()
    state = optimizer_state(optimizer)
    other = build_optimizer([("b", second), ("c", nn.Parameter(torch.ones(4))), ("a", first)], OptimConfig(name="sgd"))
    load_optimizer_state(other, state)
    for name in ("a", "b"):
        assert torch.equal(optimizer_state(other)[name]["momentum_buffer"], state[name]["momentum_buffer"])
    with pytest.raises(ValueError, match="the optimizer's state is of b, which is no parameter of this model"):
        load_optimizer_state(build_optimizer([("a", first)], OptimConfig(name="sgd")), state)


def test_rates_scale_with_the_batch_and_end_where_asked() -> None:
    optim = OptimConfig(lr_per_256=0.2, final_lr=0.01, schedule="cosine", epochs=2)
    found = [learning_rate(step, steps_per_epoch=10, optim=optim, batch_size=512) for step in (0, 10, 20)]
    assert found == pytest.approx([0.4, 0.205, 0.01])


def test_sgd_takes_parameters_that_get_their_first_gradient_later() -> None:
    """As prototypes that are frozen at first; also in a run that was resumed meanwhile."""
    first, late = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(named([first, late]), OptimConfig(name="sgd", lr=0.1, weight_decay=0.0))
    first.grad = torch.ones(2, 2)
    optimizer.step()
    restored = build_optimizer(named([first, late]), OptimConfig(name="sgd", lr=0.1, weight_decay=0.0))
    load_optimizer_state(restored, {"layer0.weight": optimizer_state(optimizer)["layer0.weight"]})
    for each in (optimizer, restored):
        first.grad, late.grad = torch.ones(2, 2), torch.ones(2, 2)
        each.step()
    assert torch.allclose(late, torch.full((2, 2), 0.8))


def test_larc_leaves_weights_without_gradient_alone_and_the_longest_prefix_counts() -> None:
    still = nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(named([still]), OptimConfig(name="larc", lr=1.0, weight_decay=0.1))
    still.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(), lr_scales={"head": 2.0, "head.bias": 0.5})
    scales = {name: group["scale"] for group in optimizer.param_groups for name in group["param_names"]}
    assert scales == {"head.weight": 2.0, "head.bias": 0.5}


@pytest.mark.parametrize("starts_last", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars", "larc"])
def test_a_state_goes_on_in_another_memory_layout(name: str, starts_last: bool) -> None:
    """run.channels_last changed between stop and resume: the same steps as without a stop."""

    def made(is_last: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(3, 4, (2, 3, 3)), nn.Conv2d(1, 4, 3), nn.Linear(3, 2))
        to_channels_last(model, enabled=is_last)
        return model, build_optimizer(model.named_parameters(), OptimConfig(name=name, lr=0.1, weight_decay=0.01))

    def step(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(number)
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()

    (whole, optimizer), (other, resumed) = made(starts_last), made(not starts_last)
    for number in range(4):
        if number == 2:
            other.load_state_dict(whole.state_dict())
            load_optimizer_state(resumed, copy.deepcopy(optimizer_state(optimizer)))
        step(number, whole, optimizer)
        if number >= 2:
            step(number, other, resumed)
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert one.dim() < 4 or one.stride() != two.stride()
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
