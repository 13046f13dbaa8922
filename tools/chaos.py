"""Kill a small run at random moments, resume it each time, and compare it with an uninterrupted run bit for bit.

    python tools/chaos.py
    python tools/chaos.py --kills 3 --seed 1 --json

Linux; needs no data: the set is made on the spot. Exit code: 0 equal, 1 different (or an attempt failed by itself), 2
wrong call.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from avssl.benchmark.chaos import ChaosError, run_chaos


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--keep", type=Path, help="new folder for the runs; without it they are removed at the end")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            result = run_chaos(
                arguments.keep or Path(temporary),
                num_kills=arguments.kills,
                seed=arguments.seed,
                say=lambda text: print(text, file=sys.stderr),
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ChaosError as error:
        print(f"error: {error} (run again with --keep FOLDER)", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(result))
    else:
        fell = ", ".join(f"{number} {phase}" for phase, number in result["during"].items())
        print(f"{result['kills']} kills in {result['runs']} runs and {result['seconds']:.0f} s, seed {result['seed']}")
        print(f"fell into: {fell}; after {result['partial_files']} a partial file lay beside the checkpoint")
        print("equal to the uninterrupted run, bit for bit" if result["equal"] else "DIFFERENT:")
        for difference in result["differences"]:
            print(f"  {difference}")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
