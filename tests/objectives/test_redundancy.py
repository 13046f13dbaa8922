"""Barlow Twins, VICReg and SIGReg: recorded numbers, definitions, rows that do not count."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.objectives.redundancy import barlow, sigreg, vicreg_terms

FIXTURES = Path(__file__).parents[1] / "fixtures"
WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(FIXTURES / "redundancy.npz").items()}


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().float().requires_grad_()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_barlow_equals_the_recorded_loss_and_gradient(recorded: dict[str, torch.Tensor]) -> None:
    a, b = leaf(recorded["barlow.z_a"]), leaf(recorded["barlow.z_b"])
    loss = barlow(a, b)
    loss.backward()
    torch.testing.assert_close(loss.detach(), recorded["barlow.loss"].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(a.grad, recorded["barlow.grad_a"].float(), rtol=1e-4, atol=1e-6)


def test_vicreg_equals_the_recorded_terms_and_gradients(recorded: dict[str, torch.Tensor]) -> None:
    x, y = leaf(recorded["vicreg.x"]), leaf(recorded["vicreg.y"])
    terms = vicreg_terms(x, y)
    for name, term in terms.items():
        torch.testing.assert_close(term.detach(), recorded[f"vicreg.{name}"].float(), rtol=1e-5, atol=0)
        (grad,) = torch.autograd.grad(term, x, retain_graph=True)
        torch.testing.assert_close(grad, recorded[f"vicreg.{name}_grad_x"].float(), rtol=1e-4, atol=1e-6)
    loss = sum(WEIGHTS[name] * term for name, term in terms.items())
    loss.backward()
    torch.testing.assert_close(loss.detach(), recorded["vicreg.loss"].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(y.grad, recorded["vicreg.grad_y"].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case, options", [("sigreg", {}), ("sigreg_wide", {"num_points": 21, "max_t": 5.0})])
def test_sigreg_equals_the_recorded_statistic_and_gradient(
    recorded: dict[str, torch.Tensor], case: str, options: dict[str, float]
) -> None:
    x, directions = leaf(recorded[f"{case}.x"]), recorded[f"{case}.directions"]
    loss = sigreg(x, directions, **options)
    loss.backward()
    torch.testing.assert_close(loss.detach(), recorded[f"{case}.loss"].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(x.grad, recorded[f"{case}.grad"].float(), rtol=1e-4, atol=1e-6)
    each = [sigreg(x.detach(), directions[:, [s]], **options) for s in range(directions.shape[1])]
    torch.testing.assert_close(torch.stack(each), recorded[f"{case}.per_direction"].float(), rtol=1e-5, atol=1e-7)


def test_sigreg_knows_a_normal_distribution_from_others() -> None:
    directions = torch.nn.functional.normalize(drawn(8, 32, seed=1), dim=0)
    normal = drawn(4000, 8)
    others = {
        "wide": 2 * normal,
        "moved": normal + 0.5,
        "collapsed": normal[:1].expand_as(normal),
        "signs": normal.sign(),
    }
    least = float(sigreg(normal, directions))
    assert least < 5  # a test statistic: of the order of 1 for any number of rows
    assert all(float(sigreg(x, directions)) > 2 * least for x in others.values())


def test_barlow_is_zero_for_equal_uncorrelated_views_and_largest_for_opposite_ones() -> None:
    x = torch.linalg.qr(drawn(64, 8) - drawn(64, 8).mean(dim=0))[0]
    x = torch.linalg.qr(x - x.mean(dim=0))[0]  # centered columns at right angles
    assert float(barlow(x, x, eps=0)) == pytest.approx(0, abs=1e-4)
    assert float(barlow(x, -x, eps=0)) == pytest.approx(4 * 8, rel=1e-4)


def test_barlow_in_closed_form_where_it_would_collapse() -> None:
    """Constants correlate with nothing once they are centered, so they cost D; not centered all D^2 correlations are 1,
    which costs weight D (D - 1) and is cheaper while weight (D - 1) < 1. Dimensions that say the same cost nothing but
    for the other term."""
    dim = 16
    constant, one = torch.ones(32, dim), drawn(32, 1).expand(32, dim)
    for weight in (0.0051, 0.05, 0.1):
        assert float(barlow(constant, constant, off_diagonal_weight=weight)) == pytest.approx(dim)
        same = float(barlow(one, one, off_diagonal_weight=weight))
        assert same == pytest.approx(weight * dim * (dim - 1), rel=1e-3)  # what constants cost without centering
        assert (same < dim) == (weight * (dim - 1) < 1)
    assert float(barlow(one, one, off_diagonal_weight=0)) == pytest.approx(0, abs=1e-4)


LOSSES = {
    "barlow": lambda x, y, present: barlow(x, y, present=present),
    "vicreg": lambda x, y, present: sum(vicreg_terms(x, y, present=present).values()),
    "sigreg": lambda x, y, present: sigreg(x, torch.eye(6), present=present),
}


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_do_not_count_change_nothing_and_none_give_zero(name: str) -> None:
    x, y, keep = drawn(10, 6), drawn(10, 6, seed=1), torch.arange(10) % 3 > 0
    half, whole = leaf(x), leaf(x[keep])
    masked, alone = LOSSES[name](half, y, keep), LOSSES[name](whole, y[keep], None)
    torch.testing.assert_close(masked, alone)
    masked.backward(), alone.backward()
    torch.testing.assert_close(half.grad[keep], whole.grad)
    assert not half.grad[~keep].any()
    none = leaf(x)
    loss = LOSSES[name](none, y, torch.zeros(10, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert torch.equal(none.grad, torch.zeros_like(none))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    x, y = drawn(5, 6).double().requires_grad_(), drawn(5, 6, seed=1)
    loss = LOSSES[name](x, y, None)
    (grad,) = torch.autograd.grad(loss, x)
    step = 1e-2 * drawn(5, 6, seed=2).double()
    with torch.no_grad():
        change = (LOSSES[name](x + step, y, None) - LOSSES[name](x - step, y, None)) / 2
    assert float((grad * step).sum()) == pytest.approx(float(change), rel=0.02)
