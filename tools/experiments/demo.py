"""`make demo`: make the toy set, train AVID, then AVID-CMA on it, mine, retrieve, probe, transfer.

    python tools/experiments/demo.py --out runs/demo

Writes OUT/summary.json, OUT/report.html, the two runs and their embeddings, and prints the command that shows these in
the browser. Every stage is what a user calls for their own clips. The same command resumes a stopped demo.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import experiment
import torch
from experiment import ROOT, features_of, info, linear_accuracy, load_either, probe_accuracy, recall_of, rows_of
from extra_metrics import shortcut_features

from avssl.config import Config, load
from avssl.data.manifest import Manifest, read_manifest
from avssl.files import atomic_write
from avssl.mining.agreement import RULES, agreement_precision, chance_precision, minable, mine_agreement
from avssl.report.clips import SEED, clips_html, reference_clips, vectors_of_banks
from avssl.report.curves import Chart, charts_html
from avssl.report.history import read_history
from avssl.report.page import Section, heading, note, page, table
from avssl.retrieval.write import write_store
from avssl.training.loop import train
from avssl.training.session import machine
from avssl.weights.load import load_run

NUM_CLIPS = 3  # clips averaged per video wherever features are taken


def run_demo(arguments: argparse.Namespace) -> tuple[dict[str, Any], str] | None:
    """Make the set, train and measure: the summary and its text; None when a training was stopped."""
    out, data = arguments.out, data_of(arguments)
    make = [sys.executable, str(ROOT / "datasets" / "toy.py"), str(data)]
    make += ["--train", str(arguments.num_train), "--test", str(arguments.num_test)]
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
    precision = agreement_of(runs["avid_cma"], toy, k=int(config.method["num_positives"]))
    info("== extract and probe")
    probes, retrieval, notes = probe_toy(runs, toy)
    transfer = probe_transfer(runs["avid_cma"], actions)
    info("== extract for the browser")
    for name, folder in runs.items():
        path = data / "toy" / "manifest.parquet"
        write_store(embeddings_of(out, name), load_run(folder), toy, manifest_path=path, num_clips=NUM_CLIPS)
    summary = {
        "agreement_precision": precision,
        "probe": probes,
        "transfer": transfer,
        "retrieval": retrieval,
        "probe_by_modality": notes,
        "seconds": time.perf_counter() - since,
        "command": "make demo" if out == Path("runs/demo") else " ".join(["python", *sys.argv]),
        "machine": f"{machine()}, torch {torch.__version__}",
        "seed": config.run.seed,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    info("== write the report")
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(demo_page(summary, runs, toy), encoding="utf-8")
    return summary, json.dumps(summary, indent=1)


def data_of(arguments: argparse.Namespace) -> Path:
    return arguments.data or arguments.out / "data"


def configs_of(arguments: argparse.Namespace) -> dict[str, Config]:
    """Both trainings, the second from the first."""
    manifest, configs = data_of(arguments) / "toy" / "manifest.parquet", {}
    for name in ("avid", "avid_cma"):
        own = [f"data.manifest={manifest}", f"run.dir={arguments.out / name}"]
        own += [f"model.init={arguments.out / 'avid'}"] if name == "avid_cma" else []
        configs[name] = load(ROOT / "configs" / "toy" / f"{name}.yaml", [*arguments.overrides, *own])
    return configs


def embeddings_of(out: Path, name: str) -> Path:
    return out / "embeddings" / name


def demo_page(summary: dict[str, Any], runs: dict[str, Path], toy: Manifest) -> str:
    """The report of the demo: results, both training curves, and neighbours in the memory banks of AVID-CMA."""
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
    results = [table(caption, (), list(metrics.items())) for caption, metrics in tables(summary).items()]
    vectors = vectors_of_banks(load_run(runs["avid_cma"]).method)
    clips = [note(f"Drawn at random (seed {SEED}), with clips that are near in {vectors.source}.")]
    for name, shown in reference_clips(vectors, toy.targets()).items():
        clips += [heading(name), clips_html(toy, shown)]
    lead = [
        note(f"{summary['command']}; {summary['machine']}; {summary['seconds']:.0f} s; seed {summary['seed']}."),
        note(
            "Made clips: 12 classes, pairs of which look alike and sound different or sound alike and look "
            "different; every tenth clip carries a foreign sound."
        ),
    ]
    sections = [Section("Results", results), Section("Training", [charts_html(charts)]), Section("Neighbours", clips)]
    return page("avssl on the toy set", sections, lead=lead)


def agreement_of(run: Path, manifest: Manifest, *, k: int) -> dict[str, float]:
    """Fraction of positives mined from the memory banks of a run that share the class, by rule."""
    banks = load_run(run).method.banks
    valid = minable(video=banks["video"].valid, audio=banks["audio"].valid, rule="consensus")  # for every rule alike
    targets = torch.from_numpy(manifest.targets())
    precision = {
        rule: agreement_precision(
            mine_agreement(banks["video"].z, banks["audio"].z, k=k, rule=rule, valid=valid).ids.cpu(), targets
        )
        for rule in RULES
    }
    return precision | {"chance": chance_precision(targets, valid.cpu())}


def probe_toy(runs: dict[str, Path], toy: Manifest) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Linear probes on the toy classes, cross-modal retrieval on the test split, and the probes by modality."""
    shortcut = {split: shortcut_features(toy, ids, progress=f"shortcut {split}") for split, ids in rows_of(toy).items()}
    probes = {"chance": 0.0, "shortcut": linear_accuracy(toy, shortcut)}
    by_modality, found = {}, None
    for name, run, trained in (
        ("random", runs["avid"], False),
        ("avid", runs["avid"], True),
        ("avid_cma", runs["avid_cma"], True),
    ):
        loaded = load_either(run, toy, rows_of(toy)["train"], trained=trained)
        found = features_of(loaded, toy, num_clips=NUM_CLIPS, progress=name)
        result = probe_accuracy("linear", toy, found)
        probes |= {"chance": result["chance"]["both"], name: result["accuracy"]["both"]}
        by_modality[name] = result["accuracy"]
    return probes, recall_of(found, toy), by_modality


