"""One optimizer step: views, loss, gradients, clipping, weights, state of the method; and the check of its numbers."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from avssl.config import Config
from avssl.structs import Batch, Progress, Step
from avssl.training.session import TrainingError, last_good
from avssl.transforms.views import apply_views


@dataclass(frozen=True)
class GradientNorms:
    """Norms of one step's gradients, before clipping."""

    names: list[str]  # of the parameters that have a gradient
    each: torch.Tensor  # (P,) in that order
    total: torch.Tensor  # ()


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, config: Config, progress: Progress
) -> tuple[Step, GradientNorms]:
    """One optimizer step on this rank's batch: views, loss, gradients, clipping, weights, state of the method.

    Nothing here is a host sync.

    Args:
        model: the method, or DistributedDataParallel around it.
        optimizer: of its parameters; its gradients are None before and after.
        batch: as loaded, on the model's device.
        config: its sections data, optim and run are used.
        progress: where the run is.
    """
    method = model.module if isinstance(model, DistributedDataParallel) else model
    done = forward_backward(model, batch, config, progress)
    named = {name: p for name, p in method.named_parameters() if p.grad is not None}
    each = torch.stack(torch._foreach_norm([p.grad for p in named.values()]))
    norms = GradientNorms(list(named), each, torch.linalg.vector_norm(each))
    if config.optim.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(named.values(), config.optim.clip_norm, norms.total)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(done, progress)
    return done, norms


def forward_backward(model: nn.Module, batch: Batch, config: Config, progress: Progress) -> Step:
    """Gradients of one batch, whose rows pass the encoders in optim.accumulate parts."""
    method = model.module if isinstance(model, DistributedDataParallel) else model
    ready = apply_views(batch, method.views, config.data)
    with torch.autocast(ready.ids.device.type, torch.bfloat16, enabled=config.run.precision == "bfloat16"):
        done = model(ready, progress, num_parts=config.optim.accumulate)
    done.loss.backward()
    return replace(done, loss=done.loss.detach())


class FiniteCheck:
    """Stops a run whose loss or gradient is not finite, before a checkpoint of it is written.

    At once on CPU. On a GPU a step later, from a copy that arrives while the next step runs, so that the host is never
    kept from handing over the next one.

    Args:
        last: the run's checkpoint, named in the error.
        delayed: look a step later.
    """

    def __init__(self, last: Path, *, delayed: bool) -> None:
        self.last = last
        self.delayed = delayed
        self._waiting: tuple[int, list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, step: int, loss: torch.Tensor, norms: GradientNorms) -> None:
        """Note a step's loss and norms, and look at those noted before (not delayed: at these).

        Raises:
            TrainingError: as `settle`.
        """
        self.settle()
        numbers = torch.cat([torch.stack([loss.float(), norms.total]), norms.each])  # (2 + P,)
        arrived = None
        if numbers.device.type == "cuda":
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting = (step, norms.names, numbers, arrived)
        if not self.delayed:
            self.settle()

    def settle(self) -> None:
        """Look at what was noted.

        Raises:
            TrainingError: a number is not finite; names the step and the first parameter.
        """
        if self._waiting is None:
            return
        (step, names, numbers, arrived), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()
        loss, total, *each = numbers.tolist()
        if math.isfinite(loss) and math.isfinite(total):
            return
        bad = [name for name, norm in zip(names, each, strict=True) if not math.isfinite(norm)]
        raise TrainingError(
            f"step {step}: loss is {loss}, gradient norm {total}, "
            f"first parameter with such a gradient: {bad[0] if bad else 'none'} ({len(bad)} in all); "
            f"{last_good(self.last)}. Try a lower optim.lr, optim.clip_norm, or run.precision=float32"
        )
