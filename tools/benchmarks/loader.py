"""Speed of loading clips beside plain PyAV: clips/s of a process, ms by stage, one worker and two, from the clips, from
their training copies, and from these in tar files.

    python tools/benchmarks/loader.py clips/manifest.parquet --prepared clips_128/manifest.parquet
    python tools/benchmarks/loader.py made/raw/manifest.parquet --make
    python tools/benchmarks/loader.py made/raw/manifest.parquet --soak 20000

--make makes clips first that resemble Kinetics' trimmed and shrunk ones: 340x256, 10 s, 30 frames a second, a
keyframe every 150 frames; then their copies, packed too. --soak watches the memory of a worker instead.

plain = open, seek, decode, convert the wanted frames at full size, decode and resample the wanted audio; nothing
else. raw, prepared, shards = `ClipDataset` and `collate`: drawing, decoding, cropping, resizing, audio, stacking, from
the clips themselves, from their training copies and from these in tar files (avssl prepare --shards).
"""

import functools
import math
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np
import stopwatch
import torch
from tqdm import tqdm

from avssl.config import DataConfig, load
from avssl.data.check import build_table
from avssl.data.dataset import ClipDataset, collate
from avssl.data.loader import build_loader
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.data.pack import pack
from avssl.data.prepare import list_clips, prepare
from avssl.data.sampling import Key
from avssl.media import decode, reader
from avssl.media.encode import write_clip
from avssl.media.prepare import Settings
from avssl.structs import Batch
from avssl.training.setup import keep_freed_memory
from avssl.transforms.views import View

ROOT = Path(__file__).resolve().parents[2]
VIEWS = (View("video"), View("audio", recipe="audio"))
BATCH = 8  # clips that are collated together
WIDTH, HEIGHT, FPS, SECONDS, KEYFRAMES = 340, 256, 30, 10, 150
SAMPLE_RATE = 44_100
CLIPS_PER_SHARD = 16
WORKER_SECONDS = 6.0  # how long the worker processes are watched
STAGES = ("open", "seek", "decode", "convert", "crop", "sound", "ship", "other")


def make_clips(manifest: Path, *, num_clips: int, seed: int = 0) -> None:
    """Write clips as described in the module into the folder of their manifest; if that is there already, nothing."""
    if manifest.exists():
        return
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}.mp4" for number in range(num_clips)]
    for number, name in enumerate(tqdm(names, desc="making clips", unit="clip")):
        rng = np.random.default_rng((seed, number))
        write_clip(
            folder / name,
            _moving_frames(rng),
            fps=FPS,
            samples=rng.uniform(-0.3, 0.3, SECONDS * SAMPLE_RATE).astype(np.float32),
            sample_rate=SAMPLE_RATE,
            gop=KEYFRAMES,
            b_frames=3,
        )
    write_manifest(manifest, build_table(folder, [{"path": name} for name in names]), root=folder)


def make_copies(manifest: Path) -> Path:
    """Prepare the clips of a manifest beside their folder, with the default settings; those there already stay.

    Returns:
        The manifest of the copies.
    """
    source = manifest.parent
    target = source.with_name(f"{source.name}_prepared")
    listing = list_clips(source, manifest)
    prepare(source, target, listing, Settings(), num_workers=os.cpu_count() or 1, timeout_seconds=600)
    return target / "manifest.parquet"


