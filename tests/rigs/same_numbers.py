"""Shows that a change alters no number: trains toy avid, avid_cma and joint for 30 steps and compares every bit.

    python tests/rigs/same_numbers.py --work /tmp/same            # compare with tests/rigs/same_numbers.json
    python tests/rigs/same_numbers.py --work /tmp/same --write    # record anew, on the code that is right

Bits depend on the processor and on torch: record and compare on one machine. Weights and views are compared by their
bytes whatever they are called. Exit code: 0 equal, 1 different.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix(".json")
NUM_CLIPS, NUM_STEPS, NUM_BATCHES = 60, 30, 20
METHODS = {  # name of the toy config: overrides, so that 30 steps mine too
    "avid": ["data.batch_size=16", "method.in_batch_epochs=0"],
    "avid_cma": ["data.batch_size=16", "method.mine_every=1"],
    "joint": ["data.batch_size=16", "method.parts.avid_cma.mine_from_epoch=1"],
}


def digest(tensors: Iterable[torch.Tensor | np.ndarray]) -> str:
    """Of the bytes of some tensors, in any order."""
    each = [np.ascontiguousarray(torch.as_tensor(tensor).contiguous().numpy()) for tensor in tensors]
    parts = sorted(hashlib.sha256(f"{x.shape}{x.dtype}".encode() + x.tobytes()).hexdigest() for x in each)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:24]


def tool(name: str, *arguments: str | Path) -> None:
    """Run a command. One that the system ends is called again: float32 trainings of one-frame patches die now and then
    in torch's heap on CPU ("corrupted size vs. prev_size"), and a run continues bit-equal.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    for _ in range(6):
        code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
        if code >= 0:
            break
        print(f"{name} ended with {code}: again", file=sys.stderr)
    if code not in (0, 1):  # 1: a run stopped by run.max_steps
        sys.exit(f"{name} ended with {code}")


def make_media(work: Path) -> None:
    """A small toy set with tracks, once."""
    manifest = work / "toy" / "manifest.parquet"
    sizes = ["--train", NUM_CLIPS, "--test", 2, "--actions-train", 2, "--actions-test", 2]
    tool("datasets/toy.py", work, *sizes)
    if not (work / "tracks.parquet").exists():
        tool("tools/track.py", manifest, "--out", work / "tracks.parquet")


def settings(name: str, work: Path) -> list[str]:
    """Overrides that a toy config needs here."""
    tracks = [f"method.parts.patch.tracks={work / 'tracks.parquet'}"] if name == "joint" else []
    return [f"data.manifest={work / 'toy' / 'manifest.parquet'}", *tracks, *METHODS[name]]


def train(name: str, work: Path, runs: Path, *, precision: str, num_workers: int) -> dict[str, object]:
    """Loss and gradient norm of every step as hex, and a digest of the weights after the last."""
    folder, first = (runs / f"{each}-{precision}-{num_workers}" for each in (name, "avid"))
    init = [f"model.init={first}"] if name == "avid_cma" else []
    run = [f"run.dir={folder}", f"run.precision={precision}", "run.num_threads=1", "run.log_every=1"]
    run += [f"run.max_steps={NUM_STEPS}", "run.checkpoint_every=5", f"data.num_workers={num_workers}"]
    tool("tools/train.py", ROOT / f"configs/toy/{name}.yaml", *settings(name, work), *init, *run)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == NUM_STEPS, f"{folder}: {len(lines)} steps"
    state = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
    return {
        "loss": [line["loss"].hex() for line in lines],
        "grad_norm": [line["grad_norm"].hex() for line in lines],
        "weights": digest(
            value
            for name, value in state["model"].items()  # statistics of BatchNorm touch no number above
            if value.is_floating_point() and not name.endswith(("running_mean", "running_var"))
        ),
    }


def batches(name: str, work: Path, *, num_workers: int) -> list[dict[str, str]]:
    """Digests of what the loader gives."""
    from avssl import config as configuration
    from avssl.data.loader import build_loader
    from avssl.data.manifest import read_manifest
    from avssl.data.sampling import TrainingBatches
    from avssl.methods import build_method
    from avssl.training.setup import training_clips, usable_instances

    overrides = [*settings(name, work), "run.dir=none", f"data.num_workers={num_workers}"]
    config = configuration.load(ROOT / f"configs/toy/{name}.yaml", overrides)
    manifest = read_manifest(config.data.manifest)
    instances = usable_instances(manifest, config)
    dataset = training_clips(manifest, config, build_method(config, instances))
    keys = TrainingBatches(
        instances.valid.nonzero().squeeze(1).numpy(),
        clips_per_video=config.data.clips_per_video,
        batch_size=config.data.batch_size,
        num_epochs=config.optim.epochs,
        seed=config.run.seed,
    )
    found = []
    for _, batch in zip(
        range(NUM_BATCHES), build_loader(dataset, keys, config.data, device=torch.device("cpu")), strict=False
    ):
        found.append(
            {
                "pixels": digest(batch.video.values()),
                "samples": digest(batch.audio.values()),
                "starts": digest(batch.start.values()),
                "params": digest(value for group in batch.params.values() for value in group.values()),
                "rest": digest([batch.ids, batch.has_audio, batch.has_video, *batch.padded.values()]),
            }
        )
    return found


def record(work: Path, runs: Path) -> dict[str, object]:
    torch.set_num_threads(1)
    make_media(work)
    found: dict[str, object] = {}
    for num_workers in (0, 2):
        for name in ("avid", "joint"):
            found[f"batches of {name}, {num_workers} workers"] = batches(name, work, num_workers=num_workers)
        for precision in ("float32", "bfloat16"):
            for name in METHODS:
                key = f"{name}, {precision}, {num_workers} workers"
                found[key] = train(name, work, runs, precision=precision, num_workers=num_workers)
                print(f"{key}: {found[key]['weights']}", file=sys.stderr)  # type: ignore[index]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the toy set and the runs")
    parser.add_argument("--write", action="store_true", help="record instead of comparing")
    given = parser.parse_args()
    work = given.work.resolve()
    runs = work / "runs" / str(os.getpid())
    found = record(work, runs)
    if given.write:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    expected = json.loads(RECORD.read_text())
    different = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    for key in sorted(different):
        print(f"different: {key}")
    print(f"{len(expected) - len(different)} of {len(expected)} equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
