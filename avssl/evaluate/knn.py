"""Nearest-neighbour classification on frozen features: nothing to train, nothing to tune.

Letters: n training videos, m test videos, D feature, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_scores(
    train: Tensor, train_targets: Tensor, test: Tensor, *, k: int = 20, temperature: float | None = 0.07
) -> Tensor:
    """Votes of the k nearest training videos by cosine.

    Args:
        train: (n, D) features, any length.
        train_targets: (n,) int64 classes >= 0.
        test: (m, D).
        k: neighbours; all of them when there are fewer.
        temperature: votes weigh exp(cosine / temperature); None = all the same, and a tie goes to the class with the
            nearer neighbour.

    Returns:
        (m, C) scores, C - 1 the largest target.

    Source: Wu et al. 2018 (NPID), section 3.4.
    """
    if len(train) == 0:
        raise ValueError("kNN has no training features: no labelled clip of the train manifest could be read")
    cosine = F.normalize(test.float(), dim=1) @ F.normalize(train.float(), dim=1).T  # (m, n)
    nearest = cosine.topk(min(k, len(train)), dim=1)  # nearest first
    if temperature is None:
        places = torch.arange(nearest.values.shape[1], dtype=torch.float64)
        weights = (1 + 2.0 ** -(places + 2)).expand_as(nearest.values)  # together less than half a vote more
    else:
        weights = (nearest.values / temperature).exp()
    votes = torch.zeros(len(test), int(train_targets.max()) + 1, dtype=weights.dtype)  # (m, C)
    return votes.scatter_add_(1, train_targets[nearest.indices], weights)


def knn_predict(
    train: Tensor, train_targets: Tensor, test: Tensor, *, k: int = 20, temperature: float | None = 0.07
) -> Tensor:
    """(m,) int64 classes with the most votes; see `knn_scores`."""
    return knn_scores(train, train_targets, test, k=k, temperature=temperature).argmax(dim=1)
