"""Agreement mining against the recorded sets of AVID-CMA and against the definition, written out here."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl.mining import definition, tiles
from avssl.mining.agreement import agreement_precision, chance_precision, mine_agreement, overlap
from avssl.mining.definition import RULES
from tests.support.mining import assert_equal_sets, dense, unit

RECORDED = Path(__file__).parents[1] / "fixtures" / "mining.npz"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture(params=["bfloat16", "float32", "float64"])
def first_type(request, monkeypatch):
    """Let the search begin with this type, whatever the machine prefers."""
    monkeypatch.setattr(tiles, "has_fast_bfloat16", lambda: request.param == "bfloat16")
    monkeypatch.setattr(tiles, "_has_true_float32", lambda device: request.param != "float64")
    return request.param


@pytest.mark.parametrize("rule", RULES)
def test_equals_recorded_sets(rule, first_type):
    recorded = np.load(RECORDED)
    expected = recorded[f"mining.{rule}.positive_ids"]
    video, audio = (torch.from_numpy(recorded[f"bank_{name}.start"]) for name in ("video", "audio"))
    sets = mine_agreement(video, audio, k=expected.shape[1], rule=rule)
    assert torch.equal(sets.ids, torch.from_numpy(expected))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size, dim, k", [(2, 4, 1), (9, 3, 8), (40, 8, 1), (333, 16, 5), (700, 24, 32)])
@pytest.mark.parametrize("common", [0.0, 8.0])
def test_equals_dense_definition(rule, size, dim, k, common, generator, first_type):
    video = unit((size, dim), generator, classes=12)
    audio = unit((size, dim), generator, common=common)
    valid = torch.rand(size, generator=generator) < 0.8 if size > 9 else None
    sets = mine_agreement(video, audio, k=k, rule=rule, valid=valid)
    assert_equal_sets(sets, dense(video, audio, k=k, rule=rule, valid=valid))


def test_every_pass_is_reached_and_right(generator, monkeypatch):
    monkeypatch.setattr(tiles, "has_fast_bfloat16", lambda: True)
    video, audio = unit((2000, 32), generator, classes=40), unit((2000, 32), generator, classes=40)
    video[1000:1300], audio[1000:1300] = video[1000], audio[1000]  # equal rows: no gap, so only the definition can say
    near = F.normalize(video[0] + 2e-3 * torch.randn(300, 32, generator=generator), dim=1)
    video[1500:1800] = audio[1500:1800] = near  # gaps that bfloat16 cannot see
    sets = mine_agreement(video, audio, k=8)
    assert sets.passes.bincount().gt(0).tolist() == [False, True, True, True, True]
    assert (sets.passes[1000:1300] == 4).all()
    assert_equal_sets(sets, dense(video, audio, k=8, rule="consensus"))


def test_cosines_too_alike_for_bfloat16_begin_with_float32(generator, monkeypatch):
    monkeypatch.setattr(tiles, "has_fast_bfloat16", lambda: True)
    video, audio = unit((900, 32), generator, common=50.0), unit((900, 32), generator, common=50.0)
    sets = mine_agreement(video, audio, k=8)
    assert sets.passes.max() <= 2  # float32, then the definition
    assert_equal_sets(sets, dense(video, audio, k=8, rule="consensus"))


def test_ties_go_to_the_smaller_id(first_type):
    # Axis vectors make cosines of exactly 0 and 1: rows 0, 4, 8, ... are one clip, rows 1, 5, 9, ... another.
    bank = torch.eye(4).repeat(100, 1)
    sets = mine_agreement(bank, bank, k=6)
    assert sets.ids[0].tolist() == [4, 8, 12, 16, 20, 24]
    assert sets.ids[9].tolist() == [1, 5, 13, 17, 21, 25]
    assert sets.score.eq(1).all()


def test_equal_sounds_fall_back_to_the_smaller_id(generator, first_type):
    video = unit((200, 16), generator)
    audio = torch.eye(16)[:1].expand(200, 16)  # one and the same sound
    sets = mine_agreement(video, audio, k=4, rule="audio")
    assert sets.ids[0].tolist() == [1, 2, 3, 4]
    assert sets.ids[2].tolist() == [0, 1, 3, 4]
    assert sets.ids[199].tolist() == [0, 1, 2, 3]


def test_duplicated_clips_never_hold_themselves(generator, first_type):
    half = unit((150, 16), generator)
    bank = torch.cat([half, half])
    sets = mine_agreement(bank, bank, k=3)
    assert not (sets.ids == torch.arange(300)[:, None]).any()
    assert (sets.ids == torch.arange(300).roll(150)[:, None]).any(dim=1).all()  # but always their copy


def test_invalid_rows_have_no_set_and_are_in_none(generator):
    video, audio = unit((120, 16), generator), unit((120, 16), generator)
    valid = torch.rand(120, generator=generator) < 0.5
    video[~valid] = torch.nan  # never looked at
    sets = mine_agreement(video, audio, k=5, valid=valid)
    assert (sets.ids[~valid] == -1).all()
    assert (sets.passes[~valid] == 0).all()
    assert valid[sets.ids[valid]].all()


def test_sets_are_full_or_refused(generator):
    video, audio = unit((6, 8), generator), unit((6, 8), generator)
    valid = torch.tensor([True, False, True, True, False, False])
    sets = mine_agreement(video, audio, k=2, valid=valid)
    assert sets.ids.tolist() == [[2, 3], [-1, -1], [0, 3], [0, 2], [-1, -1], [-1, -1]]
    for mask, others in ((valid, 2), (torch.arange(6) == 2, 0), (torch.zeros(6, dtype=torch.bool), 0)):
        with pytest.raises(ValueError, match=rf"the {mask.sum()} usable rows has only {others} others: lower k"):
            mine_agreement(video, audio, k=3, valid=mask)


def test_follows_a_permutation_of_the_rows(generator):
    video, audio = unit((500, 24), generator, classes=20), unit((500, 24), generator, classes=20)
    order = torch.randperm(500, generator=generator)
    sets, permuted = mine_agreement(video, audio, k=7), mine_agreement(video[order], audio[order], k=7)
    assert torch.equal(order[permuted.ids].sort(dim=1).values, sets.ids[order])


def test_same_sets_for_any_threads_sample_and_block_size(generator, monkeypatch):
    video, audio = unit((1500, 32), generator, classes=30), unit((1500, 32), generator, classes=30)
    expected = mine_agreement(video, audio, k=16)
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            sets = mine_agreement(video, audio, k=16, generator=generator)
            assert torch.get_num_threads() == num_threads
            assert torch.equal(sets.ids, expected.ids)
            assert torch.equal(sets.score, expected.score)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(definition, "_BLOCK_ROWS", 17)
    assert torch.equal(mine_agreement(video, audio, k=16).ids, expected.ids)


def test_threads_are_given_back_after_an_error():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def fail(block):
        raise RuntimeError("out of memory")

    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            definition.map_blocks(fail, torch.arange(4).split(2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_lower_float32_precision_is_noticed(generator):
    video, audio = unit((900, 32), generator, classes=30), unit((900, 32), generator, classes=30)
    expected = mine_agreement(video, audio, k=8)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not tiles._has_true_float32(video.device)
        sets = mine_agreement(video, audio, k=8)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(sets.ids, expected.ids)
    assert torch.equal(sets.score, expected.score)


def test_autocast_changes_nothing(generator, first_type):
    video, audio = unit((900, 32), generator, classes=30), unit((900, 32), generator, classes=30)
    expected = mine_agreement(video, audio, k=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # no pool: its threads would not be under autocast
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sets = mine_agreement(video, audio, k=8)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(sets.ids, expected.ids)
    assert torch.equal(sets.score, expected.score)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("common", [0.0, 8.0])
def test_rounding_margin_holds_for_all_pairs(dtype, common, generator):
    bank = unit((600, 64), generator, common=common)
    exact, rounded = bank.double(), bank.to(dtype)
    error = (rounded.double() @ rounded.double().T - exact @ exact.T).abs().max().item()
    margin = tiles._rounding_margin(exact, rounded)
    assert error < margin < (0.012 if dtype is torch.bfloat16 else 2e-5)


def test_nothing_left_out_exceeds_the_bound(generator):
    video, audio = unit((700, 24), generator, classes=12), unit((700, 24), generator, classes=12)
    banks = [video.double(), audio.double()]
    search = tiles.Rounded(banks, "consensus", dtype=torch.bfloat16)
    rows = torch.arange(200)
    kept, bound = search._candidates(rows, 40)
    score = torch.minimum(*(bank[rows] @ bank.T for bank in banks))
    score[rows, rows] = -torch.inf
    for place in (0, 5, 39):  # all that come after a place
        rest = score.scatter(1, kept[:, : place + 1], -torch.inf)
        assert (rest.amax(dim=1) <= bound[:, place]).all()


def test_search_memory_is_bounded_by_the_block(monkeypatch):
    assert definition.block_rows(250_000, torch.bfloat16) * 250_000 * 2 <= definition._BLOCK_BYTES
    assert definition.block_rows(10**9, torch.float64) == 1


def test_precision_counts_labeled_pairs_only():
    targets = torch.tensor([0, 0, 1, -1, 1])
    ids = torch.tensor([[1, 2], [0, 3], [4, -1], [0, 1], [-1, -1]])
    assert agreement_precision(ids, targets) == pytest.approx(3 / 4)  # 0-1, 0-2, 1-0, 2-4
    assert np.isnan(agreement_precision(ids, torch.full((5,), -1)))


def test_chance_precision_is_the_precision_of_all_pairs(generator):
    targets = torch.randint(-1, 4, (50,), generator=generator)
    valid = torch.rand(50, generator=generator) < 0.7
    members = valid.nonzero().squeeze(1)
    ids = torch.full((50, len(members) - 1), -1)
    for row in members.tolist():
        ids[row] = members[members != row]
    assert chance_precision(targets, valid) == pytest.approx(agreement_precision(ids, targets))
    assert chance_precision(torch.tensor([0, 0, 1, 1])) == pytest.approx(1 / 3)


def test_errors_say_what_is_wrong(generator):
    video, audio = unit((20, 8), generator), unit((20, 8), generator)
    with pytest.raises(ValueError, match=r"rule is 'both', expected one of consensus, union, video, audio"):
        mine_agreement(video, audio, k=2, rule="both")
    with pytest.raises(ValueError, match="k is 0"):
        mine_agreement(video, audio, k=0)
    with pytest.raises(ValueError, match=r"video has shape \(20, 8\) and audio \(19, 8\)"):
        mine_agreement(video, audio[1:], k=2)
    with pytest.raises(ValueError, match=r"expected torch.bool \(20,\)"):
        mine_agreement(video, audio, k=2, valid=torch.ones(19, dtype=torch.bool))
    for value in (torch.nan, torch.inf, 0.5):
        wrong = audio.clone()
        wrong[3] = value * wrong[3]
        with pytest.raises(ValueError, match=r"audio row 3 has length .*normalize the rows"):
            mine_agreement(video, wrong, k=2)
        mine_agreement(video, wrong, k=2, rule="video")  # the rule does not look at the sound


def test_overlap_is_the_mean_share_that_stayed() -> None:
    before = torch.tensor([[1, 2, 3], [0, 2, 3], [-1, -1, -1], [0, 1, 2], [1, 2, 3]])
    after = torch.tensor([[1, 3, 4], [4, 5, 6], [0, 1, 4], [-1, -1, -1], [1, 2, 3]])
    assert overlap(before, after) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert math.isnan(overlap(before[2:4], after[2:4]))


def test_a_least_score_leaves_sets_of_small_classes_small() -> None:
    """A class of 6 and one of 3: of 4 members, those of the small class can be 2 at most."""
    centers = torch.eye(8)[torch.tensor([0] * 6 + [1] * 3)]
    video, audio = (
        F.normalize(centers + 0.1 * torch.randn(9, 8, generator=torch.Generator().manual_seed(seed)), dim=1)
        for seed in (0, 1)
    )
    targets = torch.tensor([0] * 6 + [1] * 3)
    assert agreement_precision(mine_agreement(video, audio, k=4).ids, targets) < 1
    found = mine_agreement(video, audio, k=4, min_score=0.5)
    assert agreement_precision(found.ids, targets) == 1
    assert (found.ids >= 0).sum(dim=1).tolist() == [4] * 6 + [2] * 3
    ids, scores = dense(video, audio, k=4, rule="consensus")
    for row in range(9):
        kept = scores[row] >= 0.5
        assert found.ids[row][found.ids[row] >= 0].tolist() == ids[row][kept].tolist()
        torch.testing.assert_close(found.score[row][found.ids[row] >= 0], scores[row][kept])
    assert (found.score[found.ids < 0] == 0).all()
    assert overlap(found.ids, found.ids) == 1
    assert overlap(ids, found.ids) == 1
