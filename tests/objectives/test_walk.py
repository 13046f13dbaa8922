"""walk_loss against the recorded number of videowalk, a float64 transcription of its definition, and its rules."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed
from avssl.objectives.walk import walk_accuracy, walk_loss
from tests.support.ranks import on_ranks

FIXTURES = Path(__file__).parents[1] / "fixtures"


def random_nodes(seed: int, *shape: int, alike: float = 0.0) -> Tensor:
    """Unit vectors (B, T, N, D); `alike` adds a part that a node keeps over time."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(shape[0], 1, *shape[2:], generator=generator)
    return F.normalize(torch.randn(shape, generator=generator) + alike * kept, dim=3)


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_loss(nodes: Tensor, temperature: float, there: Tensor | None = None, back: Tensor | None = None) -> Tensor:
    """The definition, chain by chain and clip by clip in float64. there, back: (B, T - 1, N, N) bool, edges cut."""
    nodes = nodes.double()
    costs = []
    for b, clip in enumerate(nodes):
        steps, returns = [], []
        for t in range(len(clip) - 1):
            affinity = clip[t] @ clip[t + 1].T
            for rows, cut, found in ((affinity, there, steps), (affinity.T, back, returns)):
                weights = (rows / temperature).exp()
                if cut is not None:
                    weights = torch.where(cut[b, t], 0.0, weights)
                    weights = torch.where(cut[b, t].all(dim=1, keepdim=True), 1.0, weights)
                found.append(weights / weights.sum(dim=1, keepdim=True))
        for i in range(1, len(steps)):
            chain = torch.eye(clip.shape[1], dtype=torch.float64)
            for step in [*steps[: i + 1], *reversed(returns[: i + 1])]:
                chain = chain @ step
            costs.append(F.cross_entropy((chain + 1e-20).log(), torch.arange(len(chain))))
    return torch.stack(costs).mean()


def gradient(loss: Tensor, nodes: Tensor) -> Tensor:
    return torch.autograd.grad(loss, nodes)[0]


def test_loss_equals_the_recorded_one_of_videowalk() -> None:
    recorded = np.load(FIXTURES / "walk.npz")
    loss = walk_loss(torch.from_numpy(recorded["nodes"]), temperature=0.05)
    assert loss.item() == pytest.approx(float(recorded["loss"][0]), rel=1e-5)


