"""SwAV's codes and loss: equal to the recorded numbers of the original, and the same on several ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.objectives.clustering import power_law, sinkhorn, swapped_prediction

FIXTURES = Path(__file__).parents[1] / "fixtures"
CROPS = ("1", "2", "3", "4")  # two large, two small


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "families.npz").items()}


def test_codes_equal_the_recorded_ones(recorded: dict[str, Tensor]) -> None:
    codes = sinkhorn(recorded["swav.scores"], epsilon=0.05, num_iterations=3)
    torch.testing.assert_close(codes, recorded["swav.codes"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(codes)))


@pytest.mark.parametrize("case", ["swav_full", "swav_queue"])
def test_the_loss_over_two_large_and_two_small_crops_equals_the_recorded_one(
    recorded: dict[str, Tensor], case: str
) -> None:
    raw = recorded[f"{case}.z"].clone().requires_grad_()
    prototypes = F.normalize(recorded[f"{case}.prototypes"], dim=1)
    torch.testing.assert_close(prototypes, recorded[f"{case}.prototypes_normalised"])
    scores = dict(zip(CROPS, (F.normalize(raw, dim=1) @ prototypes.T).chunk(4), strict=True))
    codes = {}
    for number, crop in enumerate(CROPS[:2]):
        filled = scores[crop].detach()
        if case == "swav_queue":
            filled = torch.cat([recorded["swav_queue.queue"][number] @ prototypes.T, filled])
        codes[crop] = sinkhorn(filled, epsilon=0.05, num_iterations=3)[-len(scores[crop]) :]
        torch.testing.assert_close(codes[crop], recorded[f"{case}.codes{crop}"], rtol=1e-4, atol=1e-6)
    loss = swapped_prediction(scores, codes, temperature=0.1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(recorded[f"{case}.loss"]), rel=1e-4)
    expected = recorded[f"{case}.grad_z"]
    assert (raw.grad - expected).norm() <= 1e-4 * expected.norm()


def test_rows_that_do_not_count_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(7, 5, generator=generator) * 2 - 1
    valid = torch.tensor([True, True, False, True, True, False, True])
    codes = sinkhorn(scores, epsilon=0.05, num_iterations=3, valid=valid)
    torch.testing.assert_close(codes[valid], sinkhorn(scores[valid], epsilon=0.05, num_iterations=3))
    assert not codes[~valid].any()
    pair = {"a": scores, "b": scores.flip(1)}
    seen = {"a": valid | torch.arange(7).eq(2), "b": valid}  # a row counts where both crops show it
    whole = swapped_prediction(pair, {"a": codes}, temperature=0.1, valid=seen)
    kept = {name: value[valid] for name, value in pair.items()}
    torch.testing.assert_close(whole, swapped_prediction(kept, {"a": codes[valid]}, temperature=0.1))


def test_a_small_epsilon_does_not_overflow() -> None:
    scores = torch.tensor([[1.0, -1.0], [0.9, -0.2], [-1.0, 1.0]])
    codes = sinkhorn(scores, epsilon=0.005, num_iterations=50)
    assert codes.isfinite().all()
    assert codes[[0, 2]].argmax(dim=1).tolist() == [0, 1]


def test_prototypes_get_the_shares_that_are_asked_for() -> None:
    scores = torch.rand(400, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shares = power_law(8)
    torch.testing.assert_close(shares / shares[0], torch.tensor([(i + 1) ** -0.25 for i in range(8)]))
    assert float(shares.sum()) == pytest.approx(1)
    codes = sinkhorn(scores, epsilon=0.5, num_iterations=50, shares=shares)
    torch.testing.assert_close(codes.mean(dim=0), shares, rtol=1e-3, atol=0)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(400))
    even = sinkhorn(scores, epsilon=0.5, num_iterations=50, shares=torch.full((8,), 1 / 8))
    torch.testing.assert_close(even, sinkhorn(scores, epsilon=0.5, num_iterations=50))
