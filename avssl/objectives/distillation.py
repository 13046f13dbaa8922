"""Losses that predict one network's vectors from another's, without negatives (BYOL, SimSiam)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.objectives.contrast import mean_over_rows


def negative_cosine(p: Tensor, z: Tensor, *, present: Tensor | None = None) -> Tensor:
    """-cos(p, z), in float32.

    Args:
        p: (B, D) predictions.
        z: (B, D) targets; no gradient reaches them.
        present: (B,) bool, rows that count; None = all.

    Returns:
        () the mean over the rows that count, over all ranks.

    Source: Chen & He 2021 (SimSiam), eq. 1. BYOL's squared distance of unit vectors (Grill et al. 2020, eq. 2) is
    2 + 2 times this.
    """
    with torch.autocast(p.device.type, enabled=False):
        rows = -F.cosine_similarity(p.float(), z.detach().float(), dim=1, eps=1e-12)  # (B,)
    present = torch.ones_like(rows, dtype=torch.bool) if present is None else present
    return mean_over_rows(rows, present, p)
