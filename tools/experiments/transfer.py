"""What AVID and AVID-CMA are worth beside random weights, on four sets and by the protocols of
tools/evaluate.py: one table.

    python tools/experiments/transfer.py data --digits digits --clips clips --out runs/transfer

DATA holds toy and toy_actions (datasets/toy.py). --digits is the folder of the digits, --clips that of the real clips,
each with its manifest.csv; a set that is not given is left out. Every set is pretrained on without labels, then asked
about; toy_actions is asked about with the towers of toy. What is done already is not done again; a stopped training
continues. Figures: 95 % interval over groups of clips in brackets; few labels: deviation over draws besides.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import experiment
import natural
from experiment import ROOT, info, remembered, train_timed

from avssl.config import Config, load
from avssl.data.manifest import read_manifest
from avssl.evaluate.measure import EvalSpec, measure_finetuned, measure_frozen
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import read_splits
from avssl.evaluate.table import read_result, shown
from avssl.weights.load import load_run, with_data

CONFIGS = ROOT / "configs"
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

    @property
    def protocols(self) -> tuple[str, ...]:
        return (*FROZEN, "finetune") if self.tuned else FROZEN


SETS = {
    "digits": Set("digits", num_clips=2),
    "toy": Set("toy", num_clips=3),
    "toy_actions": Set("toy", num_clips=3, tuned=True),
    "fight": Set("fight", num_clips=3, num_crops=3, folds=5, tuned=True),
}


def run_transfer(arguments: argparse.Namespace) -> tuple[dict[str, dict[str, dict[str, Any]]], str] | None:
    """Pretrain, then ask about every set; what is done already is read.

    Returns:
        {set: {protocol: {method: result}}} and the table; None when a training was asked to stop.
    """
    manifests = make_sets(arguments)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, how, method in _asked(manifests):
        config = pretraining(how.pretrained, method, manifests, arguments)
        if not train_timed(config):
            return None
        for protocol in how.protocols:
            path = arguments.out / name / f"{protocol}_{method}.json"
            if not path.exists():
                info(f"{name}: {protocol}, {METHODS[method]}")
                result = _ask(protocol, how, manifests[name], Path(config.run.dir), method, path, arguments.tuned)
                if result is None:
                    return None
                remembered(path, lambda result=result: result)
            found.setdefault(name, {}).setdefault(protocol, {})[method] = read_result(path)
    return found, table(found)


def manifests_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """Where the manifests of the sets lie, by the name of the set."""
    found = {name: arguments.data / name / "manifest.parquet" for name in ("toy", "toy_actions")}
    given = {"digits": arguments.digits, "fight": arguments.clips}
    return found | {name: arguments.out / "sets" / name / "manifest.parquet" for name in given if given[name]}


def make_sets(arguments: argparse.Namespace) -> dict[str, Path]:
    """The same, and they are there: those of the real clips are written when they are not."""
    found = manifests_of(arguments)
    for name in ("toy", "toy_actions"):
        read_manifest(found[name])
    if arguments.digits:
        digits.make_set(arguments.digits, found["digits"].parent)
    if arguments.clips:
        natural.make_manifest(arguments.clips, ["fight"], found["fight"])
    return found


def pretraining(name: str, method: str, manifests: Mapping[str, Path], arguments: argparse.Namespace) -> Config:
    folder = arguments.out / "pretrained" / name / method
    own = [f"data.manifest={manifests[name]}", f"run.dir={folder}", f"run.seed={arguments.seed}"]
    own += [f"model.init={folder.with_name('avid')}"] if method != "avid" else []
    return load(CONFIGS / name / f"{method}.yaml", [*arguments.overrides, *own])


def _asked(manifests: Mapping[str, Path]) -> Iterator[tuple[str, Set, str]]:
    """Each set that is there with each method."""
    for name, how in SETS.items():
        if name in manifests:
            for method in METHODS:
                yield name, how, method


def _ask(
    protocol: str, how: Set, path: Path, folder: Path, method: str, result: Path, tuned: Sequence[str]
) -> dict[str, Any] | None:
    manifest = read_manifest(path)
    asked = EvalSpec(
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


def main() -> int:
    parser = experiment.command(__doc__, data="folder with toy/ and toy_actions/")
    experiment.takes_overrides(parser, out="runs/transfer")
    parser.add_argument("--digits", type=Path, help="folder of the digits")
    parser.add_argument("--clips", type=Path, help="folder of the real clips, with fight/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuned", nargs="+", default=[], metavar="section.key=value", help="for every fine-tuning")
    return experiment.run(parser, run_transfer, plan=plan)


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    manifests = manifests_of(arguments)
    lines = {}  # a pretraining that two sets ask for is one
    for name, how, method in _asked(manifests):
        lines[experiment.describe(pretraining(how.pretrained, method, manifests, arguments))] = None
        lines[f"ask {METHODS[method]} about {name}: {', '.join(how.protocols)}"] = None
    yield from lines


if __name__ == "__main__":
    sys.exit(main())