@pytest.mark.parametrize(
    "seed, shape, temperature, alike",
    [
        (0, (2, 3, 2, 4), 0.05, 0.0),
        (1, (3, 4, 49, 128), 0.05, 0.5),
        (2, (1, 8, 7, 16), 0.07, 1.0),
        (3, (4, 5, 25, 32), 0.5, 3.0),
        (4, (2, 4, 9, 3), 0.01, 0.0),
    ],
)
def test_value_and_gradient_equal_the_definition_in_float64(seed, shape, temperature, alike) -> None:
    nodes = random_nodes(seed, *shape, alike=alike).requires_grad_()
    loss, expected = walk_loss(nodes, temperature=temperature), naive_loss(nodes, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    ours, theirs = gradient(loss, nodes), gradient(expected, nodes)
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


def test_walks_that_never_return_stay_finite() -> None:
    """Every node flees to the opposite side: returns are as unlikely as float32 can tell, or less."""
    nodes = F.normalize(torch.eye(4).repeat(1, 3, 1, 1), dim=3)
    nodes[:, 1] = -nodes[:, 1]
    nodes.requires_grad_()
    loss = walk_loss(nodes, temperature=0.01)
    assert 0 < loss.item() <= -math.log(1e-20) + 1e-3
    assert torch.isfinite(gradient(loss, nodes)).all()


def test_equal_nodes_walk_anywhere_and_distinct_ones_home() -> None:
    same = torch.ones(2, 4, 9, 5) / math.sqrt(5)
    assert walk_loss(same, temperature=0.05).item() == pytest.approx(math.log(9), rel=1e-5)
    home = torch.eye(9).repeat(2, 4, 1, 1)
    assert walk_loss(home, temperature=0.05).item() < 1e-5
    assert float(walk_accuracy(home, temperature=0.05)) == 1
    assert 0.5 < float(walk_accuracy(random_nodes(0, 8, 4, 20, 32, alike=1.0), temperature=0.05)) < 1


@pytest.mark.parametrize("dropout", [0.3, 0.9])
def test_edges_are_cut_independently_on_either_way(dropout: float) -> None:
    """0.9 leaves some of the rows of 6 without any edge: they walk to any node."""
    nodes = random_nodes(5, 3, 4, 6, 16, alike=1.0).requires_grad_()
    generator = keyed(7)
    there, back = (
        distributed.uniform_rows(3, 3, 6, 6, generator=generator, device=nodes.device) < dropout for _ in range(2)
    )
    assert there.all(dim=3).any() == (dropout == 0.9)
    loss = walk_loss(nodes, temperature=0.05, dropout=dropout, generator=keyed(7))
    expected = naive_loss(nodes, 0.05, there, back)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    ours, theirs = gradient(loss, nodes), gradient(expected, nodes)
    assert torch.isfinite(ours).all()
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


def test_dropout_depends_on_the_generator_alone() -> None:
    nodes = random_nodes(6, 2, 4, 9, 16, alike=1.0)
    torch.manual_seed(0)
    one = walk_loss(nodes, temperature=0.05, dropout=0.2, generator=keyed(1))
    torch.manual_seed(1)
    assert torch.equal(one, walk_loss(nodes, temperature=0.05, dropout=0.2, generator=keyed(1)))
    assert not torch.equal(one, walk_loss(nodes, temperature=0.05, dropout=0.2, generator=keyed(2)))
    with pytest.raises(ValueError, match=r"dropout=0.2 needs a generator"):
        walk_loss(nodes, temperature=0.05, dropout=0.2)


def test_float32_under_autocast() -> None:
    nodes = random_nodes(8, 2, 4, 9, 64, alike=1.0)
    plain = walk_loss(nodes, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(walk_loss(nodes, temperature=0.05), plain)
        assert walk_loss(nodes.bfloat16(), temperature=0.05).dtype == torch.float32
        walk_accuracy(nodes, temperature=0.05)
        assert torch.is_autocast_enabled("cpu")


def test_clips_that_could_not_be_read_do_not_count() -> None:
    nodes = random_nodes(9, 4, 4, 9, 16, alike=1.0)
    valid = torch.tensor([True, False, True, False])
    expected, accuracy = (f(nodes[valid], temperature=0.05) for f in (walk_loss, walk_accuracy))
    nodes[~valid] = torch.nan
    nodes.requires_grad_()
    loss = walk_loss(nodes, temperature=0.05, valid=valid)
    assert torch.allclose(loss, expected)
    assert torch.allclose(walk_accuracy(nodes, temperature=0.05, valid=valid), accuracy)
    found = gradient(loss, nodes)
    assert torch.equal(found[~valid], torch.zeros(2, 4, 9, 16))
    assert (found[valid] != 0).any()
    nothing = walk_loss(nodes, temperature=0.05, valid=torch.zeros(4, dtype=torch.bool))
    assert nothing == 0
    assert torch.equal(gradient(nothing, nodes), torch.zeros(4, 4, 9, 16))


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((2, 2, 9, 4), {}, r"nodes of shape \(2, 2, 9, 4\): .* at least 3 frames"),
        ((2, 3, 1, 4), {}, r"and 2 nodes"),
        ((3, 9, 4), {}, r"expected \(B, T, N, D\)"),
        ((2, 3, 9, 4), {"temperature": 0.0}, r"temperature=0.0: expected a positive number"),
        ((2, 3, 9, 4), {"dropout": 1.0}, r"dropout=1.0: expected a fraction of edges in \[0, 1\)"),
        ((2, 3, 9, 4), {"valid": torch.ones(2)}, r"valid is torch.float32 \(2,\): expected bool \(2,\)"),
    ],
)
def test_wrong_arguments_are_refused(shape, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        walk_loss(torch.zeros(shape), **{"temperature": 0.05, "generator": keyed(0), **options})


VALID = torch.tensor([True, True, True, False])  # one clip that does not count, on the second rank


def loss_and_gradient(rows: slice) -> tuple[Tensor, Tensor]:
    nodes = random_nodes(10, 4, 4, 6, 8, alike=1.0)[rows].requires_grad_()
    loss = walk_loss(nodes, temperature=0.05, dropout=0.3, generator=keyed(3), valid=VALID[rows])
    return loss.detach(), gradient(loss, nodes)


def of_two_rows() -> tuple[Tensor, Tensor]:
    first = 2 * distributed.rank()
    return loss_and_gradient(slice(first, first + 2))


@pytest.mark.processes
def test_two_processes_have_the_loss_of_one() -> None:
    parts = on_ranks(2, of_two_rows)
    loss, found = loss_and_gradient(slice(None))
    assert float(sum(part[0] for part in parts) / 2) == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(torch.cat([part[1] for part in parts]) / 2, found, atol=1e-6)
