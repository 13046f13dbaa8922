"""Speed of a training step by part, beside the same step in float32 and torch's default memory layout.

python tools/benchmarks/step.py --threads 2 --json
python tools/benchmarks/step.py model.video_width=0.5 --batch 16 --steps 3
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import stopwatch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from avssl import distributed
from avssl.config import Config, from_dict, with_overrides
from avssl.data.check import build_table
from avssl.data.loader import build_loader
from avssl.data.manifest import read_manifest, write_manifest
from avssl.data.sampling import TrainingBatches
from avssl.media.encode import write_clip
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Instances, Progress
from avssl.training.optim import build_optimizer
from avssl.training.setup import compile_encoders, keep_freed_memory, to_channels_last, training_clips
from avssl.training.step import forward_backward, train_step

_NUM_CLIPS = 16
_HEIGHT, _WIDTH, _FPS = 128, 160, 16
_NUM_INSTANCES = 100_000  # memory banks of a large set, which exceed the CPU caches
NUM_WARM = 2  # steps that are not counted: kernels are chosen, memory is fetched
SETTINGS = ("data.size=112", "data.num_workers=0", "method.name=avid")


def benchmark_step(
    *, overrides: Sequence[str], batch_size: int, num_steps: int, compiled: bool, seed: int
) -> dict[str, object]:
    """Time steps of the trainer on clips made for it, first as the reference, then as we train.

    The reference is float32 in torch's default layout and allocation; ours bfloat16 autocast with channels last, and
    freed memory kept. Everything else is the same code: batches, views, loss, optimizer. A clip/s counts all parts of a
    step but `data`, the time to read and decode a batch in the main process: workers do that beside the steps.

    Args:
        overrides: `section.key=value`, such as `model.video_width=0.5`.
        batch_size: clips per step.
        num_steps: steps of each that are counted; values are medians over them.
        compiled: compile our encoders (run.compile).
        seed: of weights, clips and draws.

    Returns:
        reference_clips_per_second, clips_per_second, speedup (their ratio); seconds and reference_seconds by part;
        loss_and_bank_fraction: of a step of ours, all after the encoders but the optimizer (heads, loss, their
        gradients, memory banks); product_gflops: 10^9 operations a second of a large matrix product in the precision of
        each; share_of_products: of that rate, what a step reaches; gradient_error and rounding_error, see there;
        compile_seconds (only if compiled);
        batch, threads.

    Raises:
        ValueError: batch_size or num_steps is below 1; ConfigError (one too): an override is wrong, or no compiler
            works.
    """
    check_counts(batch_size, num_steps)
    with tempfile.TemporaryDirectory() as folder:
        ours = make_config(Path(folder), [*SETTINGS, *overrides], batch_size=batch_size, seed=seed)
        batches, data_seconds = load_batches(ours, num=3)
    device = distributed.init(ours.run.device)
    batches = [batch.to(device) for batch in batches]
    reference = ours.replace(run=ours.run.replace(precision="float32", channels_last=False))
    reference_seconds, _ = time_steps(reference, batches, num_steps, device, compiled=False)
    keep_freed_memory()
    seconds, compile_seconds = time_steps(ours, batches, num_steps, device, compiled=compiled)
    behind = sum(seconds[part] for part in ("heads", "loss", "heads and loss backward", "bank"))
    rates = [batch_size / sum(parts.values()) for parts in (reference_seconds, seconds)]
    each = (("reference", reference, rates[0]), ("ours", ours, rates[1]))
    flops = flops_of_step(ours, batches[0], device)
    products = {name: product_rate(config, device) for name, config, _ in each}
    return {
        "reference_clips_per_second": rates[0],
        "clips_per_second": rates[1],
        "speedup": rates[1] / rates[0],
        "seconds": {"data": data_seconds, **seconds},
        "reference_seconds": {"data": data_seconds, **reference_seconds},
        "product_gflops": {name: rate / 1e9 for name, rate in products.items()},
        "share_of_products": {name: flops * rate / batch_size / products[name] for name, _, rate in each},
        "loss_and_bank_fraction": behind / sum(seconds.values()),
        "gradient_error": gradient_error(reference, ours, batches[0], device),
        "rounding_error": gradient_error(reference, reference, batches[0], device, rounded=True),
        **({"compile_seconds": compile_seconds} if compiled else {}),
        "batch": batch_size,
        "threads": torch.get_num_threads(),
    }


def check_counts(batch_size: int, num_steps: int) -> None:
    if batch_size < 1 or num_steps < 1:
        raise ValueError(f"batch is {batch_size} and steps {num_steps}: expected at least 1 of each")


def make_config(folder: Path, overrides: Sequence[str], *, batch_size: int, seed: int) -> Config:
    """Write noisy clips with sound and their manifest into a folder; the configuration that trains on them as we do."""
    rng = np.random.default_rng(seed)
    given = [f"data.manifest={folder / 'manifest.parquet'}", f"run.dir={folder / 'run'}", f"run.seed={seed}"]
    given += [f"data.batch_size={batch_size}", "data.split=null", "run.precision=bfloat16"]
    config = from_dict(with_overrides({}, [*given, *overrides]), source="benchmark step")
    data = config.data
    seconds = max(data.num_frames / data.fps, data.audio_seconds) + 1
    rows = [{"path": f"{number}.mp4"} for number in range(_NUM_CLIPS)]
    for row in rows:
        coarse = rng.integers(0, 255, (round(seconds * _FPS), _HEIGHT // 16, _WIDTH // 16, 3), dtype=np.uint8)
        samples = 0.1 * rng.standard_normal(round(seconds * data.sample_rate)).astype(np.float32)
        write_clip(
            folder / row["path"],
            coarse.repeat(16, axis=1).repeat(16, axis=2),
            fps=_FPS,
            samples=samples,
            sample_rate=data.sample_rate,
        )
    write_manifest(folder / "manifest.parquet", build_table(folder, rows, num_workers=1), root=folder)
    return config


def load_batches(config: Config, *, num: int) -> tuple[list[Batch], float]:
    """Batches as the trainer loads them, and the seconds that each took in this process."""
    manifest = read_manifest(config.data.manifest, root=config.data.root)
    keys = TrainingBatches(
        np.arange(_NUM_CLIPS),
        clips_per_video=config.data.clips_per_video,
        batch_size=config.data.batch_size,
        num_epochs=num * config.data.batch_size,
        seed=config.run.seed,
    )
    dataset = training_clips(manifest, config, build_large(config, torch.device("cpu")))
    arrivals, batches, seconds = iter(build_loader(dataset, keys, config.data, device=torch.device("cpu"))), [], []
    for _ in range(num):
        start = time.perf_counter()
        batches.append(next(arrivals))
        seconds.append(time.perf_counter() - start)
    return batches, median(seconds)


def gradient_error(
    reference: Config, ours: Config, batch: Batch, device: torch.device, *, rounded: bool = False
) -> dict[str, float]:
    """|ours - reference| / |reference| of the gradient of each encoder, from the same random weights on the same batch.

    Rounding alone changes such gradients a lot: another position wins a global maximum, other units pass a ReLU.
    `rounded` measures how much: ours then starts from weights rounded to bfloat16. A bfloat16 step is right when its
    error is of that size.
    """
    right, found = _gradients(reference, batch, device), _gradients(ours, batch, device, rounded=rounded)
    return {name: float((found[name] - right[name]).norm() / right[name].norm()) for name in right}


def _gradients(config: Config, batch: Batch, device: torch.device, *, rounded: bool = False) -> dict[str, Tensor]:
    method = build_large(config, device)
    if rounded:
        for parameter in method.encoders.parameters():
            parameter.data = parameter.data.bfloat16().float()
    forward_backward(method, batch, config, Progress(0, 0, 1))
    return {
        name: torch.cat([parameter.grad.flatten().float() for parameter in encoder.parameters()])
        for name, encoder in method.encoders.items()
    }


def flops_of_step(config: Config, batch: Batch, device: torch.device) -> int:
    """Operations of a step's products and convolutions, backward too; a multiplication and its addition are two."""
    method = build_large(config, device)
    with FlopCounterMode(display=False) as counter:
        forward_backward(method, batch, config, Progress(0, 0, 1))
    return counter.get_total_flops()


