"""The digits experiment: real handwritten digits with real spoken digits, paired by class only (there is no synchrony).

    python tools/experiments/digits.py MEDIA --out runs/digits --seeds 0 1 2
    python tools/experiments/digits.py MEDIA --out runs/digits_hard --part hard
    python tools/experiments/digits.py MEDIA --out runs/digits_ablation --part ablation --seeds 0

MEDIA holds the digits. main: AVID, AVID-CMA from it and in-batch InfoNCE on all clips, beside random weights and
hand-made features. hard: fewer clips, foreign audio and speakers left out, each method from random weights for the
same number of steps. ablation: short trainings with one change to the recipe. Results are cached, and a stopped
training is resumed. Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import experiment
import numpy as np
import torch
from experiment import (
    cached,
    gain_of,
    linear_accuracy,
    load_either,
    measure,
    rows_of,
    table_of,
    train_timed,
)
from tqdm import tqdm

from avssl.config import Config, load
from avssl.data.manifest import Manifest, read_manifest
from avssl.files import shipped
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.mining.definition import RULES
from avssl.transforms.audio import log_mel
from avssl.weights.load import load_run

NUM_CLIPS = 2  # clips averaged per video wherever features are taken
SAMPLE_RATE = 16_000
FRAME_SIZE = 16  # pixels of the hand-made video feature
AUDIO_PARTS = 8  # of the hand-made audio feature
MODALITIES = ("video", "audio", "both")


@dataclass(frozen=True)
class Setting:
    """A set to train on.

    make: arguments of datasets/digits.py.
    clips_per_video: per epoch, so that an epoch has 42 (speakers left out) to 63 steps.
    num_positives: size of the agreement sets, and of the sets whose precision is measured; below the size of a class.
    """

    make: tuple[str, ...]
    clips_per_video: int
    num_positives: int


HARD = {
    "all clips": Setting((), 3, 64),
    "300 clips": Setting(("--num-train", "300"), 27, 8),
    "1,000 clips": Setting(("--num-train", "1000"), 8, 24),
    "30 % foreign sounds": Setting(("--foreign", "0.3"), 3, 64),
    "60 % foreign sounds": Setting(("--foreign", "0.6"), 3, 64),
    "two speakers left out": Setting(("--held-out-speakers", "theo", "yweweler"), 3, 64),
}
HARD_METHODS = ("infonce", "avid", "avid_cma")
ABLATION_EPOCHS = {"avid": 8, "avid_cma": 3}
BASE = "the recipe"
ABLATIONS: dict[str, tuple[str, tuple[str, ...]]] = {  # method, and overrides of its recipe in configs/digits/
    BASE: ("avid", ()),
    "heads without BatchNorm": ("avid", ("method.head_batch_norm=false",)),
    "batch 64": ("avid", ("data.batch_size=64",)),
    "heads without BatchNorm, batch 64": ("avid", ("method.head_batch_norm=false", "data.batch_size=64")),
    "heads without BatchNorm, InfoNCE, in-batch for 4 epochs": (
        "avid",
        ("method.head_batch_norm=false", "method.contrast=info_nce", "method.in_batch_epochs=4"),
    ),
    "learning rate 2e-4": ("avid", ("optim.lr=2e-4",)),
    "K = 1024": ("avid", ("method.num_negatives=1024",)),
    "temperature .07": ("avid", ("method.temperature=0.07",)),
    "bank momentum .9": ("avid", ("method.bank_momentum=0.9",)),
    "no crops, temperature .07": ("avid", ("data.min_crop_area=1.0", "method.temperature=0.07")),
    "half a second of sound": ("avid", ("data.audio_seconds=0.5",)),
    "closer to the published: rate 2e-4, K 1024, batch 64, temperature .07, plain heads, small crops, jitter": (
        "avid",
        (
            "optim.lr=2e-4",
            "method.num_negatives=1024",
            "data.batch_size=64",
            "method.temperature=0.07",
            "method.head_batch_norm=false",
            "data.min_crop_area=0.08",
            "data.jitter=[0.4,0.4,0.4,0.2]",
        ),
    ),
    "AVID-CMA from it: its recipe": ("avid_cma", ()),
    "AVID-CMA from it: 64 negatives within, weight 1, 32 positives, as published": (
        "avid_cma",
        ("method.num_negatives_within=64", "method.positives_within=1", "method.num_positives=32"),
    ),
}


@dataclass(frozen=True)
class Job:
    """What is trained on one set with one seed.

    clips: folder of the set, which is the same for every seed.
    make: arguments of datasets/digits.py.
    runs: {row of the result: configuration}, in their order; a run may start from an earlier one.
    num_positives: of the sets whose precision is measured.
    """

    clips: Path
    make: tuple[str, ...]
    runs: dict[str, Config]
    num_positives: int


def main_job(out: Path, name: str, seed: int, overrides: Sequence[str]) -> Job:
    """All methods on all clips; AVID-CMA starts from AVID."""
    folder = out / folder_name(name)
    runs_folder, manifest = folder / f"seed{seed}", folder / "set"
    init = {"avid_cma": [f"model.init={runs_folder / 'avid'}"]}
    runs = {
        method: _config(method, manifest, runs_folder / method, seed, [*overrides, *init.get(method, [])])
        for method in ("avid", "avid_cma", "infonce")
    }
    return Job(manifest, (), runs, _num_positives())


def hard_job(out: Path, name: str, seed: int, overrides: Sequence[str]) -> Job:
    """Every method from random weights, for the same number of steps; AVID-CMA mines from the middle of the run on."""
    setting, folder = HARD[name], out / folder_name(name)
    optim = load("digits/avid", [*overrides, "run.dir=none"]).optim
    common = [f"optim.epochs={optim.epochs}", f"optim.lr={optim.lr}", f"data.clips_per_video={setting.clips_per_video}"]
    own = {
        "avid_cma": [
            *(f"method.mine_from_epoch={max(1, optim.epochs // 2)}", "model.init=null"),
            f"method.num_positives={setting.num_positives}",
        ]
    }
    runs = {
        method: _config(
            method, folder / "set", folder / f"seed{seed}" / method, seed, [*overrides, *common, *own.get(method, [])]
        )
        for method in HARD_METHODS
    }
    return Job(folder / "set", setting.make, runs, setting.num_positives)


def ablation_job(out: Path, name: str, seed: int, overrides: Sequence[str]) -> Job:
    """A short training with a change, row `run` of the result; AVID-CMA starts from the row BASE."""
    method, changed = ABLATIONS[name]
    runs_folder = out / f"seed{seed}"
    given = [f"optim.epochs={ABLATION_EPOCHS[method]}", *overrides, *changed]
    runs = {}
    if method == "avid_cma":
        runs = {"base": ablation_job(out, BASE, seed, overrides).runs["run"]}
        given.append(f"model.init={runs_folder / folder_name(BASE)}")
    runs["run"] = _config(method, out / "set", runs_folder / folder_name(name), seed, given)
    return Job(out / "set", (), runs, _num_positives())  # the same number for all rows


def _config(method: str, clips: Path, folder: Path, seed: int, given: Sequence[str]) -> Config:
    own = [f"data.manifest={clips / 'manifest.parquet'}", f"run.dir={folder}", f"run.seed={seed}"]
    return load(f"digits/{method}", [*given, *own])


def _num_positives() -> int:
    return int(load("digits/avid_cma").method["num_positives"])


def measure_all(job: Job, media: Path) -> dict[str, Any] | None:
    """Make the set, train and measure every run: {row: metrics of `measure`, with `train_seconds` unless resumed}.
    Finished work is read from the folders of the runs. None when a training was stopped."""
    manifest = make_set(media, job.clips, job.make)
    result: dict[str, Any] = {}
    for name, config in job.runs.items():
        if not train_timed(config):
            return None
        folder = Path(config.run.dir)
        result[name] = cached(
            folder / "metrics.json",
            lambda folder=folder: (
                measure(load_run(folder), read_manifest(manifest), num_clips=NUM_CLIPS, num_positives=job.num_positives)
                | cached(folder / experiment.SECONDS, dict)
            ),
        )
    return result


def measure_main(job: Job, media: Path) -> dict[str, Any] | None:
    """`measure_all`, and beside it random weights and hand-made features."""
    result = measure_all(job, media)
    if result is None:
        return None
    avid = Path(job.runs["avid"].run.dir)
    clips = read_manifest(job.clips / "manifest.parquet")
    others = {
        "random": lambda: measure(
            load_either(avid, clips, rows_of(clips)["train"], trained=False),
            clips,
            num_clips=NUM_CLIPS,
            num_positives=job.num_positives,
        ),
        "handmade": lambda: {"linear": handmade_accuracy(clips)},
    }
    return result | {name: cached(avid.with_name(f"{name}.json"), work) for name, work in others.items()}


def make_set(media: Path, folder: Path, how: tuple[str, ...] = ()) -> Path:
    """The manifest of a set, written by datasets/digits.py unless it is there."""
    manifest = folder / "manifest.parquet"
    if not manifest.exists():
        call = [sys.executable, str(shipped("datasets") / "digits.py"), str(media), str(folder), *how]
        if subprocess.run(call).returncode:
            raise ValueError(f"no set could be made from {media}: see the line above")
    return manifest


def folder_name(setting: str) -> str:
    """A name for a folder: words and underscores."""
    return re.sub(r"[^\w.]+", "_", setting)


def handmade_accuracy(manifest: Manifest) -> dict[str, float]:
    """Linear probes on hand-made features: the pixels of one frame, a coarse log-mel spectrogram."""
    features = {split: handmade_features(manifest, ids) for split, ids in rows_of(manifest).items()}
    both = {
        split: found | {"both": np.concatenate([found["video"], found["audio"]], axis=1)}
        for split, found in features.items()
    }
    return {
        name: linear_accuracy(manifest, {split: found[name] for split, found in both.items()}) for name in MODALITIES
    }


def handmade_features(manifest: Manifest, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The first frame in gray at 16 x 16 pixels, and 64 log-mel bands averaged over 8 equal parts of the audio:
    {video: (n, 256), audio: (n, 512)} float32."""
    frames_of, bands_of = [], []
    for row in tqdm(ids, desc="hand-made features", unit="video", mininterval=1):
        start, end = float(manifest.column("video_start")[row]), float(manifest.column("video_end")[row])
        frames, samples = read_clip(
            manifest.path(int(row)),
            video=[VideoWindow(start, 0.04, 25.0)],
            audio=[AudioWindow(start, max(end - start, 0.1), SAMPLE_RATE)],
        )
        gray = cv2.cvtColor(frames[0].data[0], cv2.COLOR_RGB2GRAY)
        frames_of.append(cv2.resize(gray, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA).ravel() / 255)
        waveform = torch.from_numpy(samples[0].data)[None]
        bands = log_mel(waveform, sample_rate=SAMPLE_RATE, n_fft=512, hop_seconds=0.01, num_mels=64)[0, 0].numpy()
        bands_of.append(np.concatenate([part.mean(axis=0) for part in np.array_split(bands, AUDIO_PARTS)]))
    return {"video": np.stack(frames_of).astype(np.float32), "audio": np.stack(bands_of).astype(np.float32)}


