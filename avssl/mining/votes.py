"""Classes by the votes of nearest neighbors: for evaluation, and for the probe of a run.

Letters: n training videos, m test videos, D feature, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 1024  # per matrix product


def knn_votes(
    train: Tensor,
    truth: Tensor,
    test: Tensor,
    *,
    k: int = 20,
    temperature: float | None = 0.07,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Votes of the k nearest training videos by cosine.

    Args:
        train: (n, D) features, any length.
        truth: (n, C) bool, the classes of each.
        test: (m, D).
        k: number of neighbors; all of them when there are fewer.
        temperature: votes weigh exp(cosine / temperature); None = all the same, ties go to the nearer neighbor.
        groups: (n,) and (m,): training videos of a test video's own group do not vote. With the training videos as
            test videos, and a group for each, this is leave-one-out.

    Returns:
        (m, C) fractions of the votes, on the device of what was given; zeros where nobody votes.

    Source: Wu et al. 2018 (NPID), section 3.4.
    """
    if len(train) == 0:
        raise ValueError("kNN has no training features: no labeled clip of the train manifest could be read")
    gallery, queries = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    parts = [queries.new_zeros(0, truth.shape[1])]
    for start in range(0, len(queries), QUERIES):
        cosine = queries[start : start + QUERIES] @ gallery.T  # (q, n)
        if groups is not None:
            cosine = cosine.masked_fill(groups[1][start : start + QUERIES, None] == groups[0], -torch.inf)
        nearest = cosine.topk(min(k, len(train)), dim=1)  # nearest first
        if temperature is None:
            order = torch.arange(nearest.values.shape[1], dtype=torch.float64, device=queries.device)
            weights = (1 + 2.0 ** -(order + 2)).expand_as(nearest.values)  # extras sum to less than half a vote
        else:
            weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()  # minus the largest: no overflow
        weights = weights.where(nearest.values > -torch.inf, 0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)  # (q, k)
        parts.append(sum(each[:, None] * truth[rows] for each, rows in zip(weights.T, nearest.indices.T, strict=True)))
    return torch.cat(parts)
