"""Positives from time, from tracking and from agreement: a table that compares them, and a picture that shows them.

    python tools/positives.py table data --out runs/positives --seeds 0 1 2
    python tools/positives.py table data optim.epochs=2 --out runs/short --seeds 0 --rows avid joint
    python tools/positives.py picture runs/positives/joint/seed0 --tracks runs/positives/tracks.parquet \\
        --out docs/positives.png

table: DATA holds the sets of `python datasets/toy.py DATA`. Every row is trained for the same number of steps, one run
per seed; tracks are mined once. What is measured already is not run again; a stopped training continues.
picture: one clip of RUN (method joint or avid_cma), its neighbour in time, its tracked patch, its agreement set.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from avssl.benchmark.positives import ROWS, mine_tracks, read_sets, run_row, tables
from avssl.benchmark.positives_picture import draw_positives
from avssl.files import answer, check_writable
from avssl.train import TrainingError

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "toy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="train every row and compare")
    table.add_argument("data", type=Path, help="folder with toy and toy_actions")
    table.add_argument("overrides", nargs="*", help="section.key=value for every row, such as optim.epochs=2")
    table.add_argument("--out", type=Path, default=Path("runs/positives"))
    table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    table.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    table.add_argument("--tracks", type=Path, help="table of tracks of toy (default: OUT/tracks.parquet, made first)")
    table.set_defaults(work=_table)
    picture = commands.add_parser("picture", help="draw the positives of one clip")
    picture.add_argument("run", type=Path, help="folder of a run of method joint or avid_cma")
    picture.add_argument("--tracks", type=Path, required=True, help="table of tracks of the run's clips")
    picture.add_argument("--out", type=Path, required=True, help="PNG to write")
    picture.add_argument("--id", type=int, help="row of the manifest (default: drawn by --seed)")
    picture.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    picture.add_argument(
        "--max-seconds", type=float, help="to a neighbour that is a positive (default: the run's max_seconds)"
    )
    picture.set_defaults(work=_picture)
    for command in (table, picture):
        command.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    arguments = parser.parse_args()
    try:
        for path in (arguments.json, arguments.out if arguments.command == "picture" else None):
            if path not in (None, "-"):
                check_writable(path)
        result, text = arguments.work(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result is None:
        return 1
    answer(result, text, to=arguments.json)
    return 0


def _table(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]] | None, str]:
    """[{row: figures} of each seed] and the table; None when a training was asked to stop."""
    names = [name for name in ROWS if name in (arguments.rows or ROWS)]
    toy = read_sets(arguments.data)["toy"]
    tracks = arguments.tracks or arguments.out / "tracks.parquet"
    if not arguments.tracks and any(ROWS[name].needs_tracks for name in names):
        mine_tracks(toy, tracks, say=_say)
    results: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        results.append({})
        for name in names:
            found = run_row(
                arguments.out,
                name,
                data=arguments.data,
                configs=CONFIGS,
                seed=seed,
                overrides=arguments.overrides,
                tracks=tracks,
                say=_say,
            )
            if found is None:
                return None, ""
            results[-1][name] = found
    return results, tables(results)


def _picture(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What is shown, and a line that names the picture."""
    if (arguments.max_seconds is not None and not arguments.max_seconds > 0) or arguments.seed < 0:
        raise ValueError(
            f"--max-seconds {arguments.max_seconds} must be above 0, and --seed {arguments.seed} at least 0"
        )
    shown = draw_positives(
        arguments.run,
        arguments.tracks,
        arguments.out,
        id=arguments.id,
        seed=arguments.seed,
        max_seconds=arguments.max_seconds,
    )
    return shown, f"{arguments.out}: clip {shown['id']}, {shown['path']}"


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
