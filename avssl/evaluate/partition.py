"""Clusters of frozen features against the classes. Letters: n videos, D feature."""

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits

NUM_STARTS = 10
NUM_RESAMPLES = 500


def cluster(features: np.ndarray, *, num_clusters: int, seed: int = 0) -> np.ndarray:
    """Cluster of each of n videos: k-means on features (n, D) of unit length, the best of NUM_STARTS starts."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    model = KMeans(min(num_clusters, len(features)), n_init=NUM_STARTS, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different videos than clusters
        return model.fit_predict(features / np.maximum(lengths, 1e-12))


def purity(targets: np.ndarray, clusters: np.ndarray) -> float:
    """Share of videos that are of the most frequent class of their cluster.

    Source: Manning, Raghavan, Schuetze 2008, section 16.3.
    """
    table = np.zeros((clusters.max() + 1, targets.max() + 1), dtype=np.int64)
    np.add.at(table, (clusters, targets), 1)
    return float(table.max(axis=1).sum() / len(targets))


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "nmi": normalized_mutual_info_score,  # divided by the mean of both entropies
    "ari": adjusted_rand_score,
    "purity": purity,
}


def figure_interval(
    name: str, targets: np.ndarray, clusters: np.ndarray, groups: np.ndarray, *, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of a figure over videos drawn anew, whole groups together; the clusters stay. None where all
    are one group."""
    _, member = np.unique(groups, return_inverse=True)
    if member.max() == 0:
        return None
    rows = [np.flatnonzero(member == group) for group in range(member.max() + 1)]
    rng = np.random.default_rng(0)
    values = []
    for _ in range(NUM_RESAMPLES):
        drawn = np.concatenate([rows[group] for group in rng.integers(len(rows), size=len(rows))])
        values.append(FIGURES[name](targets[drawn], clusters[drawn]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
