"""Triplets against recorded numbers of TCN and of Wang & Gupta, and what the recordings do not show."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl.objectives.triplet import ranking, semi_hard

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "methods2.npz").items()}


@pytest.mark.parametrize("case", ["tcn", "tcn_multi"])
def test_semi_hard_triplets_equal_tcn(recorded: dict[str, torch.Tensor], case: str) -> None:
    z = recorded[f"{case}.embeddings"].clone().requires_grad_()
    near, far, margin = recorded[f"{case}.constants"].tolist()
    seconds, sequence = recorded[f"{case}.timesteps"].double(), recorded.get(f"{case}.sequence")
    loss = semi_hard(z, seconds, near=near, far=far, margin=margin, sequence=sequence)
    loss.backward()
    torch.testing.assert_close(loss, recorded[f"{case}.loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(z.grad, recorded[f"{case}.grad"], rtol=1e-4, atol=1e-4 * float(z.grad.abs().max()))


def test_rows_that_are_masked_or_have_no_negative_count_nowhere() -> None:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seconds, sequence = torch.tensor([0.0, 1, 9, 10, 0, 9]), torch.tensor([3, 3, 3, 3, -1, -1])
    how = {"near": 1.0, "far": 5.0, "margin": 0.5}
    kept = semi_hard(z[:4], seconds[:4], **how)
    torch.testing.assert_close(semi_hard(z, seconds, sequence=sequence, **how), kept)
    nothing = semi_hard(z[:2], seconds[:2], **how)
    assert nothing == 0
    nothing.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("case", ["tracked", "tracked_hard"])
def test_ranking_equals_wang_and_gupta(recorded: dict[str, torch.Tensor], case: str) -> None:
    x = recorded[f"{case}.x"].clone().requires_grad_()
    num, hard, _, margin = recorded[f"{case}.constants"].tolist()
    generator = torch.Generator().manual_seed(0)
    labels = recorded[f"{case}.label"].long()
    loss = ranking(F.normalize(x, dim=1), labels, num_negatives=int(num), margin=margin, hard=hard, generator=generator)
    loss.backward()
    torch.testing.assert_close(loss, recorded[f"{case}.loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(x.grad, recorded[f"{case}.grad_x"], rtol=1e-4, atol=1e-4 * float(x.grad.abs().max()))


def test_ranking_draws_what_is_not_hard_among_the_violating_ones() -> None:
    z = F.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(10).repeat_interleave(2)
    losses = {
        share: torch.stack(
            [
                ranking(
                    z,
                    labels,
                    num_negatives=3,
                    margin=0.5,
                    hard=share,
                    generator=torch.Generator().manual_seed(seed),
                )
                for seed in range(20)
            ]
        )
        for share in (0.0, 0.5, 1.0)
    }
    assert losses[1.0].unique().numel() == 1  # nothing is drawn
    assert losses[0.0].unique().numel() > 5
    assert losses[0.0].mean() < losses[0.5].mean() < losses[1.0].mean()


def test_a_pair_without_a_label_is_nobodys_negative() -> None:
    z = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(2)), dim=1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, -1, -1])
    how = {"num_negatives": 10, "margin": 1.0}
    loss = ranking(z, labels, **how)
    torch.testing.assert_close(loss, ranking(z[:6], labels[:6], **how))
    loss.backward()
    assert torch.equal(z.grad[6:], torch.zeros(2, 5))
