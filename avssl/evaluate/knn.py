"""Nearest-neighbour classification on frozen features: nothing to train, nothing to tune.

Letters: n training videos, m test videos, D feature, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_predict(
    train: Tensor, train_targets: Tensor, test: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Weighted vote of the k nearest training videos by cosine, weights exp(cosine / temperature).

    Args:
        train: (n, D) features, any length.
        train_targets: (n,) int64 classes >= 0.
        test: (m, D).
        k: neighbours; all of them when there are fewer.

    Returns:
        (m,) int64 classes.

    Source: Wu et al. 2018 (NPID), section 3.4.
    """
    if len(train) == 0:
        raise ValueError("kNN has no training features: no labelled clip of the train manifest could be read")
    cosine = F.normalize(test.float(), dim=1) @ F.normalize(train.float(), dim=1).T  # (m, n)
    nearest = cosine.topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(test), int(train_targets.max()) + 1)  # (m, C)
    votes.scatter_add_(1, train_targets[nearest.indices], (nearest.values / temperature).exp())
    return votes.argmax(dim=1)
