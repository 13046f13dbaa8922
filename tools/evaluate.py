"""How good frozen features are: nearest neighbours or a linear probe on the trunk's features.

    python tools/evaluate.py runs/toy knn --train data/toy/manifest.parquet --test data/toy/manifest.parquet
    python tools/evaluate.py runs/toy linear --train data/toy/manifest.parquet --test data/toy/manifest.parquet

Rows with split train of the first manifest and test (or val) of the second are used, where the manifests have
splits. video counts the clips with pictures, audio those with sound, both those with both. Exit code: 0 done, 1 some
clips could not be read (they are named and left out), 2 wrong call.
"""

import argparse
import json
import sys
from pathlib import Path

from avssl.data.manifest import read_manifest
from avssl.evaluate.features import extract, load_run, with_data
from avssl.evaluate.harness import evaluate, labelled_rows
from avssl.files import check_writable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("protocol", choices=("knn", "linear"))
    parser.add_argument("--train", type=Path, required=True, help="manifest to learn classes from")
    parser.add_argument("--test", type=Path, required=True, help="manifest to be right on")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--num-clips", type=int, default=3, help="clips averaged per video")
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes")
    parser.add_argument("--random-weights", action="store_true", help="the same towers untrained: the baseline")
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    arguments = parser.parse_args()
    try:
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        run = with_data(
            load_run(arguments.run, trained=not arguments.random_weights), num_workers=arguments.num_workers
        )
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
        result = evaluate(arguments.protocol, sides["train"], sides["test"])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    errors = {
        manifest.column("path")[row]: why for manifest, found in sides.values() for row, why in found.errors.items()
    }
    for path, reason in errors.items():
        print(f"not read, left out: {path}: {reason}", file=sys.stderr)
    if arguments.json == "-":
        print(json.dumps(result))
    else:
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
    if arguments.json and arguments.json != "-":
        Path(arguments.json).write_text(json.dumps(result) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
