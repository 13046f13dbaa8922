"""Optimisers and learning rates by configuration. The rate is a pure function of the step, so nothing of it needs to
be saved.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from avssl.config import OptimConfig


def build_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """adam couples the weight decay with the gradient (L2, the AVID recipe), adamw decouples it, sgd has momentum."""
    parameters = list(parameters)
    betas = (optim.betas[0], optim.betas[1])
    match optim.name:
        case "adam":
            return torch.optim.Adam(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay)
        case "sgd":
            return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
        case other:
            raise ValueError(f"optim.name={other}: expected adam, adamw or sgd")


def learning_rate(step: int, *, steps_per_epoch: int, optim: OptimConfig) -> float:
    """Rate of one optimiser step, counted from 0.

    Linear warm-up over optim.warmup_epochs, then constant with drops (multistep) or half a cosine down to 0 at the
    end (cosine).
    """
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return optim.lr * (step + 1) / (warmup_steps + 1)
    if optim.schedule == "multistep":
        drops = sum(step >= milestone * steps_per_epoch for milestone in optim.milestones)
        return optim.lr * optim.gamma**drops
    num_steps = optim.epochs * steps_per_epoch
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(num_steps - warmup_steps, 1)))
