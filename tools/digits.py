"""The digits benchmark: from the folder of clips to the tables, for several seeds.

    python tools/digits.py MEDIA --out runs/digits --seeds 0 1 2
    python tools/digits.py MEDIA --out runs/digits_hard --hard

MEDIA holds the digits (real handwritten digits with real spoken digits, paired by class only). Without --hard: AVID,
AVID-CMA from it and in-batch InfoNCE on all clips, beside random weights and hand-made features. With --hard: fewer
clips, foreign sounds and speakers left out, each method for the same number of steps. Finished seeds are not run again;
a stopped one continues. Exit code: 0 done, 1 stopped, 2 wrong call.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from avssl.benchmark.digits import HARD, hard_table, main_tables, run_hard, run_main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "digits"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder of the digits, with manifest.csv")
    parser.add_argument("overrides", nargs="*", help="section.key=value for every training, such as optim.epochs=2")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hard", action="store_true", help="the settings in which methods separate")
    parser.add_argument("--settings", nargs="+", choices=list(HARD), default=list(HARD), help="of --hard, some only")
    parser.add_argument("--json", nargs="?", const="-", help="print all figures as JSON, or write them to a file")
    arguments = parser.parse_intermixed_args()
    try:
        results = run_all(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if results is None:
        return 1
    if arguments.json == "-":
        print(json.dumps(results))
    else:
        print(hard_table(results) if arguments.hard else main_tables(results["all clips"]))
    if arguments.json and arguments.json != "-":
        Path(arguments.json).write_text(json.dumps(results) + "\n")
    return 0


def run_all(arguments: argparse.Namespace) -> dict[str, list[dict]] | None:
    """{setting: [result of each seed]}; None when a training was asked to stop."""
    settings = arguments.settings if arguments.hard else ["all clips"]
    results: dict[str, list[dict]] = {name: [] for name in settings}
    for seed in arguments.seeds:
        for name in settings:
            folder = arguments.out / name.replace(" ", "_").replace(",", "")
            how = {
                "configs": CONFIGS,
                "seed": seed,
                "overrides": arguments.overrides,
                "say": lambda text: print(f"== {text}", file=sys.stderr),
            }
            manifest = make_set(arguments.media, folder, HARD[name].make if arguments.hard else ())
            if arguments.hard:
                result = run_hard(folder / f"seed{seed}", manifest, HARD[name], **how)
            else:
                result = run_main(folder / f"seed{seed}", manifest, **how)
            if result is None:
                return None
            results[name].append(result)
    return results


def make_set(media: Path, folder: Path, how: tuple[str, ...]) -> Path:
    """The manifest of a setting, written by datasets/digits.py unless it is there; the same set for every seed."""
    manifest = folder / "set" / "manifest.parquet"
    if not manifest.exists():
        call = [sys.executable, str(ROOT / "datasets" / "digits.py"), str(media), str(folder / "set"), *how]
        if subprocess.run(call).returncode:
            raise ValueError(f"no set could be made from {media}: see the line above")
    return manifest


if __name__ == "__main__":
    sys.exit(main())
