"""How sure a figure of few clips is."""

import numpy as np

NUM_RESAMPLES = 2000


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` when whole groups are drawn anew with replacement: what belongs
    together (windows of one clip, clips of one scene) is not counted as independent.

    Args:
        values: (n,) one figure per item, such as right or wrong.
        groups: (n,) any labels.
        level: share of the resampled means that lie inside.

    Returns:
        lower and upper end; both NaN when there are no values.

    Source: Efron & Tibshirani 1993, chapter 13; clusters resampled as in Davison & Hinkley 1997, section 3.8.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))  # (G,)
    counts = np.bincount(member).astype(np.float64)  # (G,)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
