"""Natural clips: synchrony of people speaking, and a grouped probe of surveillance clips, with bootstrap intervals.

    python tools/natural.py MEDIA --out runs/natural

MEDIA holds folders of people speaking (--speech) and one of surveillance clips (--fight), and manifest.csv with the
columns path, label, group. Finished trainings are not run again; a stopped one continues.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

from avssl.benchmark.natural import run_fight, run_speech, table
from avssl.data.check import build_table
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.files import answer, check_writable
from avssl.train import TrainingError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder of the clips, with manifest.csv")
    parser.add_argument("overrides", nargs="*", help="section.key=value for every training, such as optim.epochs=2")
    parser.add_argument("--out", type=Path, default=Path("runs/natural"))
    parser.add_argument("--speech", nargs="+", default=["lips_ro", "grid"], help="folders of people speaking")
    parser.add_argument("--fight", default="fight", help="folder of surveillance clips")
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        speech = make_manifest(arguments.media, arguments.speech, arguments.out / "speech" / "manifest.parquet")
        fight = make_manifest(arguments.media, [arguments.fight], arguments.out / "fight" / "manifest.parquet")
        how = {"overrides": arguments.overrides}
        figures = run_speech(arguments.out / "speech", speech, config=CONFIGS / "speech" / "infonce.yaml", **how)
        more = figures and run_fight(arguments.out / "fight", fight, config=CONFIGS / "fight" / "infonce.yaml", **how)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not figures or not more:
        return 1
    figures |= more
    found = {name: dataclasses.asdict(figure) for name, figure in figures.items()}
    answer(found, table(figures), to=arguments.json)
    return 0


def make_manifest(media: Path, folders: list[str], out: Path) -> Manifest:
    """The manifest of some folders of MEDIA, with label and group of its manifest.csv."""
    listed = media / "manifest.csv"
    if not listed.is_file():
        raise ValueError(f"{listed} does not exist: MEDIA must be the folder of the clips with its manifest.csv")
    with open(listed, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].split("/")[0] in folders]
    if not rows:
        raise ValueError(f"{listed} lists no clip in {' or '.join(folders)}")
    if not out.exists():
        wanted = [{name: row[name] or None for name in ("path", "label", "group")} for row in rows]
        table = build_table(media, sorted(wanted, key=lambda row: row["path"]), num_workers=2)
        write_manifest(out, table, root=media)
    return read_manifest(out)


if __name__ == "__main__":
    sys.exit(main())