def probe_transfer(run: Path, actions: Manifest) -> dict[str, float]:
    """Linear probes on the silent action clips: video only."""
    accuracies = {}
    for name, trained in (("random", False), ("avid_cma", True)):
        loaded = load_either(run, actions, rows_of(actions)["train"], trained=trained)
        found = features_of(loaded, actions, num_clips=NUM_CLIPS, progress=f"{name} actions")
        result = probe_accuracy("linear", actions, found)
        accuracies |= {"chance": result["chance"]["video"], name: result["accuracy"]["video"]}
    return accuracies


def tables(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The summary under readable headings."""
    return {
        "Positives of the same class, by rule": summary["agreement_precision"],
        "Linear probe on the 12 classes, video and audio": summary["probe"],
        "Transfer to the silent action clips, video only": summary["transfer"],
        "Retrieval across modalities": summary["retrieval"],
    }


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"make {arguments.num_train} + {arguments.num_test} toy clips and the action clips in {data_of(arguments)}"
    yield from map(experiment.describe, configs_of(arguments).values())
    yield f"mine, probe and retrieve: {arguments.out / 'summary.json'}, {arguments.out / 'report.html'}"


def main() -> int:
    parser = experiment.takes_overrides(experiment.command(__doc__), out="runs/demo")
    parser.add_argument("--data", type=Path, help="folder of the toy set (default: OUT/data)")
    parser.add_argument("--num-train", type=int, default=600, help="training clips of the toy set (default: 600)")
    parser.add_argument("--num-test", type=int, default=200, help="test clips of the toy set (default: 200)")
    code, arguments = experiment.run(parser, run_demo, plan=plan), parser.parse_intermixed_args()
    if code == 0 and not arguments.dry_run:
        info(f"report: {arguments.out / 'report.html'}")
        python = Path(sys.executable)
        shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
        browsed = " ".join(str(embeddings_of(arguments.out, name)) for name in ("avid_cma", "avid"))
        info(f"browse it:\n  {shown} tools/browse.py {browsed} --open")
    return code


if __name__ == "__main__":
    sys.exit(main())
