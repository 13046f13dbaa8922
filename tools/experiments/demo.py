"""`make demo`: make the toy set, train AVID on it, and from there AVID-CMA and, as a control, AVID for as many more
steps; mine, retrieve, probe, transfer.

    avssl demo
    avssl demo --quick --out runs/quick

Writes OUT/summary.json, OUT/report.html, the three runs and embeddings of the last two, and prints the command that
shows these in the browser. --quick shows in a minute what is written; so few clips and steps learn
nothing. Every stage is what a user calls for their own clips. The same command resumes a stopped demo.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiment
import torch
from agreement import COMMON, LONGER
from experiment import (
    features_of,
    info,
    interval_of,
    linear_accuracy,
    load_either,
    probe_accuracy,
    recall_intervals,
    recall_of,
    rows_of,
)
from extra_metrics import shortcut_features
from matplotlib.figure import Figure

from avssl.config import Config, load
from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.metrics import Interval
from avssl.files import atomic_write, print_next, shipped
from avssl.mining.agreement import agreement_precision, chance_precision, minable, mine_agreement
from avssl.mining.definition import RULES
from avssl.report.clips import SEED, clips_html, reference_clips, vectors_of_banks
from avssl.report.curves import Chart, charts_html
from avssl.report.history import read_history
from avssl.report.page import Section, heading, html, note, page, png, table
from avssl.retrieval.write import write_store
from avssl.training.loop import train
from avssl.training.session import machine
from avssl.weights.load import load_run

NUM_CLIPS = 3  # clips averaged per video wherever features are taken
COMPARED = ("avid", "avid_cma")
SIZES = {"num_train": (600, 64), "num_test": (200, 32), "num_actions": (120, 12)}  # whole, and with --quick
# of --quick; without workers, which take seconds to start
QUICK = ("data.clips_per_video=1", "data.batch_size=32", "data.num_workers=0", "method.num_negatives=16")
SHORT = "optim.epochs=2"  # of these; the experiment takes as many as the recipe
MODELS = {
    "shortcut": "mean color and spectrum",
    "random": "random weights",
    "avid": "AVID",
    "avid_cma": "AVID-CMA",
}
BOTH_WAYS = {"v2a": "audio asked by video", "a2v": "video asked by audio"}
RETRIEVAL = {"AVID": "retrieval_of_avid", "AVID-CMA": "retrieval"}
TABLES = (  # title, key of chance, {plain name: (section of the summary, key)}
    (
        "Mined positives of the same class",
        "chance",
        {
            "alike in video and audio": ("agreement_precision", "consensus"),
            "alike in video or audio": ("agreement_precision", "union"),
            "alike in video": ("agreement_precision", "video"),
            "alike in audio": ("agreement_precision", "audio"),
        },
    ),
    (
        "Linear probe on the 24 classes, video and audio together",
        "chance",
        {plain: ("probe", name) for name, plain in MODELS.items()},
    ),
    (
        "Linear probe on the silent action clips",
        "chance",
        {plain: ("transfer", name) for name, plain in MODELS.items()},
    ),
    *(
        (
            f"The first found across modalities is {what}",
            f"chance_{kind}",
            {
                f"{model}, {way}": (of, f"{key}_{kind}")
                for key, way in BOTH_WAYS.items()
                for model, of in RETRIEVAL.items()
            },
        )
        for kind, what in (("r1", "of the same class"), ("instance_r1", "the clip's own"))
    ),
)


def run_demo(arguments: argparse.Namespace) -> tuple[dict[str, Any], str] | None:
    """Make the set, train and measure: the summary and its text; None when a training was stopped."""
    out, data = arguments.out, data_of(arguments)
    make = [sys.executable, str(shipped("datasets") / "toy.py"), str(data), "--no-next"]
    options = {"train": "num_train", "test": "num_test", "actions-train": "num_actions", "actions-test": "num_actions"}
    for option, name in options.items():
        make += [f"--{option}", str(size_of(arguments, name))]
    if subprocess.run(make).returncode:
        raise ValueError(f"the toy set could not be made in {data}: see the line above")
    since = time.perf_counter()
    toy, actions = (read_manifest(data / name / "manifest.parquet") for name in ("toy", "toy_actions"))
    configs = configs_of(arguments)
    runs = {name: Path(config.run.dir) for name, config in configs.items()}
    for name, config in configs.items():
        info(f"== train {name}")
        if not train(config):
            return None

    info("== mine")
    config = load_run(runs["avid_cma"]).config
    precision, intervals = agreement_of(runs["avid_cma"], toy, k=int(config.method["num_positives"]))
    info("== extract and probe")
    probes = probe_toy(runs, toy)
    transfer, of_transfer = probe_transfer(runs["avid_cma"], actions)
    info("== extract for the browser")
    for name in COMPARED:
        path = data / "toy" / "manifest.parquet"
        write_store(embeddings_of(out, name), load_run(runs[name]), toy, manifest_path=path, num_clips=NUM_CLIPS)
    summary = {
        "agreement_precision": precision,
        "probe": probes.accuracy,
        "transfer": transfer,
        "retrieval": probes.retrieval["avid_cma"],
        "retrieval_of_avid": probes.retrieval["avid"],
        "probe_by_modality": probes.by_modality,
        "intervals": {"agreement_precision": intervals, "transfer": of_transfer, **probes.intervals},
        "seconds": time.perf_counter() - since,
        "command": shlex.join(["avssl", "demo", *sys.argv[1:]]),
        "machine": f"{machine()}, torch {torch.__version__}",
        "seed": config.run.seed,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    info("== write the report")
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(demo_page(summary, runs, toy), encoding="utf-8")
    return summary, results_text(summary)


def results_text(summary: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for title, values, intervals, chance in tables(summary):
        lines.append(f"{title} (chance {chance:.3f}):")
        for name, value in values.items():
            between = " ({:.3f} to {:.3f})".format(*intervals[name]) if name in intervals else ""
            lines.append(f"  {name:45} {value:.3f}{between}")
    return "\n".join(lines)


def data_of(arguments: argparse.Namespace) -> Path:
    return arguments.data or arguments.out / "data"


def configs_of(arguments: argparse.Namespace) -> dict[str, Config]:
    """The trainings, the last two from the first."""
    manifest, start, configs = data_of(arguments) / "toy" / "manifest.parquet", arguments.out / "start", {}
    short = QUICK if arguments.quick else ()
    rows = (("start", "avid", ()), ("avid", "avid", (*LONGER, SHORT)), ("avid_cma", "avid_cma", (SHORT,)))
    for name, recipe, changed in rows:
        own = [f"data.manifest={manifest}", f"run.dir={arguments.out / name}"]
        own += [f"model.init={start}"] if name in COMPARED else []
        configs[name] = load(f"toy/{recipe}", [*COMMON, *changed, *short, *arguments.overrides, *own])
    return configs


def size_of(arguments: argparse.Namespace, name: str) -> int:
    """How many clips are made: what is asked for, or the default."""
    given = getattr(arguments, name)
    return SIZES[name][arguments.quick] if given is None else given


def embeddings_of(out: Path, name: str) -> Path:
    return out / "embeddings" / name


def demo_page(summary: dict[str, Any], runs: dict[str, Path], toy: Manifest) -> str:
    """The report of the demo: results, training curves, and neighbors in the memory banks of AVID-CMA."""
    lines = {
        name: read_history(folder / "log.jsonl", batch_size=load_run(folder).config.data.batch_size).lines
        for name, folder in runs.items()
    }
    charts = [
        Chart(title, {name: own[metric] for name, own in lines.items() if metric in own})
        for title, metric in (
            ("Loss", "loss"),
            ("Effective rank of video embeddings", "video_rank"),
            ("Effective rank of audio embeddings", "audio_rank"),
        )
    ]
    results = []
    for title, values, intervals, chance in tables(summary):
        rows = [(name, value, *intervals.get(name, ("", ""))) for name, value in values.items()]
        results.append(html.picture(bars_png(title, values, intervals, chance), title))
        results.append(table(title, ("", "share", "from", "to"), [*rows, ("chance", chance, "", "")]))
    vectors = vectors_of_banks(load_run(runs["avid_cma"]).method)
    clips = [note(f"Drawn at random (seed {SEED}), with clips that are near in {vectors.source}.")]
    for name, shown in reference_clips(vectors, toy.targets()).items():
        clips += [heading(name), clips_html(toy, shown)]
    lead = [
        note(f"{summary['command']}; {summary['machine']}; {summary['seconds']:.0f} s; seed {summary['seed']}."),
        note(
            "Made clips: 24 classes, each of which shares its looks with one class and its sounds with another; every "
            "tenth clip carries a foreign sound. AVID and AVID-CMA continue one start for equally many steps. Bars "
            "carry 95 % intervals over clips; that of the training itself, over seeds, is in docs/results/agreement.md."
        ),
    ]
    sections = [Section("Results", results), Section("Training", [charts_html(charts)]), Section("Neighbors", clips)]
    return page("avssl on the toy set", sections, lead=lead)


def bars_png(title: str, values: dict[str, float], intervals: dict[str, Interval], chance: float) -> bytes:
    """Horizontal bars from 0 to 1 with their intervals, and the line of chance."""
    figure = Figure(figsize=(7, 1.1 + 0.35 * len(values)), layout="constrained")
    axes = figure.add_subplot(title=title, xlim=(0, 1))
    names = list(values)[::-1]  # the first on top
    axes.barh(names, [values[name] for name in names], color="0.6", height=0.6)
    for place, name in enumerate(names):
        if name in intervals:
            axes.plot(intervals[name], (place, place), color="black", linewidth=2)
    axes.axvline(chance, color="black", linestyle=":", label=f"chance {chance:.3f}")
    figure.legend(loc="outside lower right", frameon=False)
    return png(figure)


def agreement_of(run: Path, manifest: Manifest, *, k: int) -> tuple[dict[str, float], dict[str, Interval]]:
    """Fraction of positives mined from the memory banks of a run that share the class, by rule, and its interval."""
    banks = load_run(run).method.banks
    valid = minable(video=banks["video"].valid, audio=banks["audio"].valid, rule="consensus")  # for every rule alike
    targets, precision, intervals = torch.from_numpy(manifest.targets()), {}, {}
    for rule in RULES:
        ids = mine_agreement(banks["video"].z, banks["audio"].z, k=k, rule=rule, valid=valid).ids.cpu()
        precision[rule] = agreement_precision(ids, targets)
        same = (targets[ids] == targets[:, None])[valid.cpu()]  # all sets are full
        intervals[rule] = interval_of(same.double().mean(dim=1).numpy())
    return precision | {"chance": chance_precision(targets, valid.cpu())}, intervals


@dataclass(frozen=True)
class Probes:
    """What the runs know of the toy set.

    accuracy: {chance, shortcut, random, avid, avid_cma: linear probe on video and audio}; by_modality: {random, avid,
    avid_cma: {video, audio, both}}; retrieval: {avid, avid_cma: `recall_metrics`}; intervals: {probe, retrieval,
    retrieval_of_avid: {name: interval}}.
    """

    accuracy: dict[str, float]
    by_modality: dict[str, Any]
    retrieval: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]


def probe_toy(runs: dict[str, Path], toy: Manifest) -> Probes:
    """Linear probes on the toy classes, and cross-modal retrieval on the test split."""
    shortcut = {split: shortcut_features(toy, ids, progress=f"shortcut {split}") for split, ids in rows_of(toy).items()}
    accuracy, of_accuracy = {"chance": 0.0, "shortcut": linear_accuracy(toy, shortcut)}, {}
    by_modality, retrieval, of_retrieval = {}, {}, {}
    for name, run, trained in (
        ("random", runs["start"], False),
        ("avid", runs["avid"], True),
        ("avid_cma", runs["avid_cma"], True),
    ):
        loaded = load_either(run, toy, rows_of(toy)["train"], trained=trained)
        found = features_of(loaded, toy, num_clips=NUM_CLIPS, progress=name)
        result = probe_accuracy("linear", toy, found)
        accuracy |= {"chance": result["chance"]["both"], name: result["accuracy"]["both"]}
        of_accuracy[name] = result["interval"]["both"]
        by_modality[name] = result["accuracy"]
        if trained:
            retrieval[name], of_retrieval[name] = recall_of(found, toy), recall_intervals(found, toy)
    intervals = {
        "probe": of_accuracy,
        "retrieval": of_retrieval["avid_cma"],
        "retrieval_of_avid": of_retrieval["avid"],
    }
    return Probes(accuracy, by_modality, retrieval, intervals)


def probe_transfer(run: Path, actions: Manifest) -> tuple[dict[str, float], dict[str, Interval]]:
    """Linear probes on the silent action clips, video only: accuracies and intervals."""
    accuracies, intervals = {}, {}
    for name, trained in (("random", False), ("avid_cma", True)):
        loaded = load_either(run, actions, rows_of(actions)["train"], trained=trained)
        found = features_of(loaded, actions, num_clips=NUM_CLIPS, progress=f"{name} actions")
        result = probe_accuracy("linear", actions, found)
        accuracies |= {"chance": result["chance"]["video"], name: result["accuracy"]["video"]}
        intervals[name] = result["interval"]["video"]
    return accuracies, intervals


def tables(summary: dict[str, Any]) -> list[tuple[str, dict[str, float], dict[str, Interval], float]]:
    """Title, values, intervals and chance of each result, in plain names."""
    found = []
    for title, chance, cells in TABLES:
        cells = {plain: (section, key) for plain, (section, key) in cells.items() if key in summary[section]}
        if cells:
            values = {plain: summary[section][key] for plain, (section, key) in cells.items()}
            known = {plain: summary["intervals"].get(section, {}).get(key) for plain, (section, key) in cells.items()}
            section = next(iter(cells.values()))[0]
            found.append(
                (title, values, {name: each for name, each in known.items() if each}, summary[section][chance])
            )
    return found


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    train, test = (size_of(arguments, name) for name in ("num_train", "num_test"))
    yield f"make {train} + {test} toy clips and the action clips in {data_of(arguments)}"
    yield from map(experiment.describe, configs_of(arguments).values())
    yield f"mine, probe and retrieve: {arguments.out / 'summary.json'}, {arguments.out / 'report.html'}"


def main() -> int:
    parser = experiment.takes_overrides(experiment.command(__doc__), out="runs/demo")
    parser.add_argument("--data", type=Path, help="folder of the toy set (default: OUT/data)")
    for name, what in (("train", "training clips"), ("test", "test clips"), ("actions", "silent clips of each split")):
        shown = f"{what} (default: {SIZES[f'num_{name}'][0]})"
        parser.add_argument(f"--num-{name}", type=int, help=shown)
    parser.add_argument("--quick", action="store_true", help="few clips and steps, which learn nothing")
    code, arguments = experiment.run(parser, run_demo, plan=plan), parser.parse_intermixed_args()
    if code == 0 and not arguments.dry_run:
        info(f"report: {arguments.out / 'report.html'}")
        print_next("browse", *(embeddings_of(arguments.out, name) for name in ("avid_cma", "avid")), "--open")
    return code


if __name__ == "__main__":
    sys.exit(main())
