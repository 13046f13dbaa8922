"""What only a GPU shows, in one call of some minutes: a step of each method eager and compiled, its host syncs and
memory, mining by each engine, and whether a run that was stopped goes on.

    python tools/benchmarks/gpu.py --json gpu.json
    python tools/benchmarks/gpu.py --only steps --methods avid simclr --batch 128

On a CPU the same is measured, with `--sizes` of the mining that it can take. faiss-cpu searches on the CPU; faiss-gpu's
indexes are used by nothing of avssl yet.
"""

import datetime
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mining
import step
import stopwatch
import torch

from avssl import distributed
from avssl.config import Config
from avssl.methods import METHODS
from avssl.mining.agreement import mine_agreement
from avssl.structs import Batch, Progress
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.training.optim import build_optimizer
from avssl.training.setup import compile_encoders, keep_freed_memory
from avssl.training.step import train_step

PARTS = ("steps", "mining", "resume")
LEFT_OUT = ("finetune", "patch", "joint", "avid_cma")  # which need labels, tracks, others, or sets
OWN = {  # what a method needs beside the common settings
    "walk": ("data.num_frames=4", "data.patch_size=64", "data.patch_grid=3", "data.size=128"),
    "pirl": ("data.patch_size=32",),
    "cpc": ("data.num_frames=4",),  # blocks that fit into the clips
    "pretext": ("method.task=rotation",),
    "predict": ("data.num_frames=4",),
}
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")  # of the runtime


def benchmark_gpu(
    *,
    overrides: Sequence[str],
    parts: Sequence[str],
    methods: Sequence[str],
    batch_size: int,
    num_steps: int,
    sizes: Sequence[int],
    engines: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Returns: device, date, and of each part that is asked for a table: steps, mining, resume."""
    step.check_counts(batch_size, num_steps)
    device = distributed.init()
    keep_freed_memory()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "date": f"{datetime.date.today()}"}
    if "steps" in parts:
        given = {"overrides": overrides, "batch_size": batch_size, "num_steps": num_steps, "seed": seed}
        found["steps"] = [benchmark_method(method, device, **given) for method in methods]
    if "mining" in parts:
        found["mining"] = [benchmark_engine(n, engine, device, seed=seed) for n in sizes for engine in engines]
    if "resume" in parts:
        found["resume"] = check_resume(overrides, batch_size=min(batch_size, 8), seed=seed)
    return found


def benchmark_method(
    method: str,
    device: torch.device,
    *,
    overrides: Sequence[str],
    batch_size: int,
    num_steps: int,
    seed: int,
) -> dict[str, Any]:
    """Clips per second in float32, bfloat16, and bfloat16 compiled; the error of bfloat16's gradient (see step.py), the
    host syncs of one step and the peak of memory, both in bfloat16."""
    settings = [*step.SETTINGS, f"method.name={method}", *OWN.get(method, ()), *overrides]
    with tempfile.TemporaryDirectory() as folder:
        config = step.make_config(Path(folder), settings, batch_size=batch_size, seed=seed)
        batches = [batch.to(device) for batch in step.load_batches(config, num=2)[0]]
    exact = config.replace(run=config.run.replace(precision="float32"))
    row: dict[str, Any] = {"method": method}
    for column, settings, compiled in (
        ("float32", exact, False),
        ("bfloat16", config, False),
        ("compiled", config, True),
    ):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds, syncs = time_whole(settings, batches, num_steps, device, compiled=compiled)
        row[column] = batch_size / seconds
        if column == "bfloat16":
            row["host_syncs"] = syncs
            row["gigabytes"] = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    errors = step.gradient_error(exact, config, batches[0], device)
    return row | {"gradient_error": max(errors.values())}


def time_whole(
    config: Config, batches: Sequence[Batch], num_steps: int, device: torch.device, *, compiled: bool
) -> tuple[float, int]:
    """Seconds of a step, over num_steps after some to warm up, and the host syncs of one more."""
    method = step.build_large(config, device)
    optimizer = build_optimizer(method.named_parameters(), config.optim)
    if compiled:
        compile_encoders(method, device)
    total = step.NUM_WARM + num_steps + 1
    for number in range(total):
        if number == step.NUM_WARM:
            start = step.now(device)
        if number == total - 1:
            seconds = (step.now(device) - start) / num_steps
        with profiled(device) if number == total - 1 else nullcontext() as profile:
            train_step(method, optimizer, batches[number % len(batches)], config, Progress(0, number, total))
    found = sum(event.count for event in profile.key_averages() if event.key in SYNCS)
    return seconds, max(0, found - (device.type == "cuda"))  # the profiler's own at its end


def profiled(device: torch.device) -> torch.profiler.profile:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    return torch.profiler.profile(activities=kinds)


def benchmark_engine(num_rows: int, engine: str, device: torch.device, *, seed: int) -> dict[str, Any]:
    """Seconds of a search among clustered banks; the share of its sets that it proves, or of members that it finds."""
    banks = [bank.to(device) for bank in mining.make_banks(num_rows, 128, data="clustered", seed=seed)]
    mine_agreement(*(bank[:4096] for bank in banks), k=32, engine=engine)
    start = step.now(device)
    sets = mine_agreement(*banks, k=32, engine=engine)
    seconds = step.now(device) - start
    found = sets.recall if engine == "ivf" else sets.exact.double().mean().item()
    return {"n": num_rows, "engine": engine, "seconds": seconds, "found": found}


def check_resume(overrides: Sequence[str], *, batch_size: int, seed: int) -> dict[str, Any]:
    """Whether a run that was stopped after 2 of 4 steps ends as one that was not: largest difference of a weight."""
    with tempfile.TemporaryDirectory() as folder:
        config = step.make_config(Path(folder), [*step.SETTINGS, *overrides], batch_size=batch_size, seed=seed)
        ends = []
        for name, stops in (("whole", (4,)), ("parts", (2, 4))):
            for most in stops:
                run = config.run.replace(dir=f"{folder}/{name}", max_steps=most)
                start = time.perf_counter()
                train(config.replace(run=run))
                seconds = time.perf_counter() - start
            ends.append(load_checkpoint(Path(folder) / name)["model"])
    differences = [
        (value.double() - ends[1][key].double()).abs().max().item()
        for key, value in ends[0].items()
        if value.numel() and not (value.isnan() & ends[1][key].isnan()).all()  # a queue that nothing is in yet
    ]
    return {"largest_difference": max(differences), "seconds": seconds}


def main() -> int:
    known = [name for name in METHODS if name not in LEFT_OUT]
    parser = step.command(__doc__)
    parser.set_defaults(batch_size=32, num_steps=10)
    parser.add_argument("--only", dest="parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="METHOD", help="(default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[240_000, 2_000_000], help="of the mining")
    parser.add_argument("--engines", nargs="+", choices=["tiles", "flat", "ivf"], default=["tiles", "ivf"])
    plan = "{parts}: 3 x {num_steps} steps of {batch_size} clips of {methods}; {engines} on {sizes} rows; a stopped run"
    return stopwatch.run(parser, benchmark_gpu, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
