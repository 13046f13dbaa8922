"""How good frozen features are: nearest neighbours, a linear probe, or masks carried from frame to frame.

    python tools/evaluate.py runs/toy knn --train data/toy/manifest.parquet --test data/toy/manifest.parquet
    python tools/evaluate.py runs/toy linear --train data/toy/manifest.parquet --test data/toy/manifest.parquet
    python tools/evaluate.py runs/toy propagate --scenes 10 --seed 0 --random-weights
    python tools/evaluate.py runs/toy propagate --davis DAVIS --split DAVIS/ImageSets/2017/val.txt --size 480

knn, linear: rows with split train of the first manifest and test (or val) of the second are used, where the manifests
have splits. video counts the clips with pictures, audio those with sound, both those with both.
propagate: the mask of a clip's first frame is known, and likeness of features carries it to the others: J (region), F
(boundary) and their mean, beside the first mask copied to every frame. On scenes made here, or on a folder of DAVIS.
Exit code: 0 done, 1 some clips could not be read (they are named and left out), 2 wrong call.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from avssl.benchmark.scenes import make_scene
from avssl.data.manifest import read_manifest
from avssl.evaluate.davis import davis_names, read_davis
from avssl.evaluate.features import extract
from avssl.evaluate.harness import evaluate, labelled_rows
from avssl.evaluate.propagate import SIZE, score_propagation
from avssl.files import check_writable
from avssl.pretrained import load_run, with_data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    protocols = parser.add_subparsers(dest="protocol", required=True)
    for name, what in (("knn", "classes of the nearest neighbours"), ("linear", "classes by a linear probe")):
        classes = protocols.add_parser(name, help=what)
        classes.add_argument("--train", type=Path, required=True, help="manifest to learn classes from")
        classes.add_argument("--test", type=Path, required=True, help="manifest to be right on")
        classes.add_argument("--train-split", default="train")
        classes.add_argument("--test-split", default="test")
        classes.add_argument("--num-clips", type=int, default=3, help="clips averaged per video")
        classes.add_argument("--num-workers", type=int, default=2, help="decoding processes")
        classes.set_defaults(measure=_classify, show=_show_classes)
    masks = protocols.add_parser("propagate", help="masks of moving things, carried from the first frame on")
    clips = masks.add_mutually_exclusive_group()
    clips.add_argument("--scenes", type=int, default=10, help="scenes to make (default: 10)")
    clips.add_argument("--davis", type=Path, help="folder of DAVIS 2017 to use instead")
    masks.add_argument("--seed", type=int, help="of the first scene; the others follow (default: 0)")
    masks.add_argument("--split", type=Path, help="file that lists the clips of DAVIS to use; all if not given")
    masks.add_argument("--map", help="map of the encoder (default: the deepest of at most 8 pixels per cell)")
    masks.add_argument("--size", type=int, default=SIZE, help=f"short side of the frames in pixels (default: {SIZE})")
    masks.set_defaults(measure=_propagate, show=_show_masks)
    for protocol in protocols.choices.values():
        protocol.add_argument("--random-weights", action="store_true", help="the same towers untrained: the baseline")
        protocol.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    arguments = parser.parse_args()
    try:
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        result, errors = arguments.measure(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in errors.items():
        print(f"not read, left out: {name}: {reason}", file=sys.stderr)
    if arguments.json == "-":
        print(json.dumps(result))
    else:
        arguments.show(result)
    if arguments.json and arguments.json != "-":
        Path(arguments.json).write_text(json.dumps(result) + "\n")
    return 1 if errors else 0


def _classify(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and {path: reason} of the clips that could not be read."""
    run = with_data(load_run(arguments.run, trained=not arguments.random_weights), num_workers=arguments.num_workers)
    sides = {}
    for side, path, split in (
        ("train", arguments.train, arguments.train_split),
        ("test", arguments.test, arguments.test_split),
    ):
        manifest = read_manifest(path)
        rows = labelled_rows(manifest, split, path=path)
        sides[side] = (
            manifest,
            extract(run, manifest, rows, num_clips=arguments.num_clips, progress=f"{side} features"),
        )
    errors = {
        str(manifest.column("path")[row]): why
        for manifest, found in sides.values()
        for row, why in found.errors.items()
    }
    return evaluate(arguments.protocol, sides["train"], sides["test"]), errors


def _show_classes(result: dict[str, Any]) -> None:
    for name, figures in result["accuracy"].items():
        print(f"{name:6} {figures:.3f}")
    print(
        f"chance {result['chance']:.3f}   ({result['num_train']} train, {result['num_test']} test, "
        f"{result['num_classes']} classes)"
    )
    for name, lack in (("audio", "sound"), ("video", "picture")):
        counts = result[f"without_{lack}"]
        if sum(counts.values()):
            print(f"{name} and both leave out {counts['train']} train, {counts['test']} test without {lack}")


def _propagate(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and {name: reason} of the clips that could not be read."""
    if arguments.davis:
        if arguments.seed is not None:
            raise ValueError(f"--seed {arguments.seed} is of scenes made here: leave it out with --davis")
        names = davis_names(arguments.davis, arguments.split)
    else:
        if arguments.split:
            raise ValueError(f"--split {arguments.split} lists clips of DAVIS: give its folder with --davis")
        first = arguments.seed or 0
        if arguments.scenes < 1 or first < 0:
            raise ValueError(f"--scenes {arguments.scenes} --seed {first}: expected at least 1 and 0")
        names = [str(first + i) for i in range(arguments.scenes)]
    run = load_run(arguments.run, trained=not arguments.random_weights)

    def read(name: str) -> tuple[Any, Any]:
        if arguments.davis:
            return read_davis(arguments.davis, name)
        scene = make_scene(int(name))
        return scene.frames, scene.masks

    result = score_propagation(run, names, read, map_name=arguments.map, size=arguments.size, progress="masks of clips")
    return result, result["errors"]


def _show_masks(result: dict[str, Any]) -> None:
    print(f"{'':10} {'J':>5} {'F':>6} {'J&F':>6}")
    for name, kind in ((result["map"], "propagated"), ("first mask", "still")):
        scores = result["scores"][kind]
        low, high = scores["interval"]
        print(f"{name:10} {scores['j']:.3f}  {scores['f']:.3f}  {scores['jf']:.3f}   95 %: {low:.3f} to {high:.3f}")
    print(f"{result['num_clips']} clips, {result['num_things']} things")


if __name__ == "__main__":
    sys.exit(main())
