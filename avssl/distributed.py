"""Several processes, one loss: start from torchrun's environment, and collectives that carry gradients.

Every function works without a process group too, where it is the identity, so that no caller asks how many ranks
there are.
With DDP the gradient of a parameter is averaged over ranks; `gather` and `all_reduce` sum the gradients that all ranks
send back, which together gives the gradient of the mean of the ranks' losses.
"""

import math
import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from avssl import files


def choose_device(device: str = "auto") -> torch.device:
    """This rank's device; joins nothing. On a GPU, float32 convolutions are float32 from now on (not TF32, torch's
    default), as matrix products are, and cuDNN tries its kernels out for each shape.

    Args:
        device: auto (a GPU when there is one) | cpu | cuda.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda, but torch sees no GPU here: use run.device=auto or cpu")
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_gpu:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cudnn.benchmark = True  # shapes of a run are few
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_gpu else torch.device("cpu")


def init(device: str = "auto") -> torch.device:
    """Join torchrun's process group when there is one (nccl on GPU, gloo on CPU) and choose this rank's device, as
    `choose_device` does."""
    chosen = choose_device(device)
    use_gpu = chosen.type == "cuda"
    if use_gpu:
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        # Figures on the CPU go through gloo: asking them of each other makes no rank wait for its GPU.
        backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
        timeout = timedelta(minutes=30)
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun's store outlives a restart, and the addresses in it are those of the dead processes
            # (pytorch/pytorch#135712). On several machines the counts may differ: docs/robustness.md has a setting.
            store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return chosen


def shut_down() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = x.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.narrow(0, rank() * ctx.rows, ctx.rows)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """Concatenate x (B, ...) over ranks -> (W * B, ...), rank 0 first, gradient kept. Sizes must be equal on all
    ranks.
    """
    if world_size() == 1:
        return x
    if x.dtype == torch.bool:  # not every backend moves booleans
        return _Gather.apply(x.to(torch.uint8)).bool()
    return _Gather.apply(x)


def all_reduce(x: Tensor) -> Tensor:
    """Sum of x over ranks, gradient kept."""
    return x if world_size() == 1 else _AllReduce.apply(x)


def broadcast(x: Tensor, *, source: int = 0) -> Tensor:
    """The x of a rank on every rank, without gradient; shapes must be equal."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    if x.dtype == torch.bool:
        as_bytes = x.to(torch.uint8)
        dist.broadcast(as_bytes, source)
        return as_bytes.bool()
    dist.broadcast(x, source)
    return x


def any_rank(flag: bool) -> bool:
    """True when `flag` is true on at least one rank: how all ranks agree to stop together."""
    if world_size() == 1:
        return flag
    return bool(all_reduce(torch.tensor(float(flag))))


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes: equal tensors, equal digest."""
    parts: list[object] = []
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        parts += [f"{name}{tuple(value.shape)}{value.dtype}", value.reshape(-1).view(torch.uint8).numpy().data]
    return files.digest(*parts, algorithm="sha256")


def uniform_rows(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), float64, for this rank's rows (the first axis, as long on every rank). They depend on
    a row's place among those of all ranks, not on the number of ranks, where it divides a batch; only this rank's are
    drawn.

    Args:
        generator: on the CPU, in the same state on every rank; it moves by one draw.
        device: of the result, which a GPU receives without a wait.
    """
    width = math.prod(shape[1:])
    counts = -(-width // 4)  # of a row: Philox draws four numbers a count
    key = torch.randint(2**62, (1,), generator=generator).numpy()[0]
    stream = np.random.Philox(key=int(key))
    drawn = np.random.Generator(stream.advance(rank() * shape[0] * counts)).random((shape[0], 4 * counts))
    own = torch.from_numpy(drawn[:, :width].reshape(shape))
    return own.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else own.to(device)


def fingerprint(x: Tensor) -> int:
    """A sum over the bytes of x and their places, modulo 2^64, computed where x lies: no bank leaves its GPU. One word
    of 8 bytes that differs is always seen."""
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for number, part in enumerate(x.detach().contiguous().reshape(-1).view(torch.uint8).split(1 << 26)):
        words = F.pad(part, (0, -len(part) % 8)).view(torch.int64)
        place = torch.arange(len(words), device=x.device) + number * (1 << 23)
        total += (words * (2 * place + 1)).sum()
    return int(total)


def check_equal(tensors: dict[str, Tensor], what: str) -> None:
    """Raise RuntimeError on all ranks when `tensors` are not the same bytes on every rank, as
    DistributedDataParallel runs with broadcast_buffers=False, or both banks would travel every step."""
    if world_size() == 1:
        return
    own = {name: (tuple(x.shape), str(x.dtype), fingerprint(x)) for name, x in tensors.items()}
    found: list[dict[str, Any]] = [{}] * world_size()
    dist.all_gather_object(found, own)
    differ = sorted(name for name in set().union(*found) if any(each.get(name) != found[0].get(name) for each in found))
    if differ:
        raise RuntimeError(
            f"{what} differ between ranks ({', '.join(differ)}): training on would mix different memory banks; resume "
            "from the last checkpoint and report this"
        )
