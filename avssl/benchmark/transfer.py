"""What AVID and AVID-CMA are worth beside random weights, on four sets, by the protocols of evaluate/: one table.

Every set is pretrained on without labels, then asked about; toy_actions is asked about with the towers of toy. The
command is `python tools/transfer.py`.

What lives here: the sets, how they are asked, the table. What does not: making the sets (datasets/), the recipes
(configs/), the protocols.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.benchmark.positives import train_timed
from avssl.config import load
from avssl.data.manifest import read_manifest
from avssl.evaluate.measure import Asked, measure_finetuned, measure_frozen
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import read_splits
from avssl.evaluate.table import read_result, shown
from avssl.files import whole_file
from avssl.weights.load import load_run, with_data

METHODS = {"avid": "AVID", "avid_cma": "AVID-CMA"}  # of the pretraining, the second from the first
FROZEN = ("linear", "knn", "retrieval", "fewlabels")
TUNED = (  # what fine-tuning changes in AVID's recipe, for sets of some hundred clips and two cores
    *("optim.lr=1e-3", "optim.epochs=16", "optim.milestones=[8,12]", "method.warmup_epochs=2"),
    *("data.clips_per_video=2", "data.batch_size=32"),
    *("run.precision=bfloat16", "data.num_workers=1", "data.cache_gigabytes=4", "run.num_threads=1"),
)
WAYS = {  # of each protocol, those that the table shows
    "linear": ("video", "video pool", "audio", "audio pool", "both"),
    "knn": ("video", "audio", "both"),
    "finetune": ("video",),
    "retrieval": ("video R@1", "audio R@1", "video to audio R@1", "audio to video R@1"),
    "fewlabels": ("video 1%", "audio 1%", "both 1%", "video 10%", "audio 10%", "both 10%"),
}


@dataclass(frozen=True)
class Set:
    """How one set is asked about.

    Args:
        pretrained: whose towers: a folder of configs/, and the set that they are trained on.
        num_clips, num_crops: views of each video.
        folds: of whole groups; None = its split of train and test.
        tuned: fine-tuning is asked for.
    """

    pretrained: str
    num_clips: int
    num_crops: int = 1
    folds: int | None = None
    tuned: bool = False


SETS = {
    "digits": Set("digits", num_clips=2),
    "toy": Set("toy", num_clips=3),
    "toy_actions": Set("toy", num_clips=3, tuned=True),
    "fight": Set("fight", num_clips=3, num_crops=3, folds=5, tuned=True),
}


def run_transfer(
    manifests: Mapping[str, Path],
    *,
    out: Path,
    configs: Path,
    seed: int,
    overrides: Sequence[str],
    tuned: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, dict[str, dict[str, Any]]] | None:
    """Pretrain, then ask about every set; what is done already is read from `out`.

    Args:
        manifests: of the sets to ask about, by name, and of those that their towers are trained on.
        overrides: section.key=value for every pretraining, and
        tuned: for every fine-tuning, behind TUNED.
        say: prints what happens.

    Returns:
        {set: {protocol: {method: result}}}; None when a training was asked to stop.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, how in SETS.items():
        if name not in manifests:
            continue
        for method in METHODS:
            folder = _pretrained(how.pretrained, method, manifests, out, configs, seed, overrides, say)
            if folder is None:
                return None
            for protocol in (*FROZEN, *(["finetune"] if how.tuned else [])):
                path = out / name / f"{protocol}_{method}.json"
                if not path.exists():
                    say(f"{name}: {protocol}, {METHODS[method]}")
                    result = _ask(protocol, how, manifests[name], folder, method, path, tuned)
                    if result is None:
                        return None
                    with whole_file(path) as temporary:
                        temporary.write_text(json.dumps(result) + "\n")
                found.setdefault(name, {}).setdefault(protocol, {})[method] = read_result(path)
    return found


def _pretrained(
    name: str,
    method: str,
    manifests: Mapping[str, Path],
    out: Path,
    configs: Path,
    seed: int,
    overrides: Sequence[str],
    say: Callable[[str], None],
) -> Path | None:
    """The folder of a pretraining, which is done when it is not there; None when it was asked to stop."""
    folder = out / "pretrained" / name / method
    own = [f"data.manifest={manifests[name]}", f"run.dir={folder}", f"run.seed={seed}"]
    own += [f"model.init={folder.with_name('avid')}"] if method != "avid" else []
    config = load(configs / name / f"{method}.yaml", [*overrides, *own])
    return folder if train_timed(config, say=say) else None


def _ask(
    protocol: str, how: Set, path: Path, folder: Path, method: str, result: Path, tuned: Sequence[str]
) -> dict[str, Any] | None:
    manifest = read_manifest(path)
    asked = Asked(
        protocol=protocol,
        manifest=manifest,
        manifest_path=str(path),
        splits=read_splits(manifest, folds=how.folds),
        options=Options(),
        num_clips=how.num_clips,
        num_crops=how.num_crops,
        skip_unreadable=True,  # sound is asked about where there is some
    )
    towers = with_data(load_run(folder), num_workers=1, cache_gigabytes=0.0)
    first = method == "avid"  # random weights are the same for both
    if protocol != "finetune":
        return measure_frozen(towers, asked, cache=folder / "vectors", baseline=first)
    runs = result.with_suffix("")
    return measure_finetuned(towers, asked, out=runs, baseline=first, overrides=[*TUNED, *tuned])


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: a row for each set, protocol and way, and how long fine-tuning took."""
    lines = [
        "| set | protocol | | chance | random init | " + " | ".join(METHODS.values()) + " |",
        "|---|---|---|---|---|" + "---|" * len(METHODS),
    ]
    for name, protocols in found.items():
        for protocol, results in protocols.items():
            for way in WAYS[protocol]:
                figures = [results["avid"]["random"], *(results[method]["scores"] for method in METHODS)]
                if all(way in each for each in figures):
                    chance = figures[-1][way]["chance"]
                    cells = [name, protocol, way, f"{chance:.3f}", *(shown(each[way]) for each in figures)]
                    lines.append(f"| {' | '.join(cells)} |")
    longest = {}
    for name, protocols in found.items():
        for result in protocols.get("finetune", {}).values():
            for seconds in result["seconds"]["training"]:  # None of a run that was stopped in between
                longest[name] = max(longest.get(name, 0.0), seconds or 0.0)
    if longest:
        lines += ["", f"Longest fine-tuning: {', '.join(f'{name} {each:.0f} s' for name, each in longest.items())}."]
    return "\n".join(lines)
