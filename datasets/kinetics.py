"""Write the manifest of Kinetics-400, -600 or -700: YouTube clips of 10 s, one action each.

    avssl datasets kinetics ROOT --out data/kinetics/manifest.parquet
    avssl datasets kinetics ROOT --out data/kinetics/manifest.parquet --classes 700 --lists kinetics700

With lists: ROOT/annotations/*.csv (or ROOT/*.csv, or --lists), official ones with the columns youtube_id, time_start,
time_end, split and, but for hidden test labels, label; clips anywhere below ROOT, named <id>_<start>_<end> (seconds,
padded or not, or milliseconds) or <id>_<start>, or whole videos named <id>, whose rows get start and end. Labels are
those of the lists.

Without lists: ROOT/{train,val,test}/<class>/<clip> or ROOT/<class>/<clip>; underscores in the names of classes are
spaces.

split: train, val or test. group: the YouTube id. Clips vanish from YouTube, so copies have holes: listed clips without
a file are counted and named. Many copies have lost their sound, which is counted too.
"""

import argparse
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.layout import find_clips
from avssl.data.recipes.lists import read_cells, read_csv, read_seconds
from avssl.data.recipes.youtube import Listed, match_clips, youtube_id

EXPECTED = {
    400: {"classes": 400, "split train": 246_534, "split val": 19_906, "split test": 39_805},
    600: {"classes": 600, "split train": 392_622, "split val": 30_001, "split test": 72_924},
    700: {"classes": 700, "split train": 545_317, "split val": 35_000, "split test": 70_000},
}
SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
COLUMNS = ("youtube_id", "time_start", "time_end", "split")
LAYOUT = "clips are named <YouTube id>_<start>_<end>, or lie in train/<class>, val/<class>"
HINT = (
    "put the official lists (https://github.com/cvdfoundation/kinetics-dataset) in ROOT/annotations, or name their "
    "folder as --lists"
)


def find_lists(given: argparse.Namespace) -> list[Path]:
    """The lists in the folder of --lists, ROOT/annotations or ROOT; other CSV files are left out.

    Raises:
        ManifestError: --lists names a folder without one.
    """
    for folder in [given.lists] if given.lists else [given.root / "annotations", given.root]:
        lists = [path for path in sorted(folder.glob("*.csv")) if "youtube_id" in next(read_cells(path, hint=HINT), [])]
        if lists:
            return lists
    if given.lists:
        raise ManifestError(f"--lists {given.lists} holds no CSV with the columns {','.join(COLUMNS)}: {HINT}")
    return []


def read_list(path: Path) -> list[Listed]:
    """The clips of one list. Raises ManifestError: it lacks a column, or a cell has another form."""
    clips = []
    for row in read_csv(path, COLUMNS, hint=HINT):
        if row["split"] not in SPLITS:
            raise ManifestError(f"{path}, {row['youtube_id']}: split {row['split']!r}: expected {', '.join(SPLITS)}")
        start, end = (
            read_seconds(row[name], where=f"{path}, {row['youtube_id']}") for name in ("time_start", "time_end")
        )
        columns = {"label": row.get("label") or None, "split": SPLITS[row["split"]]}
        clips.append(Listed(row["youtube_id"], start, end, columns))
    return clips


def label_folders(paths: list[str]) -> list[dict[str, Any]]:
    """Rows of clips whose folders say split and class. Raises ManifestError: a clip lies in no class folder."""
    rows = []
    for path in paths:
        *folders, _ = PurePosixPath(path).parts
        split = SPLITS.get(folders.pop(0)) if folders and folders[0] in SPLITS else None
        if not folders:
            raise ManifestError(f"{path} lies in no folder of a class, and there are no lists to tell it: {HINT}")
        label = folders[-1].replace("_", " ")
        rows.append({"path": path, "label": label, "split": split, "group": youtube_id(path)})
    return rows


def find_rows(given: argparse.Namespace) -> Found:
    """The clips of the lists, or of the folders where there are no lists. Raises ManifestError."""
    lists = find_lists(given)
    paths, others = find_clips(given.root)
    expected = EXPECTED[given.classes]
    if not lists:
        return Found(label_folders(paths), others, (), expected, has_audio=True)
    rows, absent, untaken = match_clips([clip for path in lists for clip in read_list(path)], paths)
    return Found(rows, [*untaken, *others], absent, expected, has_audio=True, may_be_cut=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe(
        "datasets/kinetics.py",
        __doc__,
        find_rows,
        arguments,
        layout=LAYOUT,
        lists="folder of the lists (default: ROOT/annotations, or ROOT)",
        add_options=lambda parser: parser.add_argument(
            "--classes", type=int, choices=EXPECTED, default=400, help="which Kinetics (default: 400)"
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
