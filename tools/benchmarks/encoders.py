"""Cost of every encoder: parameters, arithmetic, and clips per second of a training step on this machine.

    python tools/benchmarks/encoders.py --threads 1
    python tools/benchmarks/encoders.py --names x3d_s slow_r50

docs/encoders.md holds what it printed.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import stopwatch
import torch
from torch.utils.flop_counter import FlopCounterMode

from avssl.config import hint
from avssl.models import ENCODERS
from avssl.models.guard import guard_gradients
from avssl.models.heads import Encoder
from avssl.training.setup import to_channels_last

USUAL_SIZE = {  # (T, H, W), (S, F) or (n,): the published clip, 2 s of sound for the audio encoders
    "r2plus1d_avid": (8, 224, 224),
    "r2plus1d_18": (16, 112, 112),
    "r3d_18": (16, 112, 112),
    "mc3_18": (16, 112, 112),
    "s3d": (16, 224, 224),
    "mvit_v2_s": (16, 224, 224),
    "swin3d_t": (16, 224, 224),
    "x3d_xs": (4, 160, 160),
    "x3d_s": (13, 160, 160),
    "x3d_m": (16, 224, 224),
    "slow_r50": (8, 224, 224),
    "csn_r101": (32, 224, 224),
    "r2plus1d_50": (16, 224, 224),
    "resnet18_frames": (8, 224, 224),
    "resnet50_frames": (8, 224, 224),
    "vit": (8, 112, 112),
    "conv2d_avid": (200, 257),
    "conv1d_cpc": (32_000,),
    "resnet18_audio": (200, 64),
}


def benchmark_encoders(*, names: Sequence[str], batch_size: int, num_steps: int) -> dict[str, Any]:
    """Measure encoders one after another, with torch's current number of threads.

    Args:
        names: keys of ENCODERS.
        batch_size: clips of a training step.
        num_steps: steps that are counted, behind one that is not.

    Returns:
        encoders: a row as of `measure_encoder` for each; batch_size, num_steps, threads.

    Raises:
        ValueError: an unknown name, or a count below 1.
    """
    if batch_size < 1 or num_steps < 1:
        raise ValueError(f"batch size is {batch_size}, steps {num_steps}, expected at least 1 of each")
    for name in names:
        if name not in ENCODERS:
            raise ValueError(f"{name} is not an encoder: {hint(name, ENCODERS)}")
    rows = [measure_encoder(name, batch_size=batch_size, num_steps=num_steps) for name in names]
    return {"encoders": rows, "batch_size": batch_size, "num_steps": num_steps, "threads": torch.get_num_threads()}


def measure_encoder(name: str, *, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Cost of one encoder on clips of its usual size.

    Returns:
        name; size: lengths behind the channels; min_size: the smallest that it takes; parameters: millions; gflops: of
        the forward pass of one clip, a multiplication and its addition counted as two; clips_per_second: forward and
        backward with batch statistics under bfloat16 autocast, channels last; maps: {name: channels}.
    """
    encoder = guard_gradients(ENCODERS[name]())
    to_channels_last(encoder)
    size = USUAL_SIZE[name]
    layout = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[len(size)]
    x = torch.randn(batch_size, encoder.in_channels, *size).contiguous(memory_format=layout)  # (B, C, ...)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(x[:1])
    encoder.train()
    _step(encoder, x)
    start = time.perf_counter()
    for _ in range(num_steps):
        _step(encoder, x)
    seconds = time.perf_counter() - start
    return {
        "name": name,
        "size": list(size),
        "min_size": list(encoder.min_size),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()) / 1e6,
        "gflops": counter.get_total_flops() / 1e9,
        "clips_per_second": num_steps * batch_size / seconds,
        "maps": encoder.feature_dims,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The table of docs/encoders.md."""
    lines = [
        "| encoder | clip | smallest | parameters (M) | GFLOPs | clips/s | maps (channels) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["encoders"]:
        size, min_size = ("x".join(map(str, row[key])) for key in ("size", "min_size"))
        maps = ", ".join(f"{name} {channels}" for name, channels in row["maps"].items())
        lines.append(
            f"| {row['name']} | {size} | {min_size} | {row['parameters']:.1f} | {row['gflops']:.1f} "
            f"| {row['clips_per_second']:.2f} | {maps} |"
        )
    return "\n".join(lines)


def _step(encoder: Encoder, x: torch.Tensor) -> None:
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(x)  # (B, dim)
    output.float().square().mean().backward()


def main() -> int:
    parser = stopwatch.command(__doc__)
    parser.add_argument("--names", nargs="+", default=list(ENCODERS), help="encoders (default: all)")
    parser.add_argument("--batch", dest="batch_size", type=int, default=2, help="clips per step (default: 2)")
    parser.add_argument("--steps", dest="num_steps", type=int, default=1, help="steps that are counted (default: 1)")
    plan = "1 + {num_steps} steps of {batch_size} clips of each of {names}"
    return stopwatch.run(parser, benchmark_encoders, plan=plan, text=as_markdown)


if __name__ == "__main__":
    sys.exit(main())
