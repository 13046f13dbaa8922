"""Write the manifest of a folder of clips.

    avssl scan ROOT --out manifest.parquet
    avssl scan ROOT --out manifest.parquet --list list.csv
    avssl scan ROOT --out manifest.parquet --sounds

Layouts: ROOT/<clip>, ROOT/<class>/<clip>, ROOT/<split>/<class>/<clip>. The first level is a split only if all its
folders that hold clips are named train, val, validation or test and no clip lies beside them. In deeper or mixed trees
the label is the folder that the clip lies in. With --list only the files of the CSV are taken: path (relative to ROOT),
and if wanted label, split, group, start, end (seconds), and labels of clips with several classes, such as "dog;rain";
further columns are kept. With --sounds audio files (mp3, wav, flac, ...) are taken too: they can be searched and
evaluated by their audio.
Exit code: 0 a clip is usable, 1 none is, 2 wrong call.
"""

import argparse
import difflib
import math
import os
from pathlib import Path
from typing import Any

from avssl.data.manifest import FINDINGS, ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.layout import CLIPS, SOUNDS, find_clips, label_clips
from avssl.data.recipes.lists import path_on_disk, read_csv, read_seconds

COLUMNS = ("path", "label", "labels", "split", "group", "start", "end")
MEANT = {  # by names that others give them
    **dict.fromkeys(("start_seconds", "start_time", "start_sec", "begin"), "start"),
    **dict.fromkeys(("end_seconds", "end_time", "end_sec", "stop"), "end"),
    **dict.fromkeys(("class", "class_name", "category"), "label"),
    **dict.fromkeys(("subset", "partition"), "split"),
}
HINT = f"columns are {', '.join(COLUMNS)} and further ones"
LAYOUT = f"clips end in {' '.join(sorted(CLIPS))}; --sounds takes audio files"


def read_list(path: Path, root: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, sorted; empty cells are None. Raises ManifestError."""
    rows, known = [], set()
    for cells in read_csv(path, ("path",), hint=HINT, comment=""):
        for name in cells.keys() - set(COLUMNS):
            if name in FINDINGS or name.startswith("listed_"):
                raise ManifestError(f"{path} has a column {name}, a name that the manifest itself uses: rename it")
            for near in [MEANT[name]] if name in MEANT else difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8):
                raise ManifestError(f"{path} has a column {name}, did you mean {near}? {HINT}, not so alike")
        where = f"{path}, {cells['path']!r}"
        row = {name: value or None for name, value in cells.items()}
        row["path"] = _inside(root, row["path"], where=where)
        for name in ("start", "end"):
            text = row.get(name)
            row[name] = None if text is None else read_seconds(text, where=f"{where}, {name}")
        if row.get("labels"):
            row["labels"] = [name.strip() for name in row["labels"].split(";") if name.strip()]
            row["label"] = row.get("label") or next(iter(row["labels"]), None)
        if row["start"] is not None and row["end"] is not None and row["end"] <= row["start"]:
            raise ManifestError(f"{where}: end {row['end']} must come after start {row['start']}")
        key = (row["path"], row["start"] or 0.0, row["end"])
        if key in known:
            raise ManifestError(f"{where} is listed twice, and a row is one instance: drop one")
        known.add(key)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["path"], row["start"] or -math.inf, row["end"] or math.inf))


def find_rows(given: argparse.Namespace) -> Found:
    """The files of --list, or the clips of the folder."""
    if given.list is not None:
        return Found(read_list(given.list, given.root))
    clips, others = find_clips(given.root, endings=CLIPS | SOUNDS if given.sounds else CLIPS)
    return Found(label_clips(clips), others, labels_from="names of folders")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", type=Path, help="CSV with the columns path, label, split; only its files are taken")
    parser.add_argument("--sounds", action="store_true", help="take audio files too, such as mp3 and wav")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe("avssl scan", __doc__, find_rows, arguments, layout=LAYOUT, add_options=add_options)


def _inside(root: Path, path: str | None, *, where: str) -> str:
    """A listed path, relative to ROOT."""
    if path is None:
        raise ManifestError(f"{where}: the path is empty")
    relative = Path(os.path.relpath(root / path, root))
    if relative.is_absolute() or ".." in relative.parts:
        raise ManifestError(f"{where} does not lie in {root}: name a folder as ROOT that holds all clips")
    return path_on_disk(root, relative.as_posix())
