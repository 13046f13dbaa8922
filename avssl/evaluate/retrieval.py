"""Recall of embeddings, within a modality and across. Letters: n videos, m queries, D embedding."""

from collections.abc import Sequence

import numpy as np

QUERIES = 1024  # compared with the gallery at once


def instance_recall(query: np.ndarray, gallery: np.ndarray, *, k: int) -> float:
    """Share of rows i whose own gallery row i is among the k nearest by cosine; chance is k / n.

    Args:
        query: (n, D) unit vectors.
        gallery: (n, D) unit vectors of the same videos.
    """
    scores = query @ gallery.T  # (n, n)
    own = np.diagonal(scores)[:, None]
    better = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1)  # a tie counts against us
    return float((better < k).mean())


def class_recall(query: np.ndarray, gallery: np.ndarray, targets: np.ndarray, *, k: int) -> float:
    """Share of rows with another video of the same class among the k nearest by cosine; the row itself is left out.

    Args:
        query: (n, D) unit vectors.
        gallery: (n, D) unit vectors of the same videos.
        targets: (n,) classes.
    """
    scores = query @ gallery.T
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((targets[nearest] == targets[:, None]).any(axis=1).mean())


def chance_class_recall(targets: np.ndarray, *, k: int) -> float:
    """Expected `class_recall` of a random order: one less the chance that k rows drawn without replacement from the
    others are all of another class.
    """
    others = len(targets) - 1
    same = (targets[:, None] == targets[None, :]).sum(axis=1) - 1  # (n,)
    drawn = np.arange(min(k, others))
    missed = np.maximum(others - same[:, None] - drawn, 0) / (
        others - drawn
    )  # (n, k) each draw misses, given those before
    return float((1 - missed.prod(axis=1)).mean())


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
    num, classes = len(gallery_targets), int(max(query_targets.max(), gallery_targets.max())) + 1
    same = np.bincount(gallery_targets, minlength=classes)  # (C,)
    drawn = np.arange(min(k, num))
    missed = np.maximum(num - same[:, None] - drawn, 0) / (num - drawn)  # (C, k)
    return float((1 - missed.prod(axis=1))[query_targets].mean())


def recall_figures(video: np.ndarray, audio: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Recall at 1 and 5 in both directions, beside chance.

    Args:
        video: (n, D) unit vectors.
        audio: (n, D) unit vectors of the same videos.
        targets: (n,) classes.

    Returns:
        {v2a, a2v}_r{1, 5}: another clip of the same class; {v2a, a2v}_instance_r{1, 5}: the clip's own other side;
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
