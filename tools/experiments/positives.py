"""Where positives come from, compared on the toy set: time, tracking, agreement, and all of them at once.

    python tools/experiments/positives.py data --out runs/positives --seeds 0 1 2
    python tools/experiments/positives.py data optim.epochs=2 --out runs/short --seeds 0 --rows avid joint

DATA holds the sets of `avssl datasets toy DATA`. A row is a recipe of configs/toy, trained for the same number of
steps with the same batches, augmentation (but walk, whose grid has its own) and encoders as all others, or encoders
with random weights; one run per seed. Tracks are mined once. Results are cached; a stopped training is resumed.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from experiment import (
    SECONDS,
    cached,
    features_of,
    info,
    probe_accuracy,
    read_set,
    rows_of,
    table_of,
    train_timed,
)

from avssl import distributed
from avssl.config import Config, load
from avssl.data.find_tracks import track_manifest
from avssl.data.manifest import Manifest
from avssl.evaluate.propagate import score_propagation
from avssl.evaluate.scenes import make_scene
from avssl.methods import build_method, method_options
from avssl.mining.tracking import Options
from avssl.structs import Instances
from avssl.weights.features import calibrated
from avssl.weights.load import Run, load_run, run_of, with_data

EPOCHS, CLIPS_PER_VIDEO, BATCH_SIZE = 4, 4, 32  # the budget of every row: on 600 clips, epochs of 75 steps
SIZE = 48  # pixels of the frames that every row is evaluated on
COMMON = (
    f"optim.epochs={EPOCHS}",
    *("optim.lr=3e-3", "optim.schedule=cosine", "optim.warmup_epochs=1"),
    f"data.clips_per_video={CLIPS_PER_VIDEO}",
    f"data.batch_size={BATCH_SIZE}",
    f"data.size={SIZE}",
    *("data.num_frames=8", "data.fps=8", "data.min_crop_area=0.5", "data.jitter=[0.4,0.4,0.4,0.1]", "data.gray=0.2"),
    "data.hop_seconds=0.01",
    *("data.cache_gigabytes=1.5", "data.num_workers=1", "run.num_threads=2"),  # the toy set fits: workers do little
)
NUM_CLIPS, NUM_FRAMES = 3, 8  # clips averaged per video, and frames of rows that learn from frames
NUM_SCENES, SCENE_SIZE = 8, 160  # synthetic scenes for mask propagation, and their short side in pixels
NOT_COMPARED = ("manifest", "root", "num_workers", "worker_timeout_seconds", "cache_gigabytes", "tracks")  # no effect


@dataclass(frozen=True)
class Row:
    """A row of the table.

    heading: in the table.
    config: name of the recipe.
    changed: what is changed in it; {tracks} stands for the table of tracks, {half} for half of the epochs.
    frames: it learns from single frames, and is evaluated on single frames.
    trained: False = random weights.
    """

    heading: str
    config: str
    changed: tuple[str, ...] = ()
    frames: bool = False
    trained: bool = True

    @property
    def needs_tracks(self) -> bool:
        return any("{tracks}" in line for line in self.changed)


ROWS = {
    "random": Row("random init", "avid", trained=False),
    "random_frames": Row("random init (frames)", "neighbour", frames=True, trained=False),
    "neighbour_frames": Row("neighbor (frames)", "neighbour", ("data.num_frames=1",), frames=True),
    "neighbour_clips": Row("neighbor (clips)", "neighbour"),
    "patch": Row("patch (tracked)", "patch", ("method.tracks={tracks}",), frames=True),
    "walk": Row("walk", "walk", ("data.num_frames=4", "data.size=64"), frames=True),
    "avid": Row("AVID", "avid", ("method.in_batch_epochs={half}",)),
    "avid_cma": Row(
        "AVID-CMA",
        "avid_cma",
        ("model.init=null", "method.in_batch_epochs={half}", "method.mine_from_epoch={half}", "method.mine_every=1"),
    ),
    "joint": Row(
        "joint", "joint", ("method.parts.avid_cma.mine_from_epoch={half}", "method.parts.patch.tracks={tracks}")
    ),
}
PARTS_OF_JOINT = ("avid_cma", "neighbour_clips", "patch")
COLUMNS = {
    "classes, video and audio": ("linear", "both"),
    "classes, video": ("linear", "video"),
    "motions": ("transfer", "video"),
    "label propagation J&F": ("propagation", "jf"),
}


def config_of(row: Row, *, overrides: Sequence[str], own: Sequence[str], tracks: Path | None) -> Config:
    """The row's recipe with the common settings, then `overrides`, then what the row changes, then `own`."""
    path, given = f"toy/{row.config}", [*COMMON, *overrides]
    half = max(1, load(path, [*given, *own]).optim.epochs // 2)
    return load(path, [*given, *(line.format(tracks=tracks, half=half) for line in row.changed), *own])


def read_sets(data: Path) -> dict[str, Manifest]:
    """The manifests of toy and toy_actions. Raises ValueError: one is missing."""
    return {name: read_set(data / name) for name in ("toy", "toy_actions")}


def mine_tracks(toy: Manifest, out: Path) -> None:
    """Write the tracks of the clips to train on, as avssl track does, unless they are there."""
    if not out.exists():
        info(f"== track {out}")
        track_manifest(
            toy,
            out,
            dataclasses.asdict(Options()),
            split="train",
            num_workers=os.cpu_count() or 1,
            timeout_seconds=300.0,
        )


def run_row(
    out: Path, name: str, *, data: Path, seed: int, overrides: Sequence[str], tracks: Path | None
) -> dict[str, Any] | None:
    """Train and measure one seed of one row; metrics are cached beside the run.

    Args:
        out: folder of the whole table; the run lies in out/<row>/seed<seed>, its metrics in the file beside it.
        name: of the row in ROWS.
        data: folder with toy and toy_actions.
        overrides: given to every row.
        tracks: table of tracks of toy, for the rows that need them.

    Returns:
        Metrics of `measure`, with `settings` and the seconds of training and measuring; None when the training was
        stopped. Cached metrics are read.

    Raises:
        ValueError: the cached metrics are of other settings.
    """
    row, folder = ROWS[name], out / name / f"seed{seed}"
    config = config_of(row, overrides=overrides, own=own_of(data, folder, seed), tracks=tracks)
    metrics, settings = folder.with_suffix(".json"), settings_of(config)
    if not metrics.exists():
        if row.trained and not train_timed(config):
            return None
        info(f"== measure {folder}")
        sets = read_sets(data)
        toy = sets["toy"]
        run = load_run(folder) if row.trained else calibrated(untrained_run(config), toy, rows_of(toy)["train"])
        seconds = cached(folder / SECONDS, dict) if row.trained else {}
        cached(metrics, lambda: measure(run, sets, frames=row.frames) | seconds | {"settings": settings})
    found = cached(metrics, dict)
    other = [key for key, value in settings.items() if found["settings"].get(key, value) != value]
    if other or settings.keys() != found["settings"].keys():
        key = (other or sorted(settings.keys() ^ found["settings"].keys()))[0]
        raise ValueError(
            f"{metrics} was measured with {key}={found['settings'].get(key)}, not {settings.get(key)}: choose another "
            "--out, or move what is there away"
        )
    return found


def own_of(data: Path, folder: Path, seed: int) -> list[str]:
    """What only this run has."""
    return [f"data.manifest={data / 'toy' / 'manifest.parquet'}", f"run.dir={folder}", f"run.seed={seed}"]


def settings_of(config: Config) -> dict[str, Any]:
    """What metrics depend on, as {section.key: value}, without NOT_COMPARED."""

    def flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        for name, entry in value.items():
            if isinstance(entry, Mapping):
                yield from flat(entry, f"{key}{name}.")
            elif name not in NOT_COMPARED:
                yield f"{key}{name}", entry

    sections = config.model_dump(mode="json") | {"method": method_options(config, only_given=True)}
    measured = {"clips": NUM_CLIPS, "frames": NUM_FRAMES, "scenes": NUM_SCENES, "scene_size": SCENE_SIZE}
    kept = {name: sections[name] for name in ("data", "model", "method", "optim")}
    return dict(flat(kept | {"run": {"seed": config.run.seed, "precision": config.run.precision}}, "")) | {
        f"measured.{name}": value for name, value in measured.items()
    }


def untrained_run(config: Config) -> Run:
    """The encoders of a configuration before the first step."""
    clips = torch.ones(2, dtype=torch.bool)  # the fewest that methods take; the encoders do not depend on it
    method = build_method(config, Instances(clips, has_audio=clips, has_video=clips))
    return run_of(method, config, path=Path(config.run.dir), device=distributed.init(config.run.device))


def measure(run: Run, sets: Mapping[str, Manifest], *, frames: bool) -> dict[str, Any]:
    """Evaluate a run.

    Args:
        frames: evaluate NUM_FRAMES single frames of a video, instead of NUM_CLIPS clips.

    Returns:
        linear: accuracy of linear probes on the classes of toy {video, and where the run hears audio, both};
        transfer: on the motions of toy_actions {video}; chance {linear, transfer}; propagation {j, f, jf, still_jf} of
        masks propagated through NUM_SCENES scenes, still = the first mask copied; measure_seconds.
    """
    since = time.perf_counter()
    run = with_data(run, size=min(SIZE, run.data.size))  # walk is trained on cells of larger pictures
    run = with_data(run, num_frames=1) if frames else run
    num_clips = NUM_FRAMES if frames else NUM_CLIPS
    classes, motions = (
        probe_accuracy("linear", clips, features_of(run, clips, num_clips=num_clips))
        for clips in (sets["toy"], sets["toy_actions"])
    )
    names = [str(seed) for seed in range(NUM_SCENES)]
    scores = score_propagation(run, names, read_scene, size=SCENE_SIZE, progress="masks")["scores"]
    return {
        "linear": classes["accuracy"],
        "transfer": {"video": motions["accuracy"]["video"]},
        "chance": {"linear": classes["chance"]["video"], "transfer": motions["chance"]["video"]},
        "propagation": {name: scores["propagated"][name] for name in ("j", "f", "jf")}
        | {"still_jf": scores["still"]["jf"]},
        "measure_seconds": time.perf_counter() - since,
    }


def read_scene(seed: str) -> tuple[np.ndarray, np.ndarray]:
    scene = make_scene(int(seed))
    return scene.frames, scene.masks


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The table and its notes.

    Args:
        results: one per seed, {row: metrics}.
    """
    names = [name for name in ROWS if name in results[0]]
    first = results[0][names[0]]
    seconds = {
        ROWS[name].heading: [r[name]["train_seconds"] for r in results if "train_seconds" in r[name]] for name in names
    }
    longest = ", ".join(f"{heading} {np.mean(found):.0f}" for heading, found in seconds.items() if found)
    frame_rows = ", ".join(ROWS[name].heading for name in names if ROWS[name].frames)
    notes = [
        f"Mean and standard deviation over {len(results)} seeds. Chance: classes {first['chance']['linear']:.3f}, "
        f"motions {first['chance']['transfer']:.3f}; the first mask copied to every frame: J&F "
        f"{first['propagation']['still_jf']:.3f}.",
        f"Features of {NUM_CLIPS} clips of a video averaged; of {NUM_FRAMES} single frames for rows that learn from "
        f"single frames: {frame_rows or 'none here'}.",
        f"Seconds of training: {longest or 'not known, as every run was stopped in between'}.",
        *against_parts(results),
    ]
    return "\n\n".join([table_of(results, {ROWS[name].heading: name for name in names}, COLUMNS), *notes])


def against_parts(results: Sequence[dict[str, Any]]) -> list[str]:
    """Whether joint transfers to motions as well as the best of its parts; nothing where a row is missing."""
    if not {"joint", *PARTS_OF_JOINT} <= results[0].keys():
        return []
    found = {name: np.array([r[name]["transfer"]["video"] for r in results]) for name in ("joint", *PARTS_OF_JOINT)}
    best = max(PARTS_OF_JOINT, key=lambda name: found[name].mean())
    gain = found["joint"] - found[best]
    spread = f" ± {gain.std(ddof=1):.3f}" if len(gain) > 1 else ""
    return [
        f"Motions, joint less the best of its parts ({ROWS[best].heading}), seed by seed: {gain.mean():+.3f}{spread}."
    ]


def main() -> int:
    parser = experiment.command(__doc__, data="folder with toy and toy_actions")
    experiment.takes_overrides(parser, out="runs/positives")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--tracks", type=Path, help="table of tracks of toy (default: OUT/tracks.parquet, made first)")
    return experiment.run(parser, compare, plan=plan)


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    for seed in arguments.seeds:
        for name in _rows(arguments):
            row, folder = ROWS[name], arguments.out / name / f"seed{seed}"
            own = own_of(arguments.data, folder, seed)
            config = config_of(row, overrides=arguments.overrides, own=own, tracks=_tracks(arguments))
            yield experiment.describe(config) if row.trained else f"measure random weights: {folder}"


def compare(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str] | None:
    """[{row: metrics} of each seed] and the table; None when a training was stopped."""
    toy, tracks = read_sets(arguments.data)["toy"], _tracks(arguments)
    if not arguments.tracks and any(ROWS[name].needs_tracks for name in _rows(arguments)):
        mine_tracks(toy, tracks)
    how = {"data": arguments.data, "overrides": arguments.overrides, "tracks": tracks}
    results: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        results.append({})
        for name in _rows(arguments):
            found = run_row(arguments.out, name, seed=seed, **how)
            if found is None:
                return None
            results[-1][name] = found
    return results, tables(results)


def _rows(arguments: argparse.Namespace) -> list[str]:
    return [name for name in ROWS if name in (arguments.rows or ROWS)]


def _tracks(arguments: argparse.Namespace) -> Path:
    return arguments.tracks or arguments.out / "tracks.parquet"


if __name__ == "__main__":
    sys.exit(main())
