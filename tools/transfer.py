"""One table of what AVID and AVID-CMA are worth beside random weights: linear, kNN, fine-tuning, retrieval, few labels.

    python tools/transfer.py data --digits digits --clips clips --out runs/transfer

DATA holds toy and toy_actions (datasets/toy.py). --digits is the folder of the digits, --clips that of the real clips,
each with its manifest.csv; a set that is not given is left out. What is done already is not done again; a stopped
training continues. Figures: 95 % interval over groups of clips in brackets; few labels: deviation over draws besides.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import sys
from pathlib import Path

import digits
import natural

from avssl.benchmark.transfer import run_transfer, table
from avssl.data.manifest import read_manifest
from avssl.files import answer, check_writable
from avssl.train import TrainingError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with toy/ and toy_actions/")
    parser.add_argument("overrides", nargs="*", help="section.key=value for every pretraining, such as optim.epochs=2")
    parser.add_argument("--digits", type=Path, help="folder of the digits")
    parser.add_argument("--clips", type=Path, help="folder of the real clips, with fight/")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuned", nargs="+", default=[], metavar="section.key=value", help="for every fine-tuning")
    parser.add_argument("--json", nargs="?", const="-", help="print all results as JSON, or write them to a file")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        found = run_transfer(
            find_sets(arguments),
            out=arguments.out,
            configs=CONFIGS,
            seed=arguments.seed,
            overrides=arguments.overrides,
            tuned=arguments.tuned,
            say=digits.say,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if found is None:
        return 1
    answer(found, table(found), to=arguments.json)
    return 0


def find_sets(arguments: argparse.Namespace) -> dict[str, Path]:
    """Manifests by the name of their set; those of the real clips are written when they are not there."""
    found = {}
    if arguments.digits:
        found["digits"] = digits.make_set(arguments.digits, arguments.out / "sets" / "digits", ())
    for name in ("toy", "toy_actions"):
        found[name] = arguments.data / name / "manifest.parquet"
        read_manifest(found[name])
    if arguments.clips:
        found["fight"] = arguments.out / "sets" / "fight" / "manifest.parquet"
        natural.make_manifest(arguments.clips, ["fight"], found["fight"])
    return found


if __name__ == "__main__":
    sys.exit(main())
