"""What a training would take, measured on its first steps; nothing is written."""

import itertools
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from avssl import distributed
from avssl.config import Config
from avssl.data.loader import PREFETCH, lost_workers_named
from avssl.structs import Progress
from avssl.training.setup import describe, set_up
from avssl.training.step import train_step

MEASURED = 3  # steps, after those whose batches lie ready
LONGEST_SECONDS = 120.0  # after which slow steps are no longer waited for, by a single process


def dry_run(config: Config, say: Callable[[str], object]) -> None:
    """Set a run up and train its first steps without saving; `say` gets lines on its size, seconds, memory and disk.

    Raises:
        ConfigError, ManifestError, CheckpointError: as `train`.
    """
    distributed.init(config.run.device)
    run = set_up(config)
    for line in describe(run):
        say(line)
    left = run.batches.num_steps - run.first_step
    if not left:
        say("complete: no step is left")
        return
    run.model.train()
    first = 1 + PREFETCH * config.data.num_workers
    marks, began = [], time.perf_counter()
    with lost_workers_named(run.dataset, config.data):
        num = min(first + MEASURED, left)
        batches = tqdm(itertools.islice(run.loader, num), total=num, unit="step", disable=not distributed.is_main())
        for step, batch in enumerate(batches):
            progress = Progress(0, run.first_step + step, run.batches.num_steps)
            done, _ = train_step(run.model, run.optimizer, batch.to(run.device), config, progress)
            done.loss.item()  # waits for a GPU
            marks.append(time.perf_counter())
            if len(marks) > 1 and marks[-1] - began > LONGEST_SECONDS and distributed.world_size() == 1:
                break
    steps = min(MEASURED, len(marks) - 1)
    if steps:
        seconds = (marks[-1] - marks[-1 - steps]) / steps
        how = f"mean of {steps}, after {len(marks) - steps} to warm up"
        say(f"{left} steps of {seconds:.2f} s ({how}): {_duration(left * seconds)}; mining is not among them")
    else:
        say("1 step is left, too few to tell its seconds")
    say(f"at most {_peak_bytes(run.device) / 1e9:.1f} GB of memory on each process so far")
    disk = _num_bytes([run.method.state_dict(), run.optimizer.state_dict()]) / 1e6
    say(
        f"{disk:.0f} MB of disk for a checkpoint, {config.run.dir}/last.pt, written anew after every epoch and "
        f"{config.run.checkpoint_every} steps"
    )


def _duration(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"


def _peak_bytes(device: torch.device) -> int:
    """Of the GPU, or of this process without its workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _num_bytes(state: object) -> int:
    """Of all tensors in nested containers."""
    if isinstance(state, Tensor):
        return state.nbytes
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_num_bytes, inside))
