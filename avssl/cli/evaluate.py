"""Evaluate a trained network on a labeled set: classification, retrieval, clustering, and mask propagation.

    avssl evaluate runs/toy knn --dataset data/toy/manifest.parquet
    avssl evaluate runs/toy linear --dataset toy --json toy_linear.json --picture toy_linear.png
    avssl evaluate runs/toy linear --dataset toy --save weights/toy_classes
    avssl evaluate weights/avid finetune --dataset ucf101 --out runs/ucf101
    avssl evaluate runs/toy retrieval --dataset my_clips/manifest.parquet --folds 5
    avssl evaluate --table avid.json avid_cma.json --report compared.html
    avssl evaluate runs/toy propagate --scenes 10 --seed 0 --random-weights

knn, linear, svm, fewlabels, partition and retrieval use frozen encoders; features are computed once and cached in the
folder of the run. finetune trains the whole network and can be resumed. Baselines: chance, and the same encoders with
random weights (--no-baseline leaves the latter out).
--dataset: a manifest, or the name of a set whose manifest is data/NAME/manifest.parquet. Its splits split1, split2, ...
are all used, else its column split (train; test, or val), else, or with --folds, folds of whole groups (column group,
--group).
A clip that cannot be read or lacks the modality counts as wrong; --skip-unreadable leaves it out. Where some clips lack
video or audio, a second block counts only those that have both. Clips with several classes: mean average precision.
propagate: the mask of the first frame is propagated by feature similarity: J (region), F (boundary) and their mean,
beside the first mask copied to every frame. On synthetic scenes, or on a folder of DAVIS.
Exit code: 0 done, 1 some clips could not be read (they are named), 2 wrong call.
"""

import argparse
import dataclasses
import sys
from os.path import expanduser
from pathlib import Path
from typing import Any

from avssl import distributed
from avssl.cli.common import add_json, info, new_parser, run, warn_unread
from avssl.data.manifest import read_manifest
from avssl.evaluate.davis import davis_names, read_davis
from avssl.evaluate.heads import Head
from avssl.evaluate.measure import EvalSpec, default_views, measure_finetuned, measure_frozen
from avssl.evaluate.propagate import SIZE, score_propagation
from avssl.evaluate.protocols import Options
from avssl.evaluate.scenes import make_scene
from avssl.evaluate.splits import grouped_by, read_splits
from avssl.evaluate.table import compare, read_result
from avssl.files import WriteError, atomic_write, check_writable, print_next, print_result
from avssl.report.evaluation import confusion_png, predicts_classes, write_evaluation
from avssl.training.checkpoint import LAST
from avssl.training.session import TrainingError
from avssl.weights.export import export
from avssl.weights.load import Pretrained, load, untrained, with_data

