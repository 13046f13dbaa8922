"""Rankings of one near against one far vector by a margin, instead of a softmax over many.

Letters: n vectors, P pairs, D numbers.
"""

import torch
from torch import Tensor

from avssl.objectives.contrast import mean_over_rows


def semi_hard(
    z: Tensor, seconds: Tensor, *, near: float, far: float, margin: float, sequence: Tensor | None = None
) -> Tensor:
    """Time-contrastive triplets: vectors near in time attract, of the far ones the semi-hard one repels.

    Every pair (a, p) of one sequence at most `near` apart meets the vector more than `far` from a, or of another
    sequence, that is nearest to a beyond p; where none is beyond, the farthest one. Distances are squared.

    Args:
        z: (n, D).
        seconds: (n,).
        near, far: seconds.
        margin: of squared distances.
        sequence: (n,) int64, of which vectors come; None = all of one, and only far ones of it repel. Rows of -1 count
            nowhere.

    Returns:
        () the mean over the pairs that have a negative; 0 with a gradient path when there is none.

    Source: Sermanet et al. 2018 (TCN), svtcn_loss.py with and without multiseq. Differs from it: an anchor without any
    negative is left out; there it meets itself.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.double()  # near vectors are a difference of large numbers apart
        square = (z * z).sum(dim=1)
        distance = (square[:, None] + square - 2 * (z @ z.T)).clamp(min=0)  # (n, n)
    apart = (seconds[:, None] - seconds).abs()
    sequence = torch.zeros_like(seconds, dtype=torch.int64) if sequence is None else sequence
    present = (sequence >= 0)[:, None] & (sequence >= 0)
    same = (sequence[:, None] == sequence) & present
    pair = same & (apart <= near) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)  # (n, n) a, p
    negative = present & ((apart > far) | ~same)  # (n, n) a, n
    pair &= negative.any(dim=1, keepdim=True)
    ascending = distance.masked_fill(~negative, torch.inf).sort(dim=1).values  # (n, n) a, n
    place = torch.searchsorted(ascending.detach(), distance.detach(), right=True)  # (n, n) a, p: the first beyond p
    nearest = ascending.gather(1, place.clamp(max=len(z) - 1))
    is_beyond = (place < len(z)) & nearest.isfinite()
    farthest = distance.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)  # (n, 1)
    chosen = torch.where(is_beyond, nearest, farthest)
    cost = torch.where(pair, margin + distance - torch.where(pair, chosen, 0.0), 0.0).clamp(min=0)
    return mean_over_rows(cost.flatten().float(), pair.flatten(), z.float())


def ranking(
    z: Tensor,
    labels: Tensor,
    *,
    num_negatives: int,
    margin: float,
    hard: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pairs rank their partner above vectors of other labels: both of a pair against each chosen one.

    Of the vectors whose anchor violates the margin, a pair takes the `num_negatives` most similar to its anchor, or a
    share `hard` of so many and the others drawn among the rest.

    Args:
        z: (2 P, D) unit vectors; rows 2 i and 2 i + 1 are a pair.
        labels: (2 P,); a pair of label -1 counts nowhere.
        num_negatives: of a pair.
        margin: of cosines.
        hard: share of the negatives that are the hardest ones.
        generator: draws the others; needed for hard < 1.

    Returns:
        () the sum over pairs and negatives of both terms, over num_negatives * P * 2 whatever was chosen.

    Source: Wang & Gupta 2015, rank_hard_loss_layer.cpp, which divides so.
    """
    with torch.autocast(z.device.type, enabled=False):
        similar = z.float() @ z.float().T  # (2 P, 2 P)
    anchor, partner = similar[0::2], similar[1::2]  # (P, 2 P)
    number = torch.arange(len(anchor), device=z.device)
    own = anchor[number, 2 * number + 1][:, None]  # (P, 1) of anchor and partner
    other = (labels[0::2, None] != labels) & (labels >= 0) & (labels[0::2, None] >= 0)
    violating = other & (margin + anchor - own > 0)
    score = anchor.detach().masked_fill(~violating, -torch.inf)
    num_hard = min(round(hard * num_negatives), score.shape[1])
    chosen = torch.zeros_like(violating).scatter(1, score.topk(num_hard, dim=1).indices, True) & violating
    if num_hard < num_negatives:
        drawn = torch.rand(score.shape, generator=generator).to(z.device, non_blocking=True)
        rest, num = drawn.masked_fill(~violating | chosen, -1.0), min(num_negatives - num_hard, score.shape[1])
        chosen |= torch.zeros_like(chosen).scatter(1, rest.topk(num, dim=1).indices, True) & violating
    cost = (margin + anchor - own).clamp(min=0) + (margin + partner - own).clamp(min=0)
    rows = torch.where(chosen, cost, 0.0).sum(dim=1) / (2 * num_negatives)
    return mean_over_rows(rows, labels[0::2] >= 0, z)