PROBE = {
    **{f"linear {name}": ("linear", name) for name in MODALITIES},
    **{f"kNN {name}": ("knn", name) for name in MODALITIES},
}
PRECISION = {rule: ("precision", rule) for rule in RULES}
RECALL = {
    f"{direction} {level} R@{k}": ("recall", f"{direction}{infix}_r{k}")
    for level, infix in (("class", ""), ("instance", "_instance"))
    for direction in ("v2a", "a2v")
    for k in (1, 5)
}
MAIN_ROWS = {
    "AVID": "avid",
    "AVID-CMA, from it": "avid_cma",
    "in-batch InfoNCE": "infonce",
    "random weights": "random",
    "hand-made features": "handmade",
}
HARD_COLUMNS = {
    **{f"linear {name}": ("linear", name) for name in MODALITIES},
    **{f"mined by {rule}": ("precision", rule) for rule in RULES},
    "v2a class R@1": ("recall", "v2a_r1"),
    "a2v class R@1": ("recall", "a2v_r1"),
}


def main_tables(found: dict[str, Sequence[dict[str, Any]]]) -> str:
    """The three tables of the main part, chance below the last."""
    (results,) = found.values()
    chance = results[0]["avid"]["recall"]
    trained = {
        name: ", ".join(f"{r[key]['train_seconds']:.0f}" for r in results if "train_seconds" in r[key])
        for name, key in MAIN_ROWS.items()
        if key in ("avid", "avid_cma", "infonce")
    }
    mined = {name: key for name, key in MAIN_ROWS.items() if key != "handmade"}
    return "\n\n".join(
        [
            table_of(results, MAIN_ROWS, PROBE),
            table_of(results, mined, PRECISION),
            table_of(results, mined, RECALL),
            "chance of recall: " + ", ".join(f"{k} {v:.3f}" for k, v in chance.items() if k.startswith("chance")),
            "seconds of training: " + "; ".join(f"{name} {seconds}" for name, seconds in trained.items()),
        ]
    )


