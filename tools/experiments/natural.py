"""Natural clips: audio-visual synchrony after training on people speaking, and linear probes on surveillance clips. The
clips are few, so every metric has a bootstrap interval.

    python tools/experiments/natural.py MEDIA --out runs/natural

MEDIA holds folders of people speaking (--speech), fight/ with surveillance clips, and manifest.csv with the
columns path, label, group. Finished trainings are cached; a stopped one is resumed.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.

Letters: n windows, D embedding.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import pyarrow as pa
from experiment import load_either
from extra_metrics import grouped_predict

from avssl.config import load
from avssl.data.check import build_table
from avssl.data.manifest import SCHEMA, Manifest, read_manifest, write_manifest
from avssl.evaluate.metrics import bootstrap_interval
from avssl.training.loop import train
from avssl.weights.features import extract
from avssl.windows import beginning

WINDOW_SECONDS = 0.96  # input length of the encoders
TRAIN_SECONDS = 1.5  # a training instance: room to draw the window in, no overlap with the next
HOP_SECONDS = 0.2  # between measured windows
MIN_SHIFT_SECONDS = 0.4
NUM_FOLDS = 3  # of clips held out from training
ROUNDING = 1e-6


@dataclass(frozen=True)
class Metric:
    """A mean with its 95 % interval over resampled clips (or scenes), chance, and the number of clips (or scenes)."""

    value: float
    low: float
    high: float
    chance: float
    num: int


def windows(manifest: Manifest, rows: np.ndarray, *, seconds: float, hop: float) -> list[dict[str, Any]]:
    """Parts of clips as rows of a new manifest: every `hop` seconds one of `seconds`, wholly inside both tracks."""
    table = manifest.table.select(SCHEMA.names)
    parts = []
    for row in rows.tolist():
        facts = table.slice(row, 1).to_pylist()[0]
        start = max(facts["video_start"], facts["audio_start"])
        zero = float(beginning(np.float64(facts["video_start"]), np.float64(facts["audio_start"])))
        room = min(facts["video_end"], facts["audio_end"]) - start - seconds
        for i in range(int((room + ROUNDING) // hop) + 1 if room > -ROUNDING else 0):
            begin = start - zero + i * hop
            parts.append(facts | {"start": begin, "end": begin + seconds, "group": facts["path"]})
    return parts


def write_windows(path: Path, parts: list[dict[str, Any]], *, root: Path) -> Manifest:
    """Write parts as of `windows` as a manifest."""
    write_manifest(path, pa.Table.from_pylist(parts, schema=SCHEMA), root=root)
    return read_manifest(path)


def shift_preference(video: np.ndarray, audio: np.ndarray, start: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """For each window, the fraction of audio windows of its clip at least MIN_SHIFT_SECONDS away that match its frames
    less than its own audio does (a tie counts half).

    Args:
        video: (n, D) unit vectors.
        audio: (n, D) unit vectors of the same windows.
        start: (n,) seconds.
        clip: (n,) which clip a window is of.

    Returns:
        (n,) in [0, 1], NaN where a window has no such audio; chance is .5.
    """
    scores = video @ audio.T  # (n, n)
    far = (clip[:, None] == clip[None, :]) & (np.abs(start[:, None] - start[None, :]) >= MIN_SHIFT_SECONDS - ROUNDING)
    own = np.diagonal(scores)[:, None]
    won = (own > scores) + 0.5 * (own == scores)
    counts = far.sum(axis=1)
    return np.where(counts > 0, (won * far).sum(axis=1) / np.maximum(counts, 1), np.nan)


def retrieval_within(
    video: np.ndarray, audio: np.ndarray, start: np.ndarray, clip: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Retrieve the audio of a window by its frames among the windows of its clip that do not overlap.

    Returns:
        right (m,) 0 or 1, chance (m,) one over the number of windows, and clip (m,), for the windows of clips with at
        least two; arguments as in `shift_preference`.
    """
    right, chance, of = [], [], []
    for name in np.unique(clip):
        rows = np.flatnonzero(clip == name)
        rows = rows[np.argsort(start[rows])]
        apart = [rows[0]]
        for row in rows[1:]:
            if start[row] - start[apart[-1]] >= WINDOW_SECONDS - ROUNDING:
                apart.append(row)
        if len(apart) < 2:
            continue
        scores = video[apart] @ audio[apart].T
        right += (scores.argmax(axis=1) == np.arange(len(apart))).tolist()
        chance += [1 / len(apart)] * len(apart)
        of += [name] * len(apart)
    return np.array(right, dtype=np.float64), np.array(chance), np.array(of)


