"""Optimisers and learning rates by configuration. The rate is a pure function of the step, so nothing of it needs to
be saved.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from avssl.config import OptimConfig

TRUST_COEFFICIENT = 0.001  # eta of LARS, as MoCo v3 and Barlow Twins have it


def build_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """adam couples the weight decay with the gradient (L2, the AVID recipe), adamw decouples it, sgd has momentum, lars
    adapts each layer's step to the size of its weights.

    Fused: one pass over each parameter instead of one per operation. With 20 million parameters on CPU a step of Adam
    takes an eighth of the time; the weights differ by rounding only.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]  # a momentum copy follows
    betas = (optim.betas[0], optim.betas[1])
    match optim.name:
        case "adam":
            return torch.optim.Adam(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
            )
        case "lars":
            return LARS(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
        case other:
            raise ValueError(f"optim.name={other}: expected adam, adamw, sgd or lars")


class LARS(torch.optim.Optimizer):
    """SGD whose step in each layer is proportional to the size of the layer's weights, for very large batches.

    With d = gradient + weight_decay * p and q = eta * |p| / |d| (1 where either norm is 0): the momentum buffer becomes
    momentum * buffer + q * d, and p moves by -lr * buffer. Biases and BatchNorm (one axis) have q = 1 and no decay.

    Args:
        parameters: what is to be optimised.
        lr: rate, outside the momentum buffer: a new rate acts at once.
        momentum: share of the buffer that is kept.
        weight_decay: coupled with the gradient.

    Source: You, Gitman, Ginsburg 2017; equal to the optimiser of MoCo v3.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            for p in moving:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in moving]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, _adapted(moving, group["weight_decay"]))
            torch._foreach_add_(moving, buffers, alpha=-group["lr"])
        return loss


def _adapted(parameters: list[nn.Parameter], weight_decay: float) -> list[torch.Tensor]:
    """q * d of each parameter (see LARS); the norms stay on their device."""
    layers = [p for p in parameters if p.dim() > 1]
    updates = torch._foreach_add([p.grad for p in layers], layers, alpha=weight_decay)  # d
    norms = zip(torch._foreach_norm(layers), torch._foreach_norm(updates), strict=True)
    rates = [torch.where((p > 0) & (d > 0), TRUST_COEFFICIENT * p / d, 1.0) for p, d in norms]  # q
    torch._foreach_mul_(updates, rates)
    adapted = iter(updates)
    return [next(adapted) if p.dim() > 1 else p.grad for p in parameters]


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
