"""Drawn negatives are uniform and never avoided ids; Bank and Queue move as their papers say."""

import pytest
import torch
import torch.nn.functional as F

from avssl import distributed
from avssl.objectives.negatives import Bank, Queue, draw_negatives
from avssl.structs import Embedded, SameRows


def embedded(z: torch.Tensor, ids: torch.Tensor) -> Embedded:
    return Embedded(z, ids, torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.float64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_negatives_are_uniform_over_exactly_the_allowed_ids() -> None:
    valid = torch.ones(30, dtype=torch.bool)
    valid[[3, 7]] = False
    avoid = torch.tensor([[5, 6, 6, -1, 3, 8], [0, 1, 2, 29, 28, 27], [10, -1, -1, -1, -1, -1], [7, 3, -1, -1, -1, -1]])
    drawn = draw_negatives(valid, 60_000, avoid=avoid, generator=generator())
    for row in range(len(avoid)):
        allowed = valid.clone()
        allowed[avoid[row][avoid[row] >= 0]] = False
        counts = torch.bincount(drawn[row], minlength=30).double()
        assert counts[~allowed].sum() == 0
        expected = 60_000 / int(allowed.sum())
        chi_square = ((counts[allowed] - expected) ** 2 / expected).sum()
        assert chi_square < 60  # 30 cells: the 99.9 % point is 59.7


@pytest.mark.parametrize("seed", range(20))
def test_negatives_never_hold_an_avoided_id(seed: int) -> None:
    g = generator(seed)
    num = int(torch.randint(5, 60, (), generator=g))
    valid = torch.rand(num, generator=g) < 0.8
    avoid = torch.randint(-1, num, (16, int(torch.randint(1, 40, (), generator=g))), generator=g)
    left = [int((valid & ~torch.isin(torch.arange(num), row)).sum()) for row in avoid]
    rows = avoid[torch.tensor(left) > 0]
    drawn = draw_negatives(valid, 50, avoid=rows, generator=g)
    assert valid[drawn].all()
    assert not (drawn[:, :, None] == rows[:, None, :]).any()


def test_one_allowed_id_is_drawn_always_and_none_leaves_empty_places() -> None:
    valid = torch.ones(4, dtype=torch.bool)
    assert (draw_negatives(valid, 9, avoid=torch.tensor([[0, 1, 3]]), generator=generator()) == 2).all()
    drawn = draw_negatives(valid, 9, avoid=torch.tensor([[0, 1, 3, 2], [0, 1, 3, -1]]), generator=generator())
    assert drawn.tolist() == [[-1] * 9, [2] * 9]
    assert (draw_negatives(~valid, 9, avoid=torch.tensor([[0], [-1]]), generator=generator()) == -1).all()


def test_ranks_draw_the_rows_of_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    valid, avoid = torch.ones(40, dtype=torch.bool), torch.arange(8)[:, None]
    whole = draw_negatives(valid, 6, avoid=avoid, generator=generator())
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = slice(4 * rank, 4 * rank + 4)
        assert torch.equal(draw_negatives(valid, 6, avoid=avoid[own], generator=generator()), whole[own])


def test_bank_moves_by_the_old_vectors_momentum() -> None:
    bank = Bank(torch.ones(6, dtype=torch.bool), 4, view=0, generator=generator())
    before = bank.z.clone()
    new = F.normalize(torch.randn(2, 4, generator=generator(1)), dim=1)
    bank.update(embedded(new, torch.tensor([5, 2])), momentum=0.9)
    expected = before.clone()
    expected[[5, 2]] = F.normalize(0.9 * before[[5, 2]] + 0.1 * new, dim=1)
    assert torch.allclose(bank.z, expected, atol=1e-6)


def test_bank_averages_duplicates_in_any_order() -> None:
    new = F.normalize(torch.randn(4, 4, generator=generator(1)), dim=1)
    ids = torch.tensor([3, 1, 3, 3])
    after = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        bank = Bank(torch.ones(6, dtype=torch.bool), 4, view=0, generator=generator())
        before = bank.z.clone()
        bank.update(embedded(new[order], ids[order]), momentum=0.5)
        after.append(bank.z)
    assert torch.allclose(after[0], after[1], atol=1e-6)
    assert torch.allclose(after[0][3], F.normalize(before[3] + new[[0, 2, 3]].mean(dim=0), dim=0), atol=1e-6)


def test_bank_leaves_empty_and_invalid_places_alone() -> None:
    valid = torch.tensor([True, True, False])
    bank = Bank(valid, 4, view=1, generator=generator())
    before = bank.z.clone()
    bank.update(embedded(F.normalize(torch.randn(2, 4), dim=1), torch.tensor([-1, 2])), momentum=0.5)
    assert torch.equal(bank.z, before)
    found = bank.lookup(torch.tensor([[0, 2, -1]]))
    assert found.ids.tolist() == [[0, -1, -1]]
    assert found.view.tolist() == [[1, 1, 1]]


def test_queue_keeps_the_latest_for_any_batch_size() -> None:
    queue, pushed = Queue(7, 2), []
    for size in (3, 5, 1, 9, 7, 2):
        ids = torch.arange(len(pushed), len(pushed) + size)
        queue.push(embedded(torch.stack([ids, -ids], dim=1).float(), ids))
        pushed += ids.tolist()
        held = queue.columns()
        assert sorted(held.ids[held.ids >= 0].tolist()) == pushed[-7:]
        assert torch.equal(held.z[held.ids >= 0, 0], held.ids[held.ids >= 0].float())
    assert int(queue.place) == len(pushed) % 7


def test_queue_columns_are_not_changed_by_a_later_push() -> None:
    queue = Queue(3, 2)
    columns = queue.columns()
    queue.push(embedded(torch.ones(2, 2), torch.tensor([0, 1])))
    assert (columns.ids == -1).all()


def test_a_bank_in_16_bits_is_that_in_32_to_a_thousandth() -> None:
    valid = torch.ones(40, dtype=torch.bool)
    half, whole = (Bank(valid, 16, view=0, generator=generator(), dtype=x) for x in (torch.float16, torch.float32))
    assert half.z.dtype == torch.float16
    for step in range(20):
        ids = torch.randint(40, (8,), generator=generator(step))
        new = embedded(F.normalize(torch.randn(8, 16, generator=generator(step)), dim=1), ids)
        for bank in (half, whole):
            bank.update(new, momentum=0.5)
    found, expected = (bank.lookup(torch.arange(40)).z for bank in (half, whole))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(40), atol=1e-3, rtol=0)
    same = SameRows.of_keys(torch.arange(40), torch.arange(40), valid=valid)
    for one, other in ((half, whole), (whole, half)):  # as a resumed run and as another run's banks
        copy = Bank(valid, 16, view=0, generator=generator(9), dtype=one.z.dtype)
        copy.load_state_dict(other.state_dict())
        torch.testing.assert_close(copy.z, other.z.to(copy.z.dtype))
        fresh = Bank(valid, 16, view=0, generator=generator(9), dtype=one.z.dtype)
        assert torch.equal(fresh.of_rows(other.state_dict(), same)["z"], copy.z)