def hard_table(found: dict[str, Sequence[dict[str, Any]]]) -> str:
    """One block of rows for each setting; then what AVID-CMA gains beyond AVID."""
    names = {key: name.removesuffix(", from it") for name, key in MAIN_ROWS.items()}
    table = _stacked(
        table_of(seeds, {f"{setting}: {names[method]}": method for method in seeds[0]}, HARD_COLUMNS)
        for setting, seeds in found.items()
    )
    lines = ["| AVID-CMA minus AVID | linear both | kNN both |", "|---|---|---|"]
    for setting, seeds in found.items():
        if {"avid", "avid_cma"} <= seeds[0].keys():
            cells = (gain_of(seeds, "avid_cma", "avid", kind) for kind in ("linear", "knn"))
            lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n\n".join([table, "\n".join(lines)] if len(lines) > 2 else [table])


def ablation_table(found: dict[str, Sequence[dict[str, Any]]]) -> str:
    """A row for each change."""
    names = ("linear video", "linear audio", "mined by consensus", "v2a class R@1")
    columns = {name: HARD_COLUMNS[name] for name in names}
    return _stacked(table_of(seeds, {name: "run"}, columns) for name, seeds in found.items())


def _stacked(tables: Iterable[str]) -> str:
    """One table of several with the same columns."""
    first, *others = tables
    return "\n".join([first, *(line for table in others for line in table.splitlines()[2:])])