def run_speech(out: Path, clips: Manifest, *, overrides: list[str]) -> dict[str, Metric] | None:
    """Train on windows of two thirds of the speech clips and measure on the rest, in three folds. Clips seen in
    training are measured too, twice each. Clips shorter than a window are left out.

    Args:
        out: folder for manifests and runs.
        clips: people speaking, with sound.
        overrides: given to every training.

    Returns:
        {metric: Metric}, or None when a training was stopped.
    """
    rows = np.flatnonzero(clips.valid() & clips.has_audio)
    order = np.random.default_rng(0).permutation(rows)
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {
        "held out": [],
        "clips seen in training": [],
        "random weights": [],
    }
    for fold in range(NUM_FOLDS):
        held = np.sort(order[fold::NUM_FOLDS])
        folder = out / f"fold{fold}"
        instances = windows(clips, np.setdiff1d(rows, held), seconds=TRAIN_SECONDS, hop=TRAIN_SECONDS)
        write_windows(folder / "train.parquet", [part | {"split": "train"} for part in instances], root=clips.root)
        own = [f"data.manifest={folder / 'train.parquet'}", f"run.dir={folder / 'run'}"]
        if not train(load("speech/infonce", [*overrides, *own])):
            return None
        for name, clip_rows, trained in (
            ("held out", held, True),
            ("clips seen in training", np.setdiff1d(rows, held), True),
            ("random weights", held, False),
        ):
            measured = windows(clips, clip_rows, seconds=WINDOW_SECONDS, hop=HOP_SECONDS)
            manifest = write_windows(folder / f"{name.replace(' ', '_')}.parquet", measured, root=clips.root)
            seen = read_manifest(folder / "train.parquet")
            run = load_either(folder / "run", seen, np.arange(len(seen)), trained=trained)
            found = extract(run, manifest, np.arange(len(manifest)), num_clips=1, progress=f"fold {fold}, {name}")
            parts[name].append(
                (
                    found.embedding["video"],
                    found.embedding["audio"],
                    manifest.column("start")[found.ids],
                    manifest.column("path")[found.ids].astype(str),
                )
            )
    return {
        f"{metric}, {name}": value
        for name, folds in parts.items()
        for metric, value in synchrony_metrics(folds).items()
    }


def synchrony_metrics(folds: list[tuple[np.ndarray, ...]]) -> dict[str, Metric]:
    """Both measurements over the folds' (video, audio, start, clip); each fold has an embedding space of its own."""
    preferred = np.concatenate([shift_preference(*fold) for fold in folds])
    clips = np.concatenate([fold[3] for fold in folds])
    counted = ~np.isnan(preferred)
    right, chance, of = (np.concatenate(part) for part in zip(*(retrieval_within(*f) for f in folds), strict=True))
    return {
        f"true sound preferred to shifts of {MIN_SHIFT_SECONDS} s and more": _metric(
            preferred[counted], clips[counted], chance=0.5
        ),
        "own sound found among the clip's windows (R@1)": _metric(right, of, chance=float(chance.mean())),
    }


