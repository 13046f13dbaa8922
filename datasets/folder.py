"""Write the manifest of a folder of clips.

    python datasets/folder.py ROOT --out manifest.parquet
    python datasets/folder.py ROOT --out manifest.parquet --list list.csv
    python datasets/folder.py ROOT --out manifest.parquet --sounds

Layouts: ROOT/<clip>, ROOT/<class>/<clip>, ROOT/<split>/<class>/<clip>. The first level is a split only if all its
folders that hold clips are named train, val, validation or test and no clip lies beside them. In deeper or mixed trees
the label is the folder that the clip lies in. With --list only the files of the CSV are taken: path (relative to ROOT),
and if wanted label, split, group, start, end (seconds); further columns are kept. With --sounds files of sound alone
(mp3, wav, flac, ...) are taken too: they can be searched and evaluated by their sound.
"""

import argparse
import collections
import csv
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from avssl.data.check import build_table
from avssl.data.layout import CLIPS, SOUNDS, find_clips, label_clips
from avssl.data.manifest import ManifestError, write_manifest
from avssl.files import WriteError, check_writable

NOTHING = (
    f"no clip of {{}} is usable: is ROOT right? clips end in {' '.join(sorted(CLIPS))}; --sounds takes sound alone"
)
MAX_NAMED = 20  # files named one by one in the summary; the manifest names all


def read_list(path: Path, root: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, sorted; empty cells are None.

    Raises:
        ManifestError: no such file, no column path, a path outside ROOT, a row twice, a start or end that is no number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            listed = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"list {path} cannot be read as CSV in UTF-8: {error}") from error
    if "path" not in (reader.fieldnames or []):
        raise ManifestError(f"list {path} has no column path: its first line must name the columns (path,label,split)")
    rows, known = [], set()
    for line, cells in listed:
        row = {name: value or None for name, value in cells.items() if name}
        row["path"] = _inside(root, row["path"], where=f"{path}, line {line}")
        for name in ("start", "end"):
            row[name] = _seconds(row.get(name), where=f"{path}, line {line}, {name}")
        if row["start"] is not None and row["end"] is not None and row["end"] <= row["start"]:
            raise ManifestError(f"{path}, line {line}: end {row['end']} must come after start {row['start']}")
        key = (row["path"], row["start"], row["end"])
        if key in known:
            raise ManifestError(
                f"{path}, line {line}: {row['path']} is listed twice, and a row is one instance: drop one"
            )
        known.add(key)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["path"], row["start"] or -math.inf, row["end"] or math.inf))


def summarise(table: pa.Table, others: list[str], out: Path) -> dict[str, Any]:
    """Counts by status, and every refused and every soundless file and every file of sound alone by name."""
    facts = table.select(["path", "status", "has_audio", "reason"]).to_pylist()
    sound_only = [row for row in facts if row["status"] == "no_video" and row["has_audio"]]
    refused = [row for row in facts if row["status"] != "ok" and not (row["status"] == "no_video" and row["has_audio"])]
    return {
        "manifest": str(out),
        "rows": table.num_rows,
        "status": dict(sorted(collections.Counter(row["status"] for row in facts).items())),
        "labels": len(set(table.column("label").to_pylist()) - {None}),
        "splits": dict(sorted(collections.Counter(table.column("split").to_pylist()).items(), key=str)),
        "refused": refused,
        "sound_only": sound_only,
        "without_sound": [row for row in facts if row["status"] == "ok" and not row["has_audio"]],
        "other_files": others,
    }


def describe(summary: dict[str, Any]) -> str:
    """The summary in words."""
    status = ", ".join(f"{count} {name}" for name, count in summary["status"].items()) or "none"
    splits = ", ".join(f"{count} {name or 'in no split'}" for name, count in summary["splits"].items())
    lines = [f"{summary['rows']} clips: {status}; {summary['labels']} labels; {splits or 'no split'}"]
    if summary["sound_only"]:
        lines.append(f"{len(summary['sound_only'])} sound only, such as {summary['sound_only'][0]['path']!r}")
    for title, name in (("refused", "refused"), ("usable, but without sound", "without_sound")):
        rows = summary[name]
        if rows:
            lines.append(f"{len(rows)} {title}:")
            lines += [f"  {row['path']}: {row['reason']}" for row in rows[:MAX_NAMED]]
        if len(rows) > MAX_NAMED:
            lines.append(f"  and {len(rows) - MAX_NAMED} more: see the columns status and reason of the manifest")
    if summary["other_files"]:
        lines.append(f"{len(summary['other_files'])} other files passed over, such as {summary['other_files'][0]!r}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="datasets/folder.py"
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of the clips")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write (parquet)")
    parser.add_argument("--list", type=Path, help="CSV with the columns path, label, split; only its files are taken")
    parser.add_argument("--sounds", action="store_true", help="take files of sound alone too, such as mp3 and wav")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per file (default: 60)")
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="the summary as JSON (default: stdout)")
    given = parser.parse_args(arguments)
    if not given.root.is_dir():
        parser.error(f"ROOT {given.root} is not a folder")
    if given.workers < 1 or not given.timeout > 0:
        parser.error(f"--workers {given.workers} must be at least 1 and --timeout {given.timeout:g} above 0")
    try:
        if given.list is None:
            clips, others = find_clips(given.root, endings=CLIPS | SOUNDS if given.sounds else CLIPS)
            rows = label_clips(clips)
        else:
            rows, others = read_list(given.list, given.root), []
        if not rows:  # a mistyped ROOT or one that is not mounted must not cost the manifest of before
            print(f"error: {NOTHING.format(given.list or given.root)}; {given.out} is left as it is", file=sys.stderr)
            return 1
        check_writable(given.out)
        if given.json not in (None, "-"):
            check_writable(given.json)
        table = build_table(given.root, rows, num_workers=given.workers, timeout_seconds=given.timeout)
        write_manifest(given.out, table, root=given.root)
    except (ManifestError, WriteError, OSError) as error:
        parser.error(str(error))
    summary = summarise(table, others, given.out)
    usable = summary["status"].get("ok", 0)
    print(describe(summary), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json == "-":
        print(json.dumps(summary))
    elif given.json:
        Path(given.json).write_text(json.dumps(summary))
    if not usable and summary["sound_only"]:
        print(
            f"no clip of {given.root} has a picture: its sounds serve as queries and neighbours, and for evaluation "
            "(tools/extract.py, tools/evaluate.py)",
            file=sys.stderr,
        )
        return 0
    if not usable:
        print(f"error: {NOTHING.format(given.root)}, or see the reasons above", file=sys.stderr)
        return 1
    if len(summary["without_sound"]) == usable:
        print(
            f"no usable clip of {given.root} has sound, and avid and avid_cma learn from picture and sound together: "
            "train on clips with sound, or on pictures alone with method.name=avid method.within=1; these serve for "
            "evaluation too",
            file=sys.stderr,
        )
        return 0
    print(f"next: python tools/train.py configs/... data.manifest={given.out}", file=sys.stderr)
    return 0


def _inside(root: Path, path: str | None, *, where: str) -> str:
    """A listed path, relative to ROOT."""
    if path is None:
        raise ManifestError(f"{where}: the path is empty")
    relative = Path(os.path.relpath(root / path, root))
    if relative.is_absolute() or ".." in relative.parts:
        raise ManifestError(f"{where}: {path} does not lie in {root}: name a folder as ROOT that holds all clips")
    return relative.as_posix()


def _seconds(text: str | None, *, where: str) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ManifestError(f"{where}: {text!r} is no number of seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
