"""Prediction by contrast against recorded numbers of Greedy InfoMax (sound and pictures) and DPC."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avssl import distributed
from avssl.objectives.prediction import draw_others, predict

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "methods2.npz").items()}


def everyone(num: int) -> torch.Tensor:
    return torch.ones(num, dtype=torch.bool)


def check(recorded: dict[str, torch.Tensor], case: str, loss: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
    loss.backward()
    torch.testing.assert_close(loss, recorded[f"{case}.loss"].reshape(()), rtol=1e-4, atol=0)
    for name, x in inputs.items():
        expected = recorded[f"{case}.grad_{name}"]
        torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("sampling", ["batch", "never_positive", "sequence"])
def test_equals_greedy_infomax_on_sound(recorded: dict[str, torch.Tensor], sampling: str) -> None:
    inputs = {name: recorded[f"cpc_audio.{name}"].clone().requires_grad_() for name in ("z", "c", "weight")}
    z, c, weight = inputs.values()
    (num, length, dim), negatives = z.shape, recorded[f"cpc_audio.{sampling}.negative_rows"].long()
    losses, first, number = [], 0, torch.arange(num * length).view(num, length)
    for k in range(1, int(recorded["cpc_audio.offsets"]) + 1):
        predicted = (c[:, : length - k] @ weight[(k - 1) * dim : k * dim].T).flatten(0, 1)
        own = number[:, k:].flatten()
        rows = negatives[first : first + len(own)]
        if sampling == "sequence":  # row t of each clip meets times of its own clip
            assert rows.max() < num * length
        losses.append(
            predict(
                predicted,
                z.flatten(0, 1),
                own=own,
                present=everyone(len(own)),
                masked=~everyone(num * length),
                others=rows,
            )
        )
        first += len(own)
    check(recorded, f"cpc_audio.{sampling}", torch.stack(losses).mean(), inputs)


def test_equals_greedy_infomax_on_pictures(recorded: dict[str, torch.Tensor]) -> None:
    """Its weights act on the targets: <c, W z>, which is <W' c, z>."""
    inputs = {name: recorded[f"cpc_vision.{name}"].clone().requires_grad_() for name in ("z", "c", "weight")}
    z, c, weight = inputs.values()  # (B, C, S, S), (B, C', S, S), (K, C', C)
    side = z.shape[2]
    skip, negatives = int(recorded["cpc_vision.skip_step"]), recorded["cpc_vision.negative_rows"].long()
    losses, first = [], 0
    for k in range(1, int(recorded["cpc_vision.offsets"]) + 1):
        ahead = k + skip
        context = c[:, :, : side - ahead].permute(2, 3, 0, 1).flatten(0, 2)  # rows ordered y, x, b
        targets = z[:, :, ahead:].permute(2, 3, 0, 1).flatten(0, 2)
        own = torch.arange(len(targets))
        rows = negatives[first : first + len(own)]
        losses.append(
            predict(
                context @ weight[k - 1],
                targets,
                own=own,
                present=everyone(len(own)),
                masked=~everyone(len(own)),
                others=rows,
            )
        )
        first += len(own)
    assert first == len(negatives)
    check(recorded, "cpc_vision", torch.stack(losses).mean(), inputs)


def test_equals_dpc(recorded: dict[str, torch.Tensor]) -> None:
    inputs = {name: recorded[f"dpc.{name}"].clone().requires_grad_() for name in ("predicted", "features")}
    predicted, features = (x.flatten(3).transpose(2, 3).flatten(0, 2) for x in inputs.values())  # (B T s s, C)
    num = len(predicted)
    loss = predict(predicted, features, own=torch.arange(num), present=everyone(num), masked=~everyone(num))
    check(recorded, "dpc", loss, inputs)


def test_masked_targets_and_absent_rows_count_nowhere() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, targets = (torch.randn(6, 4, generator=generator) for _ in range(2))
    own, masked = torch.arange(6), torch.arange(6) == 2
    some = predict(predicted, targets, own=own, present=~masked, masked=masked)
    kept = (~masked).nonzero().squeeze(1)
    alone = predict(predicted[kept], targets[kept], own=torch.arange(5), present=everyone(5), masked=~everyone(5))
    torch.testing.assert_close(some, alone)
    others = torch.tensor([[2, 1], [2, 3], [0, 1], [4, 2], [5, 5], [2, 2]])
    drawn = predict(predicted, targets, own=own, present=~masked, masked=masked, others=others)
    scores = predicted @ targets.T
    rows = [torch.logsumexp(scores[i, [i, *[j for j in others[i].tolist() if j != 2]]], 0) - scores[i, i] for i in kept]
    torch.testing.assert_close(drawn, torch.stack(rows).mean())


def test_negatives_are_drawn_from_all_but_the_target_and_alike_on_any_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = torch.tensor([0, 4, 2, 3])
    whole = draw_others(own, 500, total=5, generator=torch.Generator().manual_seed(3))
    for target, row in zip(own.tolist(), whole, strict=True):
        counts = torch.bincount(row, minlength=5)
        assert counts[target] == 0
        assert (counts[torch.arange(5) != target] > 80).all()  # of 125 expected
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        half = slice(2 * rank, 2 * rank + 2)
        drawn = draw_others(own[half], 500, total=5, generator=torch.Generator().manual_seed(3))
        assert torch.equal(drawn, whole[half])
