"""How well one modality finds the other: recall of embeddings across modalities. Letters: n videos, D embedding."""

import numpy as np


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


def chance_recall(targets: np.ndarray) -> float:
    """Expected `class_recall` at k = 1 of a random order."""
    same = (targets[:, None] == targets[None, :]).sum(axis=1) - 1
    return float((same / max(len(targets) - 1, 1)).mean())
