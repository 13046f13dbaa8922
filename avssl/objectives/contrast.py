"""The contrast table's losses: rows are queries, columns are candidate keys; positives are marked, nothing is known
of their origin.

`info_nce` is a softmax over columns, `nce` a binary classification of each column against a known noise level
(AVID). Both compute in float32 whatever the autocast, remove no column by themselves, and average over the rows that
have a positive, counted over all ranks.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed
from avssl.structs import Embedded


def similarity(q: Embedded, k: Embedded) -> Tensor:
    """Cosines of queries (Q, D) with shared columns (M, D) or each query's own columns (Q, M, D) -> (Q, M) float32."""
    with torch.autocast(q.z.device.type, enabled=False):
        query, key = q.z.float(), k.z.float()
        if key.dim() == 2:
            return query @ key.T
        return torch.bmm(key, query[:, :, None]).squeeze(2)


def info_nce(
    logits: Tensor, positive: Tensor, *, ignore: Tensor | None = None, pool: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Softmax contrast with any number of positives per row.

    Args:
        logits: (Q, M) cosines divided by the temperature.
        positive: (Q, M) bool.
        ignore: (Q, M) bool, columns that are neither positive nor negative in a row.
        pool: mean averages -log[e^s+ / (e^s+ + sum over negatives)] over a row's positives, the other positives left
            out of the denominator (VINCE; with one positive per row it is cross-entropy: SimCLR, MoCo). sum is
            -log[sum over positives / sum over positives and negatives] (MIL-NCE, CoCLR).

    Returns:
        () the mean over rows that have a positive; 0 with a gradient path when there is none.

    Source: VINCE (Gordon et al. 2020) eq. 3; MIL-NCE (Miech et al. 2020) eq. 1.
    """
    logits, positive, negative = _table(logits, positive, ignore)
    log_negative = torch.logsumexp(_masked(logits, negative), dim=1)  # (Q,)
    if pool == "mean":
        # -log[e^s / (e^s + n)] = softplus(log n - s); -inf (no negative at all) gives 0
        each = F.softplus(log_negative[:, None] - logits)  # (Q, M)
        rows = _mean_over_cells(each, positive)
    elif pool == "sum":
        log_positive = torch.logsumexp(_masked(logits, positive), dim=1)
        rows = F.softplus(log_negative - log_positive)
    else:
        raise ValueError(f"pool={pool!r}: expected mean or sum")
    return mean_over_rows(rows, positive.any(dim=1), logits)


def info_nce_pairs(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Each positive of a row against each of its negatives, one pair at a time.

    Args:
        logits: (Q, M) cosines divided by the temperature.
        positive: (Q, M) bool.
        negative: (Q, M) bool.

    Returns:
        () as `info_nce`, over a row for every negative of every query.

    Source: SeCo (Yao et al. 2021) eq. 2.
    """
    num = logits.shape[1]
    only = torch.eye(num, dtype=torch.bool, device=logits.device).repeat(len(logits), 1)  # (Q M, M)
    only = only & negative.repeat_interleave(num, dim=0)
    positive = positive.repeat_interleave(num, dim=0) & only.any(dim=1, keepdim=True)
    return info_nce(logits.repeat_interleave(num, dim=0), positive, ignore=~positive & ~only)


def nce(logits: Tensor, positive: Tensor, *, log_z: Tensor, ignore: Tensor | None = None) -> Tensor:
    """AVID's noise-contrastive estimation: each column is told apart from noise drawn uniformly over the instances.

    With K negatives in a row and Z the mean exponentiated score of negatives: a positive costs -log[e^s / (e^s + K Z)],
    averaged over a row's positives; a negative costs -log[K Z / (e^s + K Z)], summed over the row's negatives.

    Args:
        logits: (Q, M) cosines divided by the temperature.
        positive: (Q, M) bool.
        log_z: () or (1,) log Z, held constant during a run.
        ignore: (Q, M) bool, columns that count neither as positive nor as negative in a row.

    Returns:
        () the mean over rows that have a positive; 0 with a gradient path when there is none.

    Source: AVID (Morgado et al. 2021) eq. 3, as in AVID-CMA criterions/nce.py. NPID's form is equal with log_z =
    log(Z / N), up to its epsilon.
    """
    logits, positive, negative = _table(logits, positive, ignore)
    num_negatives = negative.sum(dim=1, keepdim=True)  # (Q, 1) K
    log_noise = torch.log(num_negatives.float()) + log_z.float().reshape(
        ()
    )  # log(K Z); -inf for a row without negatives
    positive_cost = _mean_over_cells(F.softplus(log_noise - logits), positive)
    negative_cost = torch.where(negative, F.softplus(logits - log_noise.clamp(min=-1e4)), 0.0).sum(dim=1)
    return mean_over_rows(positive_cost + negative_cost, positive.any(dim=1), logits)


def log_mean_exp(logits: Tensor, cells: Tensor) -> Tensor:
    """log of the mean exponentiated score over the marked cells of all ranks -> (): AVID's constant log Z.

    NaN when no cell is marked on any rank.
    """
    total = distributed.all_reduce(logits.detach().double().exp().masked_fill(~cells, 0.0).sum())
    count = distributed.all_reduce(cells.sum().double())
    return (total / count).log().float()


def _table(logits: Tensor, positive: Tensor, ignore: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check shapes; return float32 logits, positives without ignored cells, and negatives."""
    masks = [positive] if ignore is None else [positive, ignore]
    for mask in masks:
        if mask.shape != logits.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"logits are {tuple(logits.shape)}: positive and ignore must be bool of that shape, "
                f"not {mask.dtype} {tuple(mask.shape)}"
            )
    if ignore is None:
        return logits.float(), positive, ~positive
    return logits.float(), positive & ~ignore, ~positive & ~ignore


def _masked(logits: Tensor, keep: Tensor) -> Tensor:
    return logits.masked_fill(~keep, -math.inf)


def _mean_over_cells(cost: Tensor, cells: Tensor) -> Tensor:
    """Mean of (Q, M) cost over each row's marked cells -> (Q,); 0 for a row without any."""
    return torch.where(cells, cost, 0.0).sum(dim=1) / cells.sum(dim=1).clamp(min=1)


def mean_over_rows(rows: Tensor, counted: Tensor, logits: Tensor) -> Tensor:
    """Mean over the counted rows of all ranks: the mean of this value over ranks is the mean over one big batch."""
    count = distributed.all_reduce(counted.sum().float()) / distributed.world_size()
    total = torch.where(counted, rows, 0.0).sum() / count.clamp(min=1.0 / distributed.world_size())
    # A loss without rows still reaches every parameter with a zero, or DDP waits for ever for their gradients.
    return total + 0.0 * torch.nan_to_num(logits, neginf=0.0, posinf=0.0).sum()