PARTS = {  # names of its rows, job of a row, work, table
    "main": (("all clips",), main_job, measure_main, main_tables),
    "hard": (HARD, hard_job, measure_all, hard_table),
    "ablation": (ABLATIONS, ablation_job, measure_all, ablation_table),
}


def main() -> int:
    parser = experiment.command(__doc__, media="folder of the digits, with manifest.csv")
    experiment.takes_overrides(parser, out="runs/digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=PARTS, default="main")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="rows of hard or ablation, when not all")
    parser.add_argument("--methods", nargs="+", choices=HARD_METHODS, default=HARD_METHODS, help="rows of hard")
    return experiment.run(parser, run_part, plan=plan)


def jobs_of(arguments: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    names, job_of, _, _ = PARTS[arguments.part]
    unknown = set(arguments.settings or []) - set(names)
    if unknown:
        raise ValueError(f"--settings {', '.join(sorted(unknown))}: expected some of {', '.join(names)}")
    for seed in arguments.seeds:
        for name in arguments.settings or names:
            job = job_of(arguments.out, name, seed, arguments.overrides)
            asked = arguments.methods if arguments.part == "hard" else job.runs
            yield name, replace(job, runs={run: config for run, config in job.runs.items() if run in asked})


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    for _, job in jobs_of(arguments):
        yield f"make {job.clips} from {arguments.media} {' '.join(job.make)}".rstrip()
        yield from map(experiment.describe, job.runs.values())


def run_part(arguments: argparse.Namespace) -> tuple[dict[str, list[dict]], str] | None:
    """{setting: [result of each seed]} and the tables; None when a training was stopped."""
    _, _, work, table = PARTS[arguments.part]
    results: dict[str, list[dict]] = {}
    for name, job in jobs_of(arguments):
        found = work(job, arguments.media)
        if found is None:
            return None
        results.setdefault(name, []).append(found)
    return results, table(results)


if __name__ == "__main__":
    sys.exit(main())
