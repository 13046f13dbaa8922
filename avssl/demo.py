"""The whole way on the toy set: train AVID, then AVID-CMA, mine, retrieve, probe, transfer, and say what came out.

Every stage is what a user calls for clips of his own; see tools/demo.py.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.config import load
from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.classify import linear_predict
from avssl.evaluate.features import extract
from avssl.evaluate.probe import labelled_rows, probe
from avssl.evaluate.retrieval import recall_figures
from avssl.evaluate.shortcut import shortcut_features
from avssl.mining.agreement import RULES, agreement_precision, chance_precision, minable, mine_agreement
from avssl.pretrained import load_run
from avssl.report import ShownClip, curves_png, write_report
from avssl.train import train

NUM_CLIPS = 3  # clips averaged per video wherever features are taken
SHOWN_REFERENCES = 3


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
    banks, precision = agreement_of(runs["avid_cma"], toy, k=int(config.method["num_positives"]))
    say("extract and probe")
    probes, retrieval, notes = probe_toy(runs, toy)
    transfer = probe_transfer(runs["avid_cma"], actions)
    summary = {
        "agreement_precision": precision,
        "probe": probes,
        "transfer": transfer,
        "retrieval": retrieval,
        "probe_by_modality": notes,
        "seconds": time.perf_counter() - since,
        "command": command,
        "machine": machine(),
        "seed": config.run.seed,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    say("write the report")
    write_report(
        out / "report.html",
        title="avssl on the toy set",
        notes=[
            f"{command}; {summary['machine']}; {summary['seconds']:.0f} s; seed {config.run.seed}.",
            "Made clips: 12 classes, pairs of which look alike and sound different or sound alike and look "
            "different; every tenth clip carries a foreign sound.",
        ],
        curves=curves_png(
            {name: folder / "log.jsonl" for name, folder in runs.items()}, ("loss", "video_rank", "audio_rank")
        ),
        tables=tables(summary),
        manifest=toy,
        clips=reference_clips(*banks, toy),
    )
    return summary


def agreement_of(
    run: Path, manifest: Manifest, *, k: int
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], dict[str, float]]:
    """Memories of a run (video, audio, usable rows), and how often a mined positive shares the class, by rule."""
    banks = load_run(run).method.banks
    valid = minable(video=banks["video"].valid, audio=banks["audio"].valid, rule="consensus")  # for every rule alike
    state = (banks["video"].z.cpu(), banks["audio"].z.cpu(), valid.cpu())
    targets = torch.from_numpy(manifest.targets())
    precision = {
        rule: agreement_precision(mine_agreement(state[0], state[1], k=k, rule=rule, valid=state[2]).ids, targets)
        for rule in RULES
    }
    return state, precision | {"chance": chance_precision(targets, state[2])}


def probe_toy(runs: dict[str, Path], toy: Manifest) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Linear probes on the toy classes, retrieval across modalities on the test split, and the probes' single
    modalities.
    """
    rows = {split: labelled_rows(toy, split, path=toy.root) for split in ("train", "test")}
    targets = {split: toy.targets()[ids] for split, ids in rows.items()}
    shortcut = {split: shortcut_features(toy, ids, progress=f"shortcut {split}") for split, ids in rows.items()}
    predicted, _ = linear_predict(shortcut["train"], targets["train"], shortcut["test"])
    probes = {"chance": 0.0, "shortcut": float((predicted == targets["test"]).mean())}
    by_modality, found = {}, {}
    for name, run, trained in (
        ("random", runs["avid"], False),
        ("avid", runs["avid"], True),
        ("avid_cma", runs["avid_cma"], True),
    ):
        loaded = load_run(run, trained=trained)
        found = {
            split: extract(loaded, toy, ids, num_clips=NUM_CLIPS, progress=f"{name} {split}")
            for split, ids in rows.items()
        }
        result = probe("linear", (toy, found["train"]), (toy, found["test"]))
        probes |= {"chance": result["chance"], name: result["accuracy"]["both"]}
        by_modality[name] = result["accuracy"]
    test = found["test"]
    test = test.take(test.has("both"))
    return (
        probes,
        recall_figures(test.embedding["video"], test.embedding["audio"], toy.targets()[test.ids]),
        by_modality,
    )


def probe_transfer(run: Path, actions: Manifest) -> dict[str, float]:
    """Linear probes on the silent action clips: pictures only."""
    rows = {split: labelled_rows(actions, split, path=actions.root) for split in ("train", "test")}
    figures = {}
    for name, trained in (("random", False), ("avid_cma", True)):
        loaded = load_run(run, trained=trained)
        sides = [
            (actions, extract(loaded, actions, ids, num_clips=NUM_CLIPS, progress=f"{name} actions {split}"))
            for split, ids in rows.items()
        ]
        result = probe("linear", *sides)
        figures |= {"chance": result["chance"], name: result["accuracy"]["video"]}
    return figures


def reference_clips(
    video: torch.Tensor, audio: torch.Tensor, valid: torch.Tensor, manifest: Manifest
) -> dict[str, list[ShownClip]]:
    """Clips drawn at random (seed 0), each with its nearest by agreement, one that only looks alike and one that
    only sounds alike.
    """
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(valid.numpy()))
    references, classes = [], set()
    for row in drawn.tolist():
        if manifest.targets()[row] not in classes and len(references) < SHOWN_REFERENCES:
            references.append(row)
            classes.add(manifest.targets()[row])
    shown = {}
    for number, row in enumerate(references, 1):
        look, sound = video @ video[row], audio @ audio[row]  # (N,)
        usable = valid.clone()
        usable[row] = False
        looks_only = torch.where(look >= look[usable].quantile(0.95), look - sound, -torch.inf)
        sounds_only = torch.where(sound >= sound[usable].quantile(0.95), sound - look, -torch.inf)
        picks = {
            "Positive by agreement": torch.minimum(look, sound),
            "Looks alike, sounds different": looks_only,
            "Sounds alike, looks different": sounds_only,
        }
        clips = [ShownClip("Reference", row, "")]
        for role, score in picks.items():
            best = int(score.masked_fill(~usable, -torch.inf).argmax())
            clips.append(ShownClip(role, best, f"video {float(look[best]):.2f}, audio {float(sound[best]):.2f}"))
        shown[f"Reference {number}"] = clips
    return shown


def tables(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The summary under headings a reader understands."""
    return {
        "Positives of the same class, by rule": summary["agreement_precision"],
        "Linear probe on the 12 classes, picture and sound": summary["probe"],
        "Transfer to the silent action clips, picture only": summary["transfer"],
        "Retrieval across modalities": summary["retrieval"],
    }


def machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {platform.machine()}{gpu}, torch {torch.__version__}"