def product_rate(config: Config, device: torch.device, *, size: int = 2048, num: int = 5) -> float:
    """Operations a second of a product of two square matrices in a precision: the fastest of a few."""
    x = torch.randn(size, size, dtype=getattr(torch, config.run.precision), device=device)
    seconds = []
    for _ in range(1 + num):
        since = now(device)
        x @ x
        seconds.append(now(device) - since)
    return 2 * size**3 / min(seconds)


def time_steps(
    config: Config, batches: Sequence[Batch], num_steps: int, device: torch.device, *, compiled: bool
) -> tuple[dict[str, float], float]:
    """Seconds of a step by part (medians over the steps), and of the first step, which compiles."""
    method = build_large(config, device)
    optimizer = build_optimizer(method.named_parameters(), config.optim)
    if compiled:
        compile_encoders(method, device)
    clock = StepClock(method, optimizer, device)
    steps = []
    for step in range(NUM_WARM + num_steps):
        clock.start()
        train_step(method, optimizer, batches[step % len(batches)], config, Progress(0, step, NUM_WARM + num_steps))
        steps.append(clock.seconds)
    counted = steps[NUM_WARM:]
    return {part: median(each[part] for each in counted) for part in counted[0]}, sum(steps[0].values())


class StepClock:
    """Times the parts of a step by hooks: each hook ends the part before it.

    Args:
        method: with `encoders` and a head for each; a gradient belongs to the module whose parameter it reaches.
        optimizer: its step is a part, the gradient norms before it another.
        device: a GPU is synchronized at every moment.
    """

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.device = device
        method.register_forward_pre_hook(lambda *_: self.end("views"))
        method.register_forward_hook(lambda *_: self.end("loss"))
        for name, encoder in method.encoders.items():
            encoder.register_forward_hook(lambda *_, part=f"{name} encoder": self.end(part))
            self._end_gradients(encoder, f"{name} encoder backward")
            method.head(name).register_forward_hook(lambda *_: self.end("heads"))
            self._end_gradients(method.head(name), "heads and loss backward")
        optimizer.register_step_pre_hook(lambda *_: self.end("gradient norms"))
        optimizer.register_step_post_hook(lambda *_: self.end("optimizer"))
        after_step = method.after_step

        def timed_after_step(*given: object) -> None:
            self.end("optimizer")  # the gradients are freed in between
            after_step(*given)
            self.end("bank")

        method.after_step = timed_after_step

    def start(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = now(self.device)

    def end(self, part: str) -> None:
        """Count the time since the last moment towards a part."""
        since, self._since = self._since, now(self.device)
        self.seconds[part] += self._since - since

    def _end_gradients(self, module: nn.Module, part: str) -> None:
        def end(parameter: Tensor) -> None:
            self.end(part)

        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(end)


def now(device: torch.device) -> float:
    """Seconds of the clock after a host sync."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def build_large(config: Config, device: torch.device) -> Method:
    """The method for many instances, of which the clips are the first."""
    every = torch.ones(_NUM_INSTANCES, dtype=torch.bool)
    method = build_method(config, Instances(valid=every, has_audio=every, has_video=every)).to(device).train()
    to_channels_last(method, enabled=config.run.channels_last)
    return method


def command(doc: str) -> argparse.ArgumentParser:
    """The parser of a comparison of steps."""
    parser = stopwatch.command(doc, seed=0)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the training")
    parser.add_argument("--batch", dest="batch_size", type=int, default=8, help="clips per step (default: 8)")
    parser.add_argument("--steps", dest="num_steps", type=int, default=5, help="that are counted (default: 5)")
    return parser


def main() -> int:
    parser = command(__doc__)
    parser.add_argument("--compile", dest="compiled", action="store_true", help="torch.compile the encoders (ours)")
    plan = "2 + {num_steps} steps of {batch_size} clips in float32, and as we train {overrides}"
    return stopwatch.run(parser, benchmark_step, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
