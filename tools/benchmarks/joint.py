"""Cost of a joint step of AVID-CMA, temporal neighbors and tracked patches beside the three alone, on the same clips.

python tools/benchmarks/joint.py --threads 2 --json
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import stopwatch
import torch
from step import NUM_WARM, build_large, check_counts, command, load_batches, make_config, now

from avssl import distributed
from avssl.config import Config
from avssl.data.manifest import read_manifest
from avssl.data.tracks import write_tracks
from avssl.methods.avid_cma import AVIDCMA
from avssl.methods.base import Method
from avssl.structs import Batch, Progress
from avssl.training.optim import build_optimizer
from avssl.training.setup import keep_freed_memory
from avssl.training.step import train_step

SETTINGS = ("data.size=112", "data.patch_size=64", "data.num_workers=0")
TIMES, BOX = [0.5, 0.7, 0.9, 1.1], [0.2, 0.2, 0.5, 0.5]  # of a made track


def benchmark_joint(*, overrides: Sequence[str], batch_size: int, num_steps: int, seed: int) -> dict[str, object]:
    """Time whole steps of AVID-CMA, temporal neighbors and tracked patches, alone and joined.

    A step is everything between a loaded batch and the next: views, encoders, losses, gradients, optimizer, memory
    banks. The four take turns, so that other load on the machine affects all alike; values are medians over the turns.

    Args:
        overrides: `section.key=value`.
        batch_size: clips per step.
        num_steps: turns that are counted.
        seed: of weights, clips and draws.

    Returns:
        seconds, data_seconds (to load a batch in this process) and encoder_passes (of one step) of each; sum and
        data_sum: of the parts; joint_fraction, joint_data_fraction: of joint, of these sums.

    Raises:
        ValueError: batch_size or num_steps is below 1; ConfigError (one too): an override is wrong.
    """
    check_counts(batch_size, num_steps)
    given = [override for override in overrides if override.startswith("method.")]
    if given:
        raise ValueError(f"{given[0]}: the methods are what is compared, choose other sections")
    device = distributed.init("auto")
    keep_freed_memory()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        configs = _configs(Path(folder), overrides, batch_size=batch_size, seed=seed)
        loaded = {name: load_batches(config, num=3) for name, config in configs.items()}
    methods = {name: _with_sets(build_large(config, device)) for name, config in configs.items()}
    passes = {name: _encoder_passes(methods[name], loaded[name][0][0].to(device), configs[name]) for name in configs}
    optimizers = {
        name: build_optimizer(method.named_parameters(), configs[name].optim) for name, method in methods.items()
    }
    for turn in range(NUM_WARM + num_steps):
        for name, method in methods.items():
            batch = loaded[name][0][turn % 3].to(device)
            since = now(device)
            train_step(method, optimizers[name], batch, configs[name], Progress(0, turn, NUM_WARM + num_steps))
            seconds.setdefault(name, []).append(now(device) - since)
    steps = {name: median(each[NUM_WARM:]) for name, each in seconds.items()}
    data = {name: waited for name, (_, waited) in loaded.items()}
    total, data_total = (sum(each[name] for name in each if name != "joint") for each in (steps, data))
    return {
        "seconds": steps,
        "data_seconds": data,
        "encoder_passes": passes,
        "sum": total,
        "data_sum": data_total,
        "joint_fraction": steps["joint"] / total,
        "joint_data_fraction": data["joint"] / data_total,
        "batch": batch_size,
        "threads": torch.get_num_threads(),
    }


def _configs(folder: Path, overrides: Sequence[str], *, batch_size: int, seed: int) -> dict[str, Config]:
    """The parts and the joint run on the same made clips, each with one track."""
    base = make_config(folder, [*SETTINGS, *overrides], batch_size=batch_size, seed=seed)
    manifest = read_manifest(base.data.manifest)
    rows = [
        {"id": row, "track": 0, "times": TIMES, "boxes": [BOX] * 4, "confidence": [1.0] * 4, "reason": None}
        for row in range(len(manifest.column("path")))
    ]
    tracks = folder / "tracks.parquet"
    write_tracks(tracks, rows, manifest_hash=manifest.hash, options={})
    parts = {"avid_cma": {}, "neighbour": {}, "patch": {"tracks": str(tracks)}}
    methods = {name: {"name": name, **options} for name, options in parts.items()}
    methods["joint"] = {"name": "joint", "parts": parts}
    return {name: base.replace(method=method) for name, method in methods.items()}


def _with_sets(method: Method) -> Method:
    """Agreement sets without mining, so that their terms are part of the step."""
    for module in method.modules():
        if isinstance(module, AVIDCMA):
            num, size = module.sets.shape
            sets = (torch.arange(num)[:, None] + torch.arange(1, size + 1)) % num
            module.sets.copy_(sets.sort(dim=1).values)
    return method


def _encoder_passes(method: Method, batch: Batch, config: Config) -> dict[str, int]:
    """How often each encoder is called in a step."""
    calls: Counter[str] = Counter()
    hooks = [
        encoder.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, encoder in method.encoders.items()
    ]
    train_step(method, build_optimizer(method.named_parameters(), config.optim), batch, config, Progress(0, 0, 1))
    for hook in hooks:
        hook.remove()
    return dict(calls)


def main() -> int:
    plan = "2 + {num_steps} steps of {batch_size} clips by joint and by each of its parts in turns {overrides}"
    return stopwatch.run(command(__doc__), benchmark_joint, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
