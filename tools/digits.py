"""The digits benchmark: from the folder of clips to the tables, for several seeds.

    python tools/digits.py MEDIA --out runs/digits --seeds 0 1 2
    python tools/digits.py MEDIA --out runs/digits_hard --part hard
    python tools/digits.py MEDIA --out runs/digits_ablation --part ablation --seeds 0

MEDIA holds the digits (real handwritten digits with real spoken digits, paired by class only). main: AVID, AVID-CMA
from it and in-batch InfoNCE on all clips, beside random weights and hand-made features. hard: fewer clips, foreign
sounds and speakers left out, each method for the same number of steps. ablation: short trainings with something of the
recipe changed. What is measured already is not run again; a stopped training continues.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from avssl.benchmark.digits import (
    ABLATIONS,
    HARD,
    ablation_table,
    folder_name,
    hard_table,
    main_tables,
    run_ablation,
    run_hard,
    run_main,
)
from avssl.files import answer, check_writable
from avssl.train import TrainingError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "digits"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder of the digits, with manifest.csv")
    parser.add_argument("overrides", nargs="*", help="section.key=value for every training, such as optim.epochs=2")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=("main", "hard", "ablation"), default="main")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="rows of hard or ablation, when not all")
    parser.add_argument("--json", nargs="?", const="-", help="print all figures as JSON, or write them to a file")
    arguments = parser.parse_intermixed_args()
    known = {"main": ["all clips"], "hard": list(HARD), "ablation": list(ABLATIONS)}[arguments.part]
    unknown = set(arguments.settings or []) - set(known)
    if unknown:
        parser.error(f"--settings {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    arguments.settings = arguments.settings or known
    try:
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        results = run_all(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if results is None:
        return 1
    tables = {"main": lambda found: main_tables(found["all clips"]), "hard": hard_table, "ablation": ablation_table}
    answer(results, tables[arguments.part](results), to=arguments.json)
    return 0


def run_all(arguments: argparse.Namespace) -> dict[str, list[dict]] | None:
    """{setting: [result of each seed]}; None when a training was asked to stop."""
    results: dict[str, list[dict]] = {name: [] for name in arguments.settings}
    for seed in arguments.seeds:
        how = {"configs": CONFIGS, "seed": seed, "overrides": arguments.overrides, "say": say}
        for name in arguments.settings:
            folder = arguments.out / folder_name(name)
            out = folder / f"seed{seed}"
            match arguments.part:
                case "main":
                    result = run_main(out, make_set(arguments.media, folder / "set", ()), **how)
                case "hard":
                    manifest = make_set(arguments.media, folder / "set", HARD[name].make)
                    result = run_hard(out, manifest, HARD[name], **how)
                case "ablation":
                    manifest = make_set(arguments.media, arguments.out / "set", ())
                    result = run_ablation(arguments.out / f"seed{seed}", manifest, name, **how)
            if result is None:
                return None
            results[name].append(result)
    return results


def say(text: str) -> None:
    print(f"== {text}", file=sys.stderr)


def make_set(media: Path, folder: Path, how: tuple[str, ...]) -> Path:
    """The manifest of a setting, written by datasets/digits.py unless it is there; the same set for every seed."""
    manifest = folder / "manifest.parquet"
    if not manifest.exists():
        call = [sys.executable, str(ROOT / "datasets" / "digits.py"), str(media), str(folder), *how]
        if subprocess.run(call).returncode:
            raise ValueError(f"no set could be made from {media}: see the line above")
    return manifest


if __name__ == "__main__":
    sys.exit(main())
