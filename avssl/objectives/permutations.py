"""Sets of permutations that a network has to tell apart (jigsaw, order of segments)."""

import itertools
import math
from typing import Literal

import numpy as np


def distant_permutations(
    num_parts: int, num: int, *, first: int = 0, rule: Literal["mean", "least"] = "mean"
) -> np.ndarray:
    """Permutations that lie far apart, one after the other: of those left, the one with the largest Hamming distance.

    Args:
        num_parts: n, of n! permutations in lexicographic order.
        num: how many, at most n!; all of them come in lexicographic order.
        first: place of the one to begin with.
        rule: the mean distance to those chosen before counts, or the least one.

    Returns:
        (num, n) int64.

    Raises:
        ValueError: there are fewer permutations, or more than memory holds.

    Source: Noroozi & Favaro 2016, algorithm 1, as in vissl generate_jigsaw_permutations.py (max_avg, max_min): ties go
    to the first, and means are sums of distances over n in float64, whose rounding decides some.
    """
    total = math.factorial(num_parts)
    if num_parts > 9 or not 1 <= num <= total or not 0 <= first < total:
        raise ValueError(
            f"num={num} of the permutations of num_parts={num_parts}, from first={first}: expected at most 9 parts and "
            f"1 to {total} permutations"
        )
    every = np.array(list(itertools.permutations(range(num_parts))), dtype=np.int8)  # (n!, n)
    if num == total:
        return every.astype(np.int64)
    score = np.zeros(total) if rule == "mean" else np.full(total, np.inf)
    left, chosen = np.ones(total, dtype=bool), [first]
    while len(chosen) < num:
        left[chosen[-1]] = False
        distance = (every != every[chosen[-1]]).sum(axis=1) / num_parts  # (n!,)
        score = score + distance if rule == "mean" else np.minimum(score, distance)
        mean = score / len(chosen) if rule == "mean" else score
        chosen.append(int(np.where(left, mean, -1.0).argmax()))
    return every[chosen].astype(np.int64)
