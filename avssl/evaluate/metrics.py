"""Metrics: means with confidence intervals, recall, agreement of clusters with classes.

Letters: n videos, m queries, V views of a video, C classes, D embedding, s splits.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

NUM_RESAMPLES = 2000  # of a mean
NUM_PARTITION_RESAMPLES = 500  # of what takes longer
BLOCK = 2**23  # weights of resamples at once
QUERIES = 1024  # per matrix product

Average = Literal["softmax", "logits"]
Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]  # weights of n items in R resamples (R, n) -> values (R,)


def video_scores(logits: Tensor, *, average: Average = "softmax", multi_label: bool = False) -> Tensor:
    """Logits per view (n, V, C) -> scores per video (n, C): mean over views of the softmax (AVID, CoCLR, SlowFast,
    CVRL), of the sigmoid where a video may have several classes, or of the logits (GDT, SeLaVi); they rank differently.
    """
    logits = logits.float()
    if average == "softmax":
        logits = logits.sigmoid() if multi_label else logits.softmax(dim=2)
    return logits.mean(dim=1)


def mean_of(values: np.ndarray) -> Statistic:
    """Weighted mean of values (n,), such as correct or not."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def partition_of(name: str, targets: np.ndarray, clusters: np.ndarray) -> Statistic:
    """One of PARTITION_METRICS of classes and clusters (n,); weights are whole numbers."""

    def of(counts: np.ndarray) -> float:
        return (
            PARTITION_METRICS[name](np.repeat(targets, counts), np.repeat(clusters, counts)) if counts.any() else np.nan
        )

    return lambda weights: np.array([of(counts) for counts in weights.astype(int)])


def average_precision_of(scores: np.ndarray, truth: np.ndarray, answered: np.ndarray) -> Statistic:
    """Mean over the classes that occur of their average precision, the sum of precision x step of recall.

    Args:
        scores: (a, C) of the answered items; equal scores share the precision behind the last of them.
        truth: (n, C) bool, several classes per item or none.
        answered: (n,) bool, a of them True: the others are found by no score, which lowers the recall.
    """
    rows = np.flatnonzero(answered)

    def mean(weights: np.ndarray) -> np.ndarray:  # (R, n) -> (R,)
        found = np.full((len(weights), truth.shape[1]), np.nan)
        for column in np.flatnonzero(truth.any(axis=0)):
            order = np.argsort(-scores[:, column], kind="stable")
            falling = -scores[order, column]
            last = np.searchsorted(falling, falling, side="right") - 1  # of the items with this score
            drawn = weights[:, rows[order]]  # (R, a)
            right = drawn * truth[rows[order], column]
            total = np.maximum(drawn.cumsum(axis=1)[:, last], 1e-12)
            hits = (right * right.cumsum(axis=1)[:, last] / total).sum(axis=1)
            present = weights @ truth[:, column]
            found[:, column] = np.divide(hits, present, out=found[:, column], where=present > 0)
        return _mean_of_known(found, axis=1)

    return mean


def chance_average_precision(truth: np.ndarray, answered: np.ndarray) -> float:
    """Expected value of `average_precision_of` for a random order of the answered items."""
    num, found = int(answered.sum()), truth[answered].sum(axis=0)  # (C,) positives among the answered
    harmonic = (1 / np.arange(1, num + 1)).sum()
    expected = (harmonic + (num - harmonic) * (found - 1) / max(num - 1, 1)) / max(num, 1)
    present = truth.sum(axis=0)
    return float((expected * found / np.maximum(present, 1))[present > 0].mean())