FROZEN = {
    "knn": "majority class of the nearest neighbors, weighted and plain",
    "linear": "a linear classifier on every map of the encoders",
    "svm": "a linear support vector machine",
    "fewlabels": "a linear classifier from 1 and 10 of 100 labels",
    "partition": "clusters against classes: NMI, adjusted Rand index, purity",
    "retrieval": "recall at 1 to 50 of test clips among training clips, within and across modalities",
}
PROTOCOLS = (*FROZEN, "finetune", "propagate")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--table"]:
        parser = new_parser(__name__, "Results side by side.")
        parser.add_argument("--table", nargs="+", type=Path, required=True, help="files that --json has written")
        parser.add_argument("--report", type=Path, help="HTML page to write: tables and confusion matrices")
        return run(_table, parser.parse_args(arguments), interrupted="no page was written")
    parser = _parser()
    follows = next(iter(arguments[1:]), "-")  # a misspelt protocol is argparse's to answer
    if arguments and follows.startswith("-") and not {"-h", "--help"} & {*arguments}:
        parser.error(f"what to evaluate must follow {arguments[0]}: one of {', '.join(PROTOCOLS)}")
    given = parser.parse_args(arguments)
    try:
        interrupted = "no result was written; the same call goes on with finished vectors and runs"
        return run(given.measure, given, failures=(TrainingError,), interrupted=interrupted)
    finally:
        distributed.shut_down()


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("weights", type=Path, metavar="RUN_OR_WEIGHTS", help="folder of a run, or of exported weights")
    protocols = parser.add_subparsers(dest="protocol", required=True)
    classes = argparse.ArgumentParser(add_help=False)
    classes.add_argument("--dataset", type=expanduser, required=True, help="manifest, or the name of a set in data/")
    classes.add_argument("--folds", type=int, help="number of folds of whole groups, instead of the set's splits")
    classes.add_argument("--group", help="'folder', or a regular expression that finds the group in a path")
    classes.add_argument("--test-split", help="split to evaluate on (default: test, or val)")
    classes.add_argument("--num-clips", type=int, help="clips of each video (default: what fits in, at most 10)")
    classes.add_argument("--num-crops", type=int, help="crops of each clip (default: 3, of square videos 1)")
    classes.add_argument("--skip-unreadable", action="store_true", help="leave out clips that cannot be read")
    classes.add_argument("--no-baseline", action="store_true", help="leave out encoders with random weights")
    classes.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    for name, what in FROZEN.items():
        frozen = protocols.add_parser(name, help=what, parents=[classes])
        frozen.add_argument("--cache", type=Path, help="folder for features (default: vectors/ beside the weights)")
        frozen.set_defaults(measure=_frozen)
    protocols.choices["knn"].add_argument("--k", type=int, default=20, help="neighbors (default: 20)")
    protocols.choices["knn"].add_argument("--temperature", type=float, default=0.07, help="of weights (default: 0.07)")
    protocols.choices["linear"].add_argument("--save", type=Path, help="folder for encoders and best classifier")
    protocols.choices["svm"].add_argument("--map", default="pool", help="map of the encoders (default: pool)")
    protocols.choices["fewlabels"].add_argument("--draws", type=int, default=5, help="subsets of labels (default: 5)")
    tuned = protocols.add_parser("finetune", help="train the whole network on the labels", parents=[classes])
    tuned.add_argument("--out", type=Path, required=True, help="folder for the runs; the same call continues them")
    share = "of the training videos of each class, at least one (default: 1)"
    tuned.add_argument("--share", type=float, default=1.0, help=share)
    tuned.add_argument("--recipe", type=Path, help="YAML of sections that differ from AVID's recipe")
    tuned.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")
    tuned.set_defaults(measure=_finetune)
    for name in ("knn", "linear", "svm", "finetune"):
        protocols.choices[name].add_argument(
            "--picture", type=Path, help="PNG to write: confusion matrix, and accuracy of each class"
        )
    for name in ("linear", "finetune"):
        protocols.choices[name].add_argument(
            "--average", choices=("softmax", "logits"), default="softmax", help="what is averaged over clips"
        )
    masks = protocols.add_parser("propagate", help="masks of moving objects, propagated from the first frame")
    clips = masks.add_mutually_exclusive_group()
    clips.add_argument("--scenes", type=int, default=10, help="scenes to make (default: 10)")
    clips.add_argument("--davis", type=Path, help="folder of DAVIS 2017 to use instead")
    masks.add_argument("--seed", type=int, help="of the first scene; the others follow (default: 0)")
    masks.add_argument("--split", type=Path, help="file that lists the clips of DAVIS (default: all)")
    masks.add_argument("--map", help="map of the encoder (default: the deepest of at most 8 pixels per cell)")
    masks.add_argument("--size", type=int, default=SIZE, help=f"short side of the frames in pixels (default: {SIZE})")
    masks.add_argument("--random-weights", action="store_true", help="use untrained encoders: the baseline")
    masks.set_defaults(measure=_propagate)
    for protocol in protocols.choices.values():
        add_json(protocol)
    return parser


def _table(given: argparse.Namespace) -> int:
    results = [read_result(path) for path in given.table]
    print(compare(results), flush=True)
    if given.report:
        write_evaluation(given.report, results)
    return 0


def _load(given: argparse.Namespace) -> tuple[Pretrained, EvalSpec]:
    path = dataset_path(given.dataset)
    manifest = read_manifest(path)
    if given.group is not None:
        manifest = grouped_by(manifest, given.group)
    options = {name: getattr(given, name) for name in Options.__dataclass_fields__ if hasattr(given, name)}
    model = load(given.weights, device=distributed.init())
    num_clips, num_crops = default_views(manifest, model.data)
    spec = EvalSpec(
        protocol=given.protocol,
        manifest=manifest,
        manifest_path=str(path),
        splits=read_splits(manifest, folds=given.folds, test_split=given.test_split),
        group=given.group,
        options=Options(**options),
        num_clips=num_clips if given.num_clips is None else given.num_clips,
        num_crops=num_crops if given.num_crops is None else given.num_crops,
        skip_unreadable=given.skip_unreadable,
    )
    if distributed.is_main():
        info(f"{spec.num_clips} clips x {spec.num_crops} crops of each video")
    if given.folds is None and spec.splits[0].name == "fold1" and distributed.is_main():
        info(f"note: no clip has a split, so {len(spec.splits)} folds of whole groups are tested in turn (--folds)")
    fewest = min(len(split.train) for split in spec.splits)
    if given.protocol == "knn" and given.k >= fewest / 2 and distributed.is_main():
        info(f"note: --k {given.k} neighbors of {fewest} training clips: try --k {max(1, fewest // 10)}")
    return with_data(model, num_workers=given.workers), spec


