"""AVID and AVID-CMA beside random weights, on four sets by the protocols of avssl evaluate: one table.

    python tools/experiments/transfer.py data --digits digits --clips clips --out runs/transfer

DATA holds toy and toy_actions (datasets/toy.py). --digits is the folder of the digits, --clips that of the real clips,
each with its manifest.csv; a set that is not given is left out. Every set is pretrained on without labels, then
evaluated on; toy_actions is evaluated with the encoders of toy. Results are cached; a stopped training is resumed.
Brackets: 95 % interval over groups of clips; few labels: deviation over draws too.
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
from experiment import cached, info, train_timed

from avssl.config import Config, load
from avssl.data.manifest import read_manifest
from avssl.evaluate.measure import EvalSpec, measure_finetuned, measure_frozen
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import read_splits
from avssl.evaluate.table import read_result, shown
from avssl.weights.load import load_run, with_data

METHODS = {"avid": "AVID", "avid_cma": "AVID-CMA"}  # of the pretraining, the second from the first
FROZEN = ("linear", "knn", "retrieval", "fewlabels")
TUNED = (  # what fine-tuning changes in AVID's recipe, for sets of some hundred clips and two cores
    *("optim.lr=1e-3", "optim.epochs=16", "optim.milestones=[8,12]", "method.warmup_epochs=2"),
    *("data.clips_per_video=2", "data.batch_size=32"),
    *("run.precision=auto", "data.num_workers=1", "data.cache_gigabytes=4", "run.num_threads=1"),
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
    """How one set is evaluated.

    Args:
        pretrained: folder of configs/, and the set that the encoders are trained on.
        num_clips, num_crops: views of each video.
        folds: of whole groups; None = its split of train and test.
        tuned: fine-tune too.
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
    """Pretrain, then evaluate every set; finished results are read.

    Returns:
        {set: {protocol: {method: result}}} and the table; None when a training was stopped.
    """
    manifests = make_sets(arguments)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, how, method in _pairs(manifests):
        config = pretraining(how.pretrained, method, manifests, arguments)
        if not train_timed(config):
            return None
        for protocol in how.protocols:
            path = arguments.out / name / f"{protocol}_{method}.json"
            if not path.exists():
                info(f"== {name}: {protocol}, {METHODS[method]}")
                result = _evaluate(protocol, how, manifests[name], Path(config.run.dir), method, path, arguments.tuned)
                if result is None:
                    return None
                cached(path, lambda result=result: result)
            found.setdefault(name, {}).setdefault(protocol, {})[method] = read_result(path)
    return found, table(found)


def manifests_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """{set: path of its manifest}."""
    found = {name: arguments.data / name / "manifest.parquet" for name in ("toy", "toy_actions")}
    given = {"digits": arguments.digits, "fight": arguments.clips}
    return found | {name: arguments.out / "sets" / name / "manifest.parquet" for name in given if given[name]}


def make_sets(arguments: argparse.Namespace) -> dict[str, Path]:
    """`manifests_of`, after writing the manifests of the real clips that do not exist yet."""
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
    return load(f"{name}/{method}", [*arguments.overrides, *own])


def _pairs(manifests: Mapping[str, Path]) -> Iterator[tuple[str, Set, str]]:
    """Each given set with each method."""
    for name, how in SETS.items():
        if name in manifests:
            for method in METHODS:
                yield name, how, method


def _evaluate(
    protocol: str, how: Set, path: Path, folder: Path, method: str, result: Path, tuned: Sequence[str]
) -> dict[str, Any] | None:
    manifest = read_manifest(path)
    spec = EvalSpec(
        protocol=protocol,
        manifest=manifest,
        manifest_path=str(path),
        splits=read_splits(manifest, folds=how.folds),
        options=Options(),
        num_clips=how.num_clips,
        num_crops=how.num_crops,
        skip_unreadable=True,  # audio is evaluated where there is some
    )
    pretrained = with_data(load_run(folder), num_workers=1, cache_gigabytes=0.0)
    first = method == "avid"  # random weights are the same for both
    if protocol != "finetune":
        return measure_frozen(pretrained, spec, cache=folder / "vectors", baseline=first)
    runs = result.with_suffix("")
    return measure_finetuned(pretrained, spec, out=runs, baseline=first, overrides=[*TUNED, *tuned])


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: a row for each set, protocol and way, and how long fine-tuning took."""
    lines = [
        "| set | protocol | | n | chance | random init | " + " | ".join(METHODS.values()) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(METHODS),
    ]
    for name, protocols in found.items():
        for protocol, results in protocols.items():
            for way in WAYS[protocol]:
                scores = [results["avid"]["random"], *(results[method]["scores"] for method in METHODS)]
                if all(way in each for each in scores):
                    num, chance = (scores[-1][way][key] for key in ("num", "chance"))
                    cells = [name, protocol, way, str(num), f"{chance:.3f}", *(shown(each[way]) for each in scores)]
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
    lines = {}  # a pretraining that two sets share is one
    for name, how, method in _pairs(manifests):
        lines[experiment.describe(pretraining(how.pretrained, method, manifests, arguments))] = None
        lines[f"evaluate {METHODS[method]} on {name}: {', '.join(how.protocols)}"] = None
    yield from lines


if __name__ == "__main__":
    sys.exit(main())
