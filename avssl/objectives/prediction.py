"""Prediction of later vectors from earlier ones, by contrast (CPC): plain dot products, no temperature, and gradient
into the vectors that are predicted.
"""

import torch
from torch import Tensor

from avssl import distributed
from avssl.objectives.contrast import info_nce


def predict(
    predicted: Tensor, targets: Tensor, *, own: Tensor, present: Tensor, masked: Tensor, others: Tensor | None = None
) -> Tensor:
    """Each prediction has to pick its target among others.

    Args:
        predicted: (R, D).
        targets: (M, D), of all ranks.
        own: (R,) which target each prediction is of.
        present: (R,) bool, predictions that count.
        masked: (M,) bool, targets of clips that could not be read: nobody's negative.
        others: (R, K) which targets are the negatives of each prediction, its own among them or not; None = all others.

    Returns:
        () the mean cross-entropy over the predictions that count, on all ranks.

    Source: van den Oord et al. 2018, eq. 4; with drawn negatives as Greedy InfoMax's audio and vision losses, with all
    as DPC's.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        predicted, targets = predicted.float(), targets.float()
        if others is None:
            logits = predicted @ targets.T  # (R, M)
            positive = torch.arange(len(targets), device=own.device) == own[:, None]
            ignore = masked.expand_as(logits)
        else:
            columns = torch.cat([own[:, None], others], dim=1)  # (R, 1 + K)
            logits = torch.einsum("rd,rkd->rk", predicted, targets[columns])
            positive, ignore = torch.zeros_like(columns, dtype=torch.bool), masked[columns]
            positive[:, 0] = True
    return info_nce(logits, positive & present[:, None], ignore=ignore)


def draw_others(own: Tensor, num: int, *, total: int, generator: torch.Generator) -> Tensor:
    """Negatives (R, num) drawn uniformly with replacement from all `total` targets but a row's own (R,).

    Args:
        generator: on the CPU, in the same state on every rank.
    """
    drawn = ((total - 1) * distributed.uniform_rows(len(own), num, generator=generator, device=own.device)).long()
    return drawn + (drawn >= own[:, None])