def dataset_path(name: str) -> Path:
    """The manifest of --dataset: a file, its folder, or the name of a set in data/."""
    path = Path(name)
    if path.suffix == ".parquet" or path.exists():
        return path / "manifest.parquet" if path.is_dir() else path
    path = Path("data", name, "manifest.parquet")
    if not path.exists():
        raise ValueError(
            f"--dataset {name}: there is no {path}: write it with avssl datasets {name} or give the path of a manifest"
        )
    return path


def _frozen(given: argparse.Namespace) -> int:
    model, spec = _load(given)
    save = getattr(given, "save", None)
    if save:
        if (save / LAST).exists():
            raise ValueError(f"--save {save} is the folder of a run: give another one")
        check_writable(save / "config.json")
    heads: dict[str, Head] = {}
    cache = given.cache or model.path.parent / "vectors"
    keep = heads if save else None
    try:
        result = measure_frozen(model, spec, cache=cache, baseline=not given.no_baseline, keep=keep)
    except WriteError as error:
        raise ValueError(f"{error}; --cache names another folder for vectors") from error
    code = _print_result(result, given)
    if result and save:
        if not heads:
            raise ValueError(f"--save {save}: the training clips have one class, and there is nothing to save")
        best = max(heads.values(), key=lambda head: head.held_out)
        facts = {"manifest_hash": spec.manifest.hash, "splits": len(spec.splits), "held_out": best.held_out}
        classified = dataclasses.replace(model, classifier=best.classifier)
        export(classified, save, facts={**model.facts, "classifier": facts})
        info(
            f"saved {save}: the classifier of {best.classifier.modality} {best.classifier.stage}, {best.held_out:.3f} "
            "on the held-out training part"
        )
        print_next("predict", save, spec.manifest.path(int(spec.manifest.usable().argmax())))
    return code


def _finetune(given: argparse.Namespace) -> int:
    model, spec = _load(given)
    result = measure_finetuned(
        model,
        spec,
        out=given.out,
        baseline=not given.no_baseline,
        recipe=given.recipe,
        overrides=[*given.overrides, f"data.num_workers={given.workers}"],
    )
    if result is None and distributed.is_main():
        info(f"stopped: the same call continues the runs in {given.out}")
        return 1
    return _print_result(result, given)


def _print_result(result: dict[str, Any] | None, given: argparse.Namespace) -> int:
    """Print and write a result (None on all ranks but one); the exit code."""
    if result is None:
        return 0
    code = warn_unread(result["errors"])
    print_result(result, compare([result]), to=given.json)
    if getattr(given, "picture", None):
        if not predicts_classes(result):
            raise ValueError(f"--picture {given.picture}: there are no confusions of clips with several classes")
        with atomic_write(given.picture) as temporary:
            temporary.write_bytes(confusion_png(result))
    return code


def _propagate(given: argparse.Namespace) -> int:
    if given.davis:
        if given.seed is not None:
            raise ValueError(f"--seed {given.seed} is for synthetic scenes: leave it out with --davis")
        names = davis_names(given.davis, given.split)
    else:
        if given.split:
            raise ValueError(f"--split {given.split} lists clips of DAVIS: give its folder with --davis")
        first = given.seed or 0
        if given.scenes < 1 or first < 0:
            raise ValueError(f"--scenes {given.scenes} --seed {first}: expected at least 1 and 0")
        names = [str(first + i) for i in range(given.scenes)]
    model = load(given.weights)
    model = untrained(model) if given.random_weights else model

    def read(name: str) -> tuple[Any, Any]:
        if given.davis:
            return read_davis(given.davis, name)
        scene = make_scene(int(name))
        return scene.frames, scene.masks

    result = score_propagation(model, names, read, map_name=given.map, size=given.size, progress="masks of clips")
    code = warn_unread(result["errors"])
    print_result(result, _format_masks(result), to=given.json)
    return code


def _format_masks(result: dict[str, Any]) -> str:
    lines = [f"{'':10} {'J':>5} {'F':>6} {'J&F':>6}"]
    for name, kind in ((result["map"], "propagated"), ("first mask", "still")):
        scores = result["scores"][kind]
        low, high = scores["interval"]
        means = "  ".join(f"{scores[key]:.3f}" for key in ("j", "f", "jf"))
        lines.append(f"{name:10} {means}   95 %: {low:.3f} to {high:.3f}")
    return "\n".join([*lines, f"{result['num_clips']} clips, {result['num_things']} things"])
