"""The whole way on the toy set: train AVID, then AVID-CMA, mine, retrieve, probe, transfer, and say what came out.

Every stage is what a user calls for clips of his own; see tools/demo.py.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.config import load
from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.classify import linear_predict
from avssl.evaluate.features import clip_vectors
from avssl.evaluate.harness import accuracies
from avssl.evaluate.metrics import recall_figures
from avssl.evaluate.shortcut import shortcut_features
from avssl.evaluate.splits import read_splits
from avssl.files import whole_file
from avssl.mining.agreement import RULES, agreement_precision, chance_precision, minable, mine_agreement
from avssl.report.clips import SEED, clips_html, reference_clips, vectors_of_memories
from avssl.report.curves import Chart, charts_html
from avssl.report.history import read_history
from avssl.report.page import Section, heading, note, page, table
from avssl.retrieval.write import write_store
from avssl.sessions import machine
from avssl.train import train
from avssl.weights.load import load_run

NUM_CLIPS = 3  # clips averaged per video wherever features are taken


def run_demo(
    out: Path, *, data: Path, configs: Path, overrides: Sequence[str], command: str, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Train and measure on a toy set that lies in `data`.

    Args:
        out: folder for the runs, summary.json and report.html.
        data: folder with toy/manifest.parquet and toy_actions/manifest.parquet.
        configs: folder with avid.yaml and avid_cma.yaml.
        overrides: given to both trainings, such as `optim.epochs=1`.
        command: named in the report.
        say: prints what happens.

    Returns:
        The summary, or None when a training was asked to stop.
    """
    since = time.perf_counter()
    toy, actions = (read_manifest(data / name / "manifest.parquet") for name in ("toy", "toy_actions"))
    runs = {name: out / name for name in ("avid", "avid_cma")}
    for name, folder in runs.items():
        say(f"train {name}")
        own = [f"data.manifest={data / 'toy' / 'manifest.parquet'}", f"run.dir={folder}"]
        own += [f"model.init={runs['avid']}"] if name == "avid_cma" else []
        if not train(load(configs / f"{name}.yaml", [*overrides, *own])):
            return None

    say("mine")
    config = load_run(runs["avid_cma"]).config
    precision = agreement_of(runs["avid_cma"], toy, k=int(config.method["num_positives"]))
    say("extract and probe")
    probes, retrieval, notes = probe_toy(runs, toy)
    transfer = probe_transfer(runs["avid_cma"], actions)
    say("extract what the browser shows")
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
        "command": command,
        "machine": f"{machine()}, torch {torch.__version__}",
        "seed": config.run.seed,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    say("write the report")
    with whole_file(out / "report.html") as temporary:
        temporary.write_text(demo_page(summary, runs, toy), encoding="utf-8")
    return summary


def embeddings_of(out: Path, name: str) -> Path:
    """Where the embeddings of one of the demo's runs lie."""
    return out / "embeddings" / name


def demo_page(summary: dict[str, Any], runs: dict[str, Path], toy: Manifest) -> str:
    """The page of the demo: what came out, both trainings side by side, and neighbours by the memories of AVID-CMA."""
    lines = {
        name: read_history(folder / "log.jsonl", batch_size=load_run(folder).config.data.batch_size).lines
        for name, folder in runs.items()
    }
    charts = [
        Chart(title, {name: own[figure] for name, own in lines.items() if figure in own})
        for title, figure in (
            ("Loss", "loss"),
            ("Effective rank of the pictures", "video_rank"),
            ("Effective rank of the sounds", "audio_rank"),
        )
    ]
    results = [table(caption, (), list(figures.items())) for caption, figures in tables(summary).items()]
    vectors = vectors_of_memories(load_run(runs["avid_cma"]).method)
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
    """How often a positive mined from the memories of a run shares the class, by rule."""
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
    """Linear probes on the toy classes, retrieval across modalities on the test split, and the probes' single
    modalities.
    """
    (split,) = read_splits(toy)
    rows = {"train": split.train, "test": split.test}
    targets = {split: toy.targets()[ids] for split, ids in rows.items()}
    shortcut = {split: shortcut_features(toy, ids, progress=f"shortcut {split}") for split, ids in rows.items()}
    predicted, _ = linear_predict(shortcut["train"], targets["train"], shortcut["test"])
    probes = {"chance": 0.0, "shortcut": float((predicted == targets["test"]).mean())}
    by_modality = {}
    for name, run, trained in (
        ("random", runs["avid"], False),
        ("avid", runs["avid"], True),
        ("avid_cma", runs["avid_cma"], True),
    ):
        loaded = load_run(run, trained=trained)
        vectors = clip_vectors(
            loaded, toy, np.union1d(split.train, split.test), num_clips=NUM_CLIPS, progress=f"features {name}"
        )
        result = accuracies("logistic", vectors, toy, split)
        probes |= {"chance": result["both"]["chance"], name: result["both"]["mean"]}
        by_modality[name] = {modality: figure["mean"] for modality, figure in result.items()}
    test = vectors.videos()
    test = test.take(np.isin(test.ids, split.test) & test.has("both"))
    return (
        probes,
        recall_figures(test.embedding["video"], test.embedding["audio"], toy.targets()[test.ids]),
        by_modality,
    )


def probe_transfer(run: Path, actions: Manifest) -> dict[str, float]:
    """Linear probes on the silent action clips: pictures only."""
    (split,) = read_splits(actions)
    figures = {}
    for name, trained in (("random", False), ("avid_cma", True)):
        loaded = load_run(run, trained=trained)
        rows = np.union1d(split.train, split.test)
        vectors = clip_vectors(loaded, actions, rows, num_clips=NUM_CLIPS, progress=f"features of actions {name}")
        result = accuracies("logistic", vectors, actions, split)["video"]
        figures |= {"chance": result["chance"], name: result["mean"]}
    return figures


def tables(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The summary under headings a reader understands."""
    return {
        "Positives of the same class, by rule": summary["agreement_precision"],
        "Linear probe on the 12 classes, picture and sound": summary["probe"],
        "Transfer to the silent action clips, picture only": summary["transfer"],
        "Retrieval across modalities": summary["retrieval"],
    }
