"""From scores of clips to scores of videos, and from right and wrong to a figure with its uncertainty.

Letters: n videos, V views of each, C classes, s splits.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avssl.evaluate.bootstrap import bootstrap_interval

Average = Literal["softmax", "logits"]


def video_scores(logits: Tensor, *, average: Average = "softmax") -> Tensor:
    """Logits of every view (n, V, C) -> scores of the videos (n, C): the mean over the views of the softmax, as AVID,
    CoCLR, SlowFast and CVRL have it, or of the logits themselves, as GDT and SeLaVi. They rank differently.
    """
    logits = logits.float()
    return (torch.softmax(logits, dim=2) if average == "softmax" else logits).mean(dim=1)


def summarise(values: Sequence[np.ndarray], groups: Sequence[np.ndarray]) -> dict[str, Any]:
    """A figure over splits, each given by one value per video (s arrays) and the groups of the videos.

    Returns:
        mean and spread (standard deviation, 0 for one split) over the splits, interval (95 %, whole groups drawn anew,
        over the videos of all splits; None where there is one group only), splits: value and interval of each.
    """
    means = [float(each.mean()) for each in values]
    return {
        "mean": float(np.mean(means)),
        "spread": float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
        "interval": _interval(np.concatenate(values), np.concatenate(groups)),
        "splits": [
            {"value": mean, "interval": _interval(each, group)}
            for mean, each, group in zip(means, values, groups, strict=True)
        ],
    }


def _interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float] | None:
    return bootstrap_interval(values, groups) if len(np.unique(groups)) > 1 else None