def _moving_frames(rng: np.random.Generator) -> np.ndarray:
    """A textured image under a moving camera, with moving objects and sensor noise: (T, H, W, 3) uint8."""
    margin = 80
    shape = (HEIGHT + 2 * margin, WIDTH + 2 * margin)
    layers = [
        cv2.resize(rng.uniform(-1, 1, (n, n, 3)).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
        / n**0.3
        for n in (4, 12, 40, 120, 300)
    ]
    scene = np.clip(120 + 90 * sum(layers), 0, 255).astype(np.uint8)
    noise = rng.normal(0, 3, (16, HEIGHT, WIDTH, 3)).astype(np.int8)
    frames = np.empty((SECONDS * FPS, HEIGHT, WIDTH, 3), dtype=np.uint8)
    pan, phase = rng.uniform(0.2, 1.0, 2), rng.uniform(0, 6.28, 4)
    for i in range(len(frames)):
        t = i / FPS
        top = int(margin + 0.9 * margin * np.sin(pan[0] * t + phase[0]))
        left = int(margin + 0.9 * margin * np.sin(pan[1] * t + phase[1]))
        frames[i] = scene[top : top + HEIGHT, left : left + WIDTH]
        for k in (0, 1):  # two moving objects
            center = (
                int(WIDTH * (0.5 + 0.4 * np.sin(t + phase[k]))),
                int(HEIGHT * (0.5 + 0.4 * np.cos(t + phase[k + 2]))),
            )
            cv2.circle(frames[i], center, 24, (230 * k, 200, 255 - 230 * k), -1)
        frames[i] = np.clip(frames[i].astype(np.int16) + noise[rng.integers(16)], 0, 255)
    return frames


def read_plainly(path: Path, start: float, audio_start: float, data: DataConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """Plain PyAV: the wanted frames, T of (H, W, 3), and the audio (1, n)."""
    wanted = start + np.arange(data.num_frames) / data.fps
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count = audio.codec_context.thread_count = 1
        container.seek(int(start / video.time_base), stream=video)
        frames, previous = [], None
        for frame in container.decode(video):
            while len(frames) < len(wanted) and wanted[len(frames)] < frame.time:
                frames.append((previous or frame).to_ndarray(format="rgb24"))
            if len(frames) == len(wanted):
                break
            previous = frame
        container.seek(int(audio_start / audio.time_base), stream=audio)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=data.sample_rate)
        parts = []
        for frame in container.decode(audio):
            if frame.time > audio_start + data.audio_seconds:
                break
            parts += resampler.resample(frame)
        parts += resampler.resample(None)
    return frames, np.concatenate([part.to_ndarray() for part in parts], axis=1)


def benchmark_loader(
    raw: Manifest,
    copies: Mapping[str, Manifest],
    *,
    data: DataConfig,
    num_clips: int = 48,
    num_rounds: int = 5,
    step_rate: float = 100.0,
) -> dict[str, Any]:
    """Measure on the same windows of the same clips, in turns, so that other load on the machine affects all alike.

    Args:
        raw: the clips.
        copies: {prepared, shards, none or one of them: their training copies, with the same rows}.
        data: lengths and rates; its num_workers is not used.
        num_clips: windows per turn.
        num_rounds: turns.
        step_rate: clips/s that the training step takes.

    Returns:
        plain, raw, and names of `copies`: clips/s of one process, median of the turns; NAME_ratio: to plain, median of
        each turn's; stages: {NAME: {stage: ms per clip}}; workers: {NAME: {"1", "2": clips/s, scaling}}; waiting:
        {NAME: fraction of a step's time at `step_rate` with two workers}.

    Raises:
        ValueError: no clip of `raw` is usable, or the manifests have other rows.
    """
    rows = np.flatnonzero(raw.valid() & raw.has_audio)
    if len(rows) == 0:
        raise ValueError("no clip of the manifest has video and audio")
    for name, each in copies.items():
        if len(each) != len(raw):
            raise ValueError(f"the manifest of {name} has {len(each)} rows, the raw one {len(raw)}: prepare it again")
    cv2.setNumThreads(0)
    keep_freed_memory()
    sets = {name: ClipDataset(each, data, VIEWS) for name, each in {"raw": raw, **copies}.items()}

    def keys(turn: int) -> list[Key]:
        return [Key(turn, int(rows[i % len(rows)]), i // len(rows)) for i in range(num_clips)]

    def plainly(turn: int) -> None:
        dataset = sets["raw"]
        for key in keys(turn):
            windows = dataset.windows(key)
            starts = (windows["video"].start, windows["audio"].start)
            read_plainly(dataset.manifest.path(key.id), *starts, data)

    def loaded(name: str) -> Callable[[int], None]:
        return lambda turn: _load(sets[name], keys(turn))

    kinds = {"plain": plainly} | {name: loaded(name) for name in sets}
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(num_rounds + 1):
        for name, run in kinds.items():
            began = time.perf_counter()
            run(turn)
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - began)
    rates = {name: num_clips / float(np.median(values)) for name, values in seconds.items()}
    ratios = {
        f"{name}_ratio": float(np.median(np.divide(seconds["plain"], seconds[name])))
        for name in kinds
        if name != "plain"
    }
    workers = {name: _worker_rates(each, data, keys, rates[name]) for name, each in sets.items()}
    return {
        **rates,
        **ratios,
        "stages": {name: _stages(each, keys(0)) for name, each in sets.items()},
        "workers": workers,
        "step_rate": step_rate,
        "waiting": {name: max(0.0, 1 - each["2"] / step_rate) for name, each in workers.items()},
        "clips": len(rows),
    }


def _load(dataset: ClipDataset, keys: Sequence[Key]) -> None:
    for first in range(0, len(keys), BATCH):
        collate([dataset[key] for key in keys[first : first + BATCH]])


def _worker_rates(
    dataset: ClipDataset, data: DataConfig, keys: Callable[[int], list[Key]], rate: float
) -> dict[str, float]:
    """Clips/s through worker processes, counted from the first batches on, when all of them have started."""
    rates = {}
    num_turns = math.ceil(WORKER_SECONDS * rate / len(keys(0)))
    every = [key for turn in range(num_turns) for key in keys(turn)]
    batches = [every[first : first + BATCH] for first in range(0, len(every), BATCH)]
    for num_workers in (1, 2):
        settings = data.replace(num_workers=num_workers)
        arrivals = iter(build_loader(dataset, batches, settings, device=torch.device("cpu")))
        for _ in range(num_workers):
            next(arrivals)
        began = time.perf_counter()
        num_clips = sum(len(batch) for batch in arrivals)
        rates[str(num_workers)] = num_clips / (time.perf_counter() - began)
    return rates | {"scaling": rates["2"] / rates["1"]}


def _stages(dataset: ClipDataset, keys: Sequence[Key]) -> dict[str, float]:
    """ms per clip of each stage; nested stages are counted once."""
    with _timed() as spent:
        began = time.perf_counter()
        for first in range(0, len(keys), BATCH):
            batch = collate([dataset[key] for key in keys[first : first + BATCH]])
            _hand_over(batch)
        total = time.perf_counter() - began
    spent["other"] = total - sum(spent.values())
    return {stage: 1000 * spent[stage] / len(keys) for stage in STAGES}


def _hand_over(batch: Batch) -> None:
    """Move the tensors of a batch into shared memory, as a worker does."""
    ForkingPickler.dumps(batch)


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Seconds spent in each stage, without those of stages inside it, while the functions below are wrapped."""
    stage_of = [
        (reader.Reader, "_open", "open"),
        (reader.Reader, "_seek", "seek"),
        (decode, "_pick_frames", "decode"),
        (decode, "_read_audio", "sound"),
        (decode._Collector, "take", "crop"),
        (decode._Collector, "finish", "crop"),
        (decode.VideoReformatter, "reformat", "convert"),
        (sys.modules[__name__], "collate", "ship"),
        (sys.modules[__name__], "_hand_over", "ship"),
    ]
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    inner = [0.0]  # seconds of finished stages inside each running one

    def wrapped(function: Callable, stage: str) -> Callable:
        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                total = time.perf_counter() - began
                spent[stage] += total - inner.pop()
                inner[-1] += total

        return call

    with ExitStack() as stack:
        for owner, name, stage in stage_of:
            stack.enter_context(mock.patch.object(owner, name, wrapped(getattr(owner, name), stage)))
        yield spent


def measure_memory(manifest: Manifest, *, data: DataConfig, num_clips: int) -> dict[str, Any]:
    """Load many clips in one worker process and watch its memory.

    Returns:
        clips; megabytes_start: resident after the first tenth, megabytes_end, growth_megabytes, clips_per_second.
    """
    rows = np.flatnonzero(manifest.valid())
    batches = [
        [Key(number // len(rows), int(rows[number % len(rows)]), 0) for number in range(first, first + BATCH)]
        for first in range(0, num_clips, BATCH)
    ]
    settings = data.replace(num_workers=1)
    loader = build_loader(ClipDataset(manifest, settings, VIEWS), batches, settings, device=torch.device("cpu"))
    before = set(multiprocessing.active_children())
    arrivals = iter(loader)
    (worker,) = set(multiprocessing.active_children()) - before
    began, sizes = time.perf_counter(), []
    for number, _ in enumerate(tqdm(arrivals, total=len(batches), desc="loading", unit="batch", mininterval=2)):
        if number % max(1, len(batches) // 20) == 0 or number == len(batches) - 1:
            sizes.append(_resident_megabytes(worker.pid) if worker.is_alive() else sizes[-1])
    start = sizes[len(sizes) // 10]
    return {
        "clips": len(batches) * BATCH,
        "megabytes_start": start,
        "megabytes_end": sizes[-1],
        "growth_megabytes": sizes[-1] - start,
        "clips_per_second": len(batches) * BATCH / (time.perf_counter() - began),
    }


def _resident_megabytes(pid: int) -> float:
    """Memory that a process has in RAM (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(
    manifest: Path,
    overrides: list[str],
    prepared: Path | None,
    shards: Path | None,
    make: bool,
    num_soaked: int | None,
    **how: Any,
) -> dict[str, Any]:
    given = [f"data.manifest={manifest}", "run.dir=none", "data.size=112", *overrides]
    data = load(ROOT / "configs" / "kinetics" / "avid.yaml", given).data
    if make:
        make_clips(manifest, num_clips=how["num_clips"])
        prepared = prepared or make_copies(manifest)
        shards = shards or prepared.parent.with_name(f"{prepared.parent.name}-shards") / prepared.name
        pack(read_manifest(prepared), shards.parent, clips_per_shard=CLIPS_PER_SHARD)
    raw = read_manifest(manifest)
    if num_soaked:
        return measure_memory(raw, data=data, num_clips=num_soaked)
    copies = {name: read_manifest(path) for name, path in (("prepared", prepared), ("shards", shards)) if path}
    return benchmark_loader(raw, copies, data=data, **how)


def main() -> int:
    parser = stopwatch.command(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("manifest", type=Path, help="of the clips; with --make it is written")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="lengths and rates (default: 8 at 112)")
    parser.add_argument("--prepared", type=Path, help="manifest of their training copies")
    parser.add_argument("--shards", type=Path, help="manifest of these in tar files")
    parser.add_argument("--make", action="store_true", help="make clips there, and copies beside")
    parser.add_argument("--clips", dest="num_clips", type=int, default=48, help="windows per turn; --make: clips too")
    parser.add_argument("--rounds", dest="num_rounds", type=int, default=5, help="turns that are counted (default: 5)")
    parser.add_argument("--step-rate", type=float, default=100.0, help="clips/s of a training step (default: 100)")
    parser.add_argument("--soak", dest="num_soaked", type=int, metavar="N", help="instead load N windows in one worker")
    plan = (
        "1 + {num_rounds} turns of {num_clips} windows of {manifest} by plain PyAV and us, then 1 and 2 workers "
        "(--make: {make}); with --soak only one worker: {num_soaked} windows"
    )
    return stopwatch.run(parser, measure, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
