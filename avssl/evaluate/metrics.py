"""Numbers out of answers: means with their uncertainty, recall, clusters against classes.

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
QUERIES = 1024  # compared with the gallery at once

Average = Literal["softmax", "logits"]
Interval = tuple[float, float]


def video_scores(logits: Tensor, *, average: Average = "softmax") -> Tensor:
    """Logits of every view (n, V, C) -> scores of the videos (n, C): the mean over the views of the softmax, as AVID,
    CoCLR, SlowFast and CVRL have it, or of the logits themselves, as GDT and SeLaVi. They rank differently.
    """
    logits = logits.float()
    return (torch.softmax(logits, dim=2) if average == "softmax" else logits).mean(dim=1)


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values` when whole groups are drawn anew with replacement: what belongs
    together (windows of one clip, clips of one scene) is not counted as independent.

    Args:
        values: (n,) one number per item, such as right or wrong.
        groups: (n,) any labels.
        level: share of the resampled means that lie inside.

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
    """A metric over splits, each given by one value per video (s arrays) and the groups of the videos.

    Returns:
        mean and spread (standard deviation, 0 for one split) over the splits, interval (95 %, whole groups drawn anew,
        over the videos of all splits; None where there is one group only), splits: value and interval of each.
    """

    def interval(values: np.ndarray, groups: np.ndarray) -> Interval | None:
        return bootstrap_interval(values, groups) if len(np.unique(groups)) > 1 else None

    splits = [
        {"value": float(each.mean()), "interval": interval(each, group)}
        for each, group in zip(values, groups, strict=True)
    ]
    return over_splits(splits) | {"interval": interval(np.concatenate(values), np.concatenate(groups))}


def over_splits(splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """mean and spread of the values of splits, beside them."""
    values = [split["value"] for split in splits]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "spread": spread, "interval": None, "splits": splits}


def purity(targets: np.ndarray, clusters: np.ndarray) -> float:
    """Share of videos that are of the most frequent class of their cluster.

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
    """Percentile interval of a metric over videos drawn anew, whole groups together; the clusters stay. None where all
    are one group."""
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


def instance_recall(query: np.ndarray, gallery: np.ndarray, *, k: int) -> float:
    """Share of rows i whose own gallery row i is among the k nearest by cosine; chance is k / n.

    Args:
        query, gallery: (n, D) unit vectors of the same videos.
    """
    scores = query @ gallery.T  # (n, n)
    own = np.diagonal(scores)[:, None]
    better = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1)  # a tie counts against us
    return float((better < k).mean())


def class_recall(query: np.ndarray, gallery: np.ndarray, targets: np.ndarray, *, k: int) -> float:
    """Share of rows with another video of the same class among the k nearest by cosine; the row itself is left out.

    Args:
        query, gallery: (n, D) unit vectors of the same videos.
        targets: (n,) classes.
    """
    scores = query @ gallery.T
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((targets[nearest] == targets[:, None]).any(axis=1).mean())


def chance_class_recall(targets: np.ndarray, *, k: int) -> float:
    """Expected `class_recall` of a random order."""
    same = (targets[:, None] == targets[None, :]).sum(axis=1) - 1  # (n,)
    return float(_chance_of_any(same, len(targets) - 1, k).mean())


def _chance_of_any(same: np.ndarray, num: int, k: int) -> np.ndarray:
    """The chance that of k rows drawn without replacement from `num` any is among the `same` (n,) ones: one less the
    chance that each draw misses, given those before."""
    drawn = np.arange(min(k, num))
    return 1 - (np.maximum(num - same[:, None] - drawn, 0) / (num - drawn)).prod(axis=1)


def gallery_hits(
    query: np.ndarray, query_targets: np.ndarray, gallery: np.ndarray, gallery_targets: np.ndarray, *, ks: Sequence[int]
) -> np.ndarray:
    """Whether any of the k gallery videos nearest by cosine has the query's class: (m, len(ks)) bool.

    Ties count against the query: a gallery video of another class with the same cosine comes first.

    Args:
        query: (m, D) unit vectors, such as test videos.
        query_targets: (m,) classes.
        gallery: (n, D) unit vectors, such as training videos; none of them is a query.
        gallery_targets: (n,) classes.

    Source: the protocol of CoCLR and SeLaVi, which break ties by the order of the gallery.
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
    """Expected share of `gallery_hits` of a random order."""
    same = np.bincount(gallery_targets, minlength=int(query_targets.max()) + 1)  # (C,)
    return float(_chance_of_any(same, len(gallery_targets), k)[query_targets].mean())


def recall_metrics(video: np.ndarray, audio: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Recall at 1 and 5 in both directions, beside chance.

    Args:
        video, audio: (n, D) unit vectors of the same videos.
        targets: (n,) classes.

    Returns:
        {v2a, a2v}_r{1, 5}: another clip of the same class; {v2a, a2v}_instance_r{1, 5}: the clip's own other modality;
        chance_r{1, 5} and chance_instance_r{1, 5}.
    """
    figures = {}
    for k in (1, 5):
        for name, query, gallery in (("v2a", video, audio), ("a2v", audio, video)):
            figures[f"{name}_r{k}"] = class_recall(query, gallery, targets, k=k)
            figures[f"{name}_instance_r{k}"] = instance_recall(query, gallery, k=k)
        figures[f"chance_r{k}"] = chance_class_recall(targets, k=k)
        figures[f"chance_instance_r{k}"] = min(k / len(targets), 1.0)
    return figures
