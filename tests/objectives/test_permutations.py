"""Sets of permutations: recorded ones of vissl, and the definition."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from avssl.objectives.permutations import distant_permutations

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.slow
@pytest.mark.parametrize("case, rule", [("jigsaw", "mean"), ("jigsaw_min", "least")])
def test_sets_equal_those_of_vissl(case: str, rule: str) -> None:
    recorded = np.load(FIXTURES / "methods2.npz")
    expected = recorded[f"{case}.permutations"]
    first = int(recorded[f"{case}.first_index"])
    assert np.array_equal(distant_permutations(9, len(expected), first=first, rule=rule), expected)


@pytest.mark.parametrize("rule", ["mean", "least"])
def test_each_one_is_as_far_as_any_that_is_left(rule: str) -> None:
    chosen = distant_permutations(5, 12, first=37, rule=rule)
    every = np.array(list(itertools.permutations(range(5))))
    assert chosen[0].tolist() == every[37].tolist()
    combine = np.mean if rule == "mean" else np.min
    for num in range(1, 12):
        before = {tuple(row) for row in chosen[:num].tolist()}
        scores = {
            tuple(row): combine((row != chosen[:num]).sum(axis=1)) for row in every if tuple(row.tolist()) not in before
        }
        assert scores[tuple(chosen[num])] == pytest.approx(max(scores.values()))


def test_all_of_them_come_in_lexicographic_order() -> None:
    assert distant_permutations(3, 6).tolist() == [list(row) for row in itertools.permutations(range(3))]


@pytest.mark.parametrize("parts, num, first", [(3, 7, 0), (3, 0, 0), (3, 2, 6), (10, 2, 0)])
def test_what_there_is_not_is_refused(parts: int, num: int, first: int) -> None:
    with pytest.raises(ValueError, match=rf"num={num} of the permutations of num_parts={parts}, from first={first}"):
        distant_permutations(parts, num, first=first)
