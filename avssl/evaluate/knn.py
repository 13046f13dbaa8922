"""Nearest-neighbour classification on frozen features: nothing to train, nothing to tune.

Letters: n training videos, m test videos, D feature, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 1024  # compared with the training videos at once


def knn_scores(
    train: Tensor, train_targets: Tensor, test: Tensor, *, k: int = 20, temperature: float | None = 0.07
) -> Tensor:
    """Votes of the k nearest training videos by cosine.

    Args:
        train: (n, D) features, any length.
        train_targets: (n,) int64 classes >= 0.
        test: (m, D).
        k: neighbours; all of them when there are fewer.
        temperature: votes weigh exp(cosine / temperature), up to a factor; None = all the same, and a tie goes to the
            class with the nearer neighbour.

    Returns:
        (m, C) scores, C - 1 the largest target.

    Source: Wu et al. 2018 (NPID), section 3.4.
    """
    if len(train) == 0:
        raise ValueError("kNN has no training features: no labelled clip of the train manifest could be read")
    gallery, num_classes = F.normalize(train.float(), dim=1), int(train_targets.max()) + 1
    parts = [torch.zeros(0, num_classes)]
    for query in F.normalize(test.float(), dim=1).split(QUERIES):
        nearest = (query @ gallery.T).topk(min(k, len(train)), dim=1)  # nearest first
        if temperature is None:
            places = torch.arange(nearest.values.shape[1], dtype=torch.float64)
            weights = (1 + 2.0 ** -(places + 2)).expand_as(nearest.values)  # together less than half a vote more
        else:
            weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()  # less the largest: no overflow
        votes = torch.zeros(len(query), num_classes, dtype=weights.dtype)  # (q, C)
        parts.append(votes.scatter_add_(1, train_targets[nearest.indices], weights))
    return torch.cat(parts)


def knn_predict(
    train: Tensor, train_targets: Tensor, test: Tensor, *, k: int = 20, temperature: float | None = 0.07
) -> Tensor:
    """(m,) int64 classes with the most votes; see `knn_scores`."""
    return knn_scores(train, train_targets, test, k=k, temperature=temperature).argmax(dim=1)
