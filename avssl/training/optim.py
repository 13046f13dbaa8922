"""Optimizers and learning rates by configuration. The rate is a pure function of the step, so nothing of it needs to
be saved.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from avssl.config import OptimConfig

TRUST_COEFFICIENT = 0.001  # eta of LARS and LARC, as MoCo v3, Barlow Twins and SwAV have it
Scales = Mapping[str, float | Literal["constant"]]


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig, *, lr_scales: Scales | None = None
) -> torch.optim.Optimizer:
    """adam couples the weight decay with the gradient (L2, the AVID recipe), adamw decouples it, sgd has momentum, lars
    and larc adapt each layer's step to the size of its weights.

    Fused: one pass over each parameter instead of one per operation. With 20 million parameters on CPU a step of Adam
    takes an eighth of the time; the weights differ by rounding only.

    Args:
        named: names and parameters, such as model.named_parameters(); those that ask for no gradient are left out.
        optim: with decay_norm_and_bias false, parameters of one axis have no weight decay.
        lr_scales: {prefix of parameter names: factor of the rate, or "constant" = its rate has no schedule}.

    Raises:
        ValueError: a prefix that no name begins with.
    """
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    scales = dict(sorted((lr_scales or {}).items(), key=lambda scale: -len(scale[0])))  # the longest prefix counts
    for prefix in scales:
        if not any(name.startswith(prefix) for name, _ in named):
            raise ValueError(f"lr_scales names {prefix}, but no parameter's name begins so")
    groups: dict[tuple[bool, float | str], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
        groups.setdefault((parameter.dim() > 1, scale), []).append((name, parameter))
    parameters = [
        {
            "params": members,
            "weight_decay": optim.weight_decay if has_axes or optim.decay_norm_and_bias else 0.0,
            "scale": scale,
        }
        for (has_axes, scale), members in groups.items()
    ]
    common: dict[str, Any] = {"lr": optim.lr}
    match optim.name:
        case "adam":
            return torch.optim.Adam(parameters, betas=optim.betas, fused=True, **common)
        case "adamw":
            return torch.optim.AdamW(parameters, betas=optim.betas, fused=True, **common)
        case "sgd":
            optimizer = torch.optim.SGD(
                parameters, momentum=optim.momentum, nesterov=optim.nesterov, fused=True, **common
            )
            _fill_momentum(optimizer)
            return optimizer
        case "lars":
            return LARS(parameters, momentum=optim.momentum, **common)
        case "larc":
            return LARS(parameters, momentum=optim.momentum, is_larc=True, **common)


def _fill_momentum(optimizer: torch.optim.SGD) -> None:
    """Give every parameter a momentum buffer of zeros: the same steps, and torch's fused SGD cannot mix parameters that
    have one with those that get their first gradient later (frozen at first).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


class LARS(torch.optim.Optimizer):
    """SGD whose step in each layer is proportional to the size of the layer's weights, for very large batches.

    LARS: with d = gradient + weight_decay * p and q = eta * |p| / |d| (1 where either norm is 0), the momentum buffer
    becomes momentum * buffer + q * d, and p moves by -lr * buffer. Biases and BatchNorm (one axis) have q = 1 and no
    decay. LARC: q = eta * |p| / (|gradient| + weight_decay * |p|), for every parameter, with its decay.

    Args:
        parameters: what is to be optimized, or groups of it.
        lr: rate, outside the momentum buffer: a new rate acts at once.
        momentum: fraction of the buffer that is kept.
        weight_decay: coupled with the gradient.
        is_larc: as SwAV has it.

    Sources: You, Gitman, Ginsburg 2017; LARS equal to the optimizer of MoCo v3, LARC to apex's with clip off over SGD.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        is_larc: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.is_larc = is_larc

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            for p in moving:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in moving]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, self._adapted(moving, group["weight_decay"]))
            torch._foreach_add_(moving, buffers, alpha=-group["lr"])
        return loss

    def _adapted(self, parameters: list[nn.Parameter], weight_decay: float) -> list[torch.Tensor]:
        """q * d of each parameter; the norms stay on their device."""
        layers = [p for p in parameters if p.dim() > 1 or self.is_larc]
        if not layers:
            return [p.grad for p in parameters]
        gradients = [p.grad for p in layers]
        updates = torch._foreach_add(gradients, layers, alpha=weight_decay)  # d
        sizes = torch._foreach_norm(layers)
        if self.is_larc:
            norms = [
                size * weight_decay + grad for size, grad in zip(sizes, torch._foreach_norm(gradients), strict=True)
            ]
            given = torch._foreach_norm(gradients)
        else:
            norms = given = torch._foreach_norm(updates)
        rates = [
            torch.where((size > 0) & (grad > 0), TRUST_COEFFICIENT * size / norm, 1.0)
            for size, norm, grad in zip(sizes, norms, given, strict=True)
        ]  # q
        torch._foreach_mul_(updates, rates)
        if self.is_larc:  # without gradient, or of weights that are zero: the plain gradient, no decay
            updates = [
                torch.where((size > 0) & (grad > 0), update, plain)
                for size, grad, update, plain in zip(sizes, given, updates, gradients, strict=True)
            ]
        adapted = dict(zip(map(id, layers), updates, strict=True))
        return [adapted.get(id(p), p.grad) for p in parameters]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What an optimizer remembers of each parameter, by its name: {name: {entry: value}}."""
    return {
        name: dict(optimizer.state[parameter])
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what `optimizer_state` gave, in the memory layout that each parameter has now: a fused step pairs weights
    and moments by their place in memory.

    Raises:
        ValueError: it names a parameter that the optimizer does not have.
    """
    named = [pair for g in optimizer.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
    unknown = sorted(state.keys() - {name for name, _ in named})
    if unknown:
        raise ValueError(f"the optimizer's state is of {unknown[0]}, which is no parameter of this model")
    placed = {
        number: {
            key: torch.empty_like(parameter).copy_(value) if getattr(value, "ndim", 0) > 1 else value
            for key, value in state[name].items()
        }
        for number, (name, parameter) in enumerate(named)
        if name in state
    }
    optimizer.load_state_dict({"state": placed, "param_groups": optimizer.state_dict()["param_groups"]})
    if isinstance(optimizer, torch.optim.SGD):
        _fill_momentum(optimizer)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, *, peak: float) -> None:
    """Give every group its rate: the scheduled one times its factor, or the peak for a constant group."""
    for group in optimizer.param_groups:
        group["lr"] = peak if group["scale"] == "constant" else rate * group["scale"]


def peak_rate(optim: OptimConfig, *, batch_size: int) -> float:
    """The rate before any schedule: optim.lr, or optim.lr_per_256 scaled to the batch size."""
    return optim.lr if optim.lr_per_256 is None else optim.lr_per_256 * batch_size / 256


def learning_rate(step: int, *, steps_per_epoch: int, optim: OptimConfig, batch_size: int = 256) -> float:
    """Rate of one optimizer step, counted from 0.

    Linear warm-up over optim.warmup_epochs, then constant with drops (multistep) or half a cosine down to
    optim.final_lr at the end (cosine).
    """
    peak = peak_rate(optim, batch_size=batch_size)
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if optim.schedule == "multistep":
        drops = sum(step >= milestone * steps_per_epoch for milestone in optim.milestones)
        return peak * optim.gamma**drops
    num_steps = optim.epochs * steps_per_epoch
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(num_steps - warmup_steps, 1)))
    if not optim.final_lr:
        return peak * cosine
    return optim.final_lr + (peak - optim.final_lr) * cosine
