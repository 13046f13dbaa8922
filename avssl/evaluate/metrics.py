"""Metrics: means with confidence intervals, recall, agreement of clusters with classes.

Letters: n videos, m queries, V views of a video, C classes, D embedding, s splits.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

NUM_RESAMPLES = 2000  # of a mean
NUM_PARTITION_RESAMPLES = 500
QUERIES = 1024  # per matrix product

Average = Literal["softmax", "logits"]
Interval = tuple[float, float]


def video_scores(logits: Tensor, *, average: Average = "softmax") -> Tensor:
    """Logits per view (n, V, C) -> scores per video (n, C): mean over views of the softmax (AVID, CoCLR, SlowFast,
    CVRL) or of the logits (GDT, SeLaVi); the two rank differently."""
    logits = logits.float()
    return (torch.softmax(logits, dim=2) if average == "softmax" else logits).mean(dim=1)


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap percentile interval of the mean, resampling whole groups (windows of one clip, clips of one scene).

    Args:
        values: (n,) one number per item, such as correct or not.
        groups: (n,) any labels.

    Returns:
        lower and upper end; both NaN when there are no values.

    Source: Efron & Tibshirani 1993, chapter 13; clusters resampled as in Davison & Hinkley 1997, section 3.8.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    member = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))  # (G,)
    counts = np.bincount(member).astype(np.float64)  # (G,)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    return _percentiles(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), level)


def summarize(values: Sequence[np.ndarray], groups: Sequence[np.ndarray]) -> dict[str, Any]:
    """A metric over s splits, from one value per video and the groups of the videos.

    Returns:
        mean and spread (standard deviation, 0 for one split) over the splits, interval (95 % bootstrap over the videos
        of all splits; None for a single group), splits: value and interval of each.
    """

    def interval(values: np.ndarray, groups: np.ndarray) -> Interval | None:
        return bootstrap_interval(values, groups) if len(np.unique(groups)) > 1 else None

    splits = [
        {"value": float(each.mean()), "interval": interval(each, group)}
        for each, group in zip(values, groups, strict=True)
    ]
    return over_splits(splits) | {"interval": interval(np.concatenate(values), np.concatenate(groups))}


def over_splits(splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over splits."""
    values = [split["value"] for split in splits]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "spread": spread, "interval": None, "splits": splits}


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


def partition_interval(
    name: str, targets: np.ndarray, clusters: np.ndarray, groups: np.ndarray, *, level: float = 0.95
) -> Interval | None:
    """Bootstrap interval of a partition metric over whole groups, with fixed clusters; None for a single group."""
    member = np.unique(groups, return_inverse=True)[1]
    if member.max() == 0:
        return None
    rows = [np.flatnonzero(member == group) for group in range(member.max() + 1)]
    rng = np.random.default_rng(0)
    values = []
    for _ in range(NUM_PARTITION_RESAMPLES):
        drawn = np.concatenate([rows[group] for group in rng.integers(len(rows), size=len(rows))])
        values.append(PARTITION_METRICS[name](targets[drawn], clusters[drawn]))
    return _percentiles(values, level)


def _percentiles(values: np.ndarray | Sequence[float], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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


def chance_gallery_recall(query_targets: np.ndarray, gallery_targets: np.ndarray, *, k: int) -> float:
    """Expected fraction of `gallery_hits` for a random order."""
    same = np.bincount(gallery_targets, minlength=int(query_targets.max()) + 1)  # (C,)
    return float(chance_of_any(same, len(gallery_targets), k)[query_targets].mean())