def run_fight(out: Path, clips: Manifest, *, overrides: list[str]) -> dict[str, Metric] | None:
    """Train on all surveillance clips without labels, then probe: 5 folds of scenes, video only.

    Arguments and result as in `run_speech`; `clips` is the manifest in `out`. Chance is the frequency of the larger
    class.
    """
    own = [f"data.manifest={out / 'manifest.parquet'}", f"run.dir={out / 'run'}"]
    if not train(load("fight/infonce", [*overrides, *own])):
        return None
    rows = np.flatnonzero(clips.valid() & (clips.targets() >= 0))
    features = {}
    for name, trained in (("trained", True), ("random weights", False)):
        run = load_either(out / "run", clips, rows, trained=trained)
        found = extract(run, clips, rows, num_clips=3, progress=name)
        features[f"linear probe of video, {name}"] = (found.ids, found.features["video"])
    features["from whether it has sound"] = (rows, clips.has_audio[rows][:, None].astype(np.float64))
    metrics = {}
    for name, (ids, values) in features.items():
        targets, groups = clips.targets()[ids], clips.column("group")[ids].astype(str)
        right = grouped_predict(values, targets, groups) == targets
        chance = float(np.bincount(targets).max() / len(targets))
        metrics[f"fight or not, {name}"] = _metric(right.astype(np.float64), groups, chance=chance)
    return metrics


def _metric(values: np.ndarray, groups: np.ndarray, *, chance: float) -> Metric:
    low, high = bootstrap_interval(values, groups)
    return Metric(float(values.mean()), low, high, chance, len(np.unique(groups)))


def table(metrics: dict[str, Metric]) -> str:
    """Markdown."""
    lines = ["| | measured | 95 % interval | chance | clips or scenes |", "|---|---|---|---|---|"]
    for name, metric in metrics.items():
        lines.append(
            f"| {name} | {metric.value:.3f} | {metric.low:.3f} to {metric.high:.3f} | {metric.chance:.3f} | "
            f"{metric.num} |"
        )
    return "\n".join(lines)


def make_manifest(media: Path, folders: list[str], out: Path) -> Manifest:
    """The manifest of some folders of MEDIA, with label and group of its manifest.csv, written unless it is there."""
    listed = media / "manifest.csv"
    if not listed.is_file():
        raise ValueError(f"{listed} does not exist: MEDIA must be the folder of the clips with its manifest.csv")
    with open(listed, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].split("/")[0] in folders]
    if not rows:
        raise ValueError(f"{listed} lists no clip in {' or '.join(folders)}")
    if not out.exists():
        wanted = [{name: row[name] or None for name in ("path", "label", "group")} for row in rows]
        table = build_table(media, sorted(wanted, key=lambda row: row["path"]), num_workers=2)
        write_manifest(out, table, root=media)
    return read_manifest(out)


def main() -> int:
    parser = experiment.command(__doc__, media="folder of the clips, with manifest.csv")
    experiment.takes_overrides(parser, out="runs/natural")
    parser.add_argument("--speech", nargs="+", default=["lips_ro", "grid"], help="folders of people speaking")
    return experiment.run(parser, measure, plan=plan)


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    for name, num in (("speech", NUM_FOLDS), ("fight", 1)):
        own = [f"data.manifest={arguments.out / name}", f"run.dir={arguments.out / name}"]
        config = load(f"{name}/infonce", [*arguments.overrides, *own])
        yield f"{experiment.describe(config)}, {num} time{'s' * (num > 1)}"


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], str] | None:
    speech, fight = arguments.out / "speech", arguments.out / "fight"
    speech_clips = make_manifest(arguments.media, arguments.speech, speech / "manifest.parquet")
    fight_clips = make_manifest(arguments.media, ["fight"], fight / "manifest.parquet")
    metrics = run_speech(speech, speech_clips, overrides=arguments.overrides)
    more = metrics and run_fight(fight, fight_clips, overrides=arguments.overrides)
    if not metrics or not more:
        return None
    metrics |= more
    return {name: asdict(metric) for name, metric in metrics.items()}, table(metrics)


if __name__ == "__main__":
    sys.exit(main())