def bootstrap(
    statistics: Sequence[Statistic],
    groups: Sequence[np.ndarray],
    *,
    num: int = NUM_RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap percentile interval of the mean of s statistics, resampling whole groups (windows of one clip, clips of
    one scene).

    Args:
        statistics: one for each split, of its items.
        groups: for each split (n,) labels of any kind; a group of several splits is drawn for all of them.

    Returns:
        lower and upper end; both NaN when there are no items.

    Source: Efron & Tibshirani 1993, chapter 13; clusters resampled as in Davison & Hinkley 1997, section 3.8.
    """
    names, member = np.unique(np.concatenate(groups), return_inverse=True)
    if not len(names):
        return float("nan"), float("nan")
    of_split = np.split(member, np.cumsum([len(each) for each in groups])[:-1])
    rng, block = np.random.default_rng(seed), max(1, BLOCK // max(len(member), len(names)))
    values = []
    for first in range(0, num, block):
        size = min(block, num - first)
        drawn = rng.integers(len(names), size=(size, len(names))) + len(names) * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * len(names)).reshape(size, -1).astype(np.float64)
        with np.errstate(invalid="ignore"):  # no item of a split was drawn
            parts = [of(counts[:, rows]) for of, rows in zip(statistics, of_split, strict=True)]
        values.append(_mean_of_known(np.stack(parts), axis=0))
    low, high = np.nanquantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """`bootstrap` of the mean of values (n,) in groups (n,)."""
    return bootstrap([mean_of(np.asarray(values, dtype=np.float64))], [groups], level=level, seed=seed)


def summarize(statistics: Sequence[Statistic], groups: Sequence[np.ndarray], *, num: int) -> dict[str, Any]:
    """A metric over s splits; arguments as `bootstrap`.

    Returns:
        mean and spread (standard deviation, 0 for one split) over the splits, interval of the mean (None for a single
        group), splits: value and interval of each.
    """

    def interval(statistics: Sequence[Statistic], groups: Sequence[np.ndarray]) -> Interval | None:
        return bootstrap(statistics, groups, num=num) if len(np.unique(np.concatenate(groups))) > 1 else None

    splits = [
        {"value": float(of(np.ones((1, len(each))))[0]), "interval": interval([of], [each])}
        for of, each in zip(statistics, groups, strict=True)
    ]
    values = [split["value"] for split in splits]
    return {
        "mean": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "interval": splits[0]["interval"] if len(splits) == 1 else interval(statistics, groups),
        "splits": splits,
    }


def purity(targets: np.ndarray, clusters: np.ndarray) -> float:
    """Fraction of videos that belong to the most frequent class of their cluster.

    Source: Manning, Raghavan, Schuetze 2008, section 16.3.
    """
    table = np.zeros((clusters.max() + 1, targets.max() + 1), dtype=np.int64)
    np.add.at(table, (clusters, targets), 1)
    return float(table.max(axis=1).sum() / len(targets))


PARTITION_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "nmi": normalized_mutual_info_score,  # divided by the mean of both entropies
    "ari": adjusted_rand_score,
    "purity": purity,
}


def _mean_of_known(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def chance_of_any(same: np.ndarray, num: int, k: int) -> np.ndarray:
    """Probability that k draws without replacement from `num` rows hit any of the `same` (n,) ones."""
    drawn = np.arange(min(k, num))
    return 1 - (np.maximum(num - same[:, None] - drawn, 0) / (num - drawn)).prod(axis=1)


def gallery_hits(
    query: np.ndarray, query_targets: np.ndarray, gallery: np.ndarray, gallery_targets: np.ndarray, *, ks: Sequence[int]
) -> np.ndarray:
    """Whether any of the k gallery videos nearest by cosine has the query's class: (m, len(ks)) bool.

    Args:
        query: (m, D) unit vectors, with classes query_targets (m,).
        gallery: (n, D) unit vectors, with classes gallery_targets (n,); none of them is a query.

    Source: the protocol of CoCLR and SeLaVi. Differs: ties count against the query; there the gallery's order decides.
    """
    hits = np.zeros((len(query), len(ks)), dtype=bool)
    for first in range(0, len(query), QUERIES):
        part = slice(first, first + QUERIES)
        scores = query[part] @ gallery.T  # (q, n)
        same = query_targets[part, None] == gallery_targets
        best = np.where(same, scores, -np.inf).max(axis=1, initial=-np.inf)
        before = ((scores >= best[:, None]) & ~same).sum(axis=1)
        hits[part] = (before[:, None] < np.asarray(ks)) & np.isfinite(best)[:, None]
    return hits


def chance_gallery_recall(query_targets: np.ndarray, gallery_targets: np.ndarray, *, k: int) -> np.ndarray:
    """Expected `gallery_hits` of each query (m,) for a random order."""
    same = np.bincount(gallery_targets, minlength=int(query_targets.max()) + 1)  # (C,)
    return chance_of_any(same, len(gallery_targets), k)[query_targets]
