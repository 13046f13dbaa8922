"""What the scripts of datasets/ share: options, from files to a manifest, and its summary."""

import argparse
import collections
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from avssl.data.check import build_table, name_some
from avssl.data.manifest import FINDINGS, Manifest, ManifestError, read_manifest, write_manifest
from avssl.data.recipes.download import DownloadError
from avssl.data.recipes.layout import SOUNDS
from avssl.files import Parser, WriteError, check_writable, did_you_mean, print_next, print_result


@dataclass(frozen=True)
class Found:
    """What a script found of its dataset."""

    rows: Sequence[Mapping[str, Any]]  # of the manifest, see `build_table`
    others: Sequence[str] = ()  # files that were ignored
    absent: Sequence[str] = ()  # listed clips without a file
    # size of the whole set: {"clips": ..., "classes": ..., "<column> <value>": rows with that value}
    expected: Mapping[str, int] = field(default_factory=dict)
    has_audio: bool = False  # clips of the whole set have audio, so a silent copy has lost it
    labels_from: str = ""  # where they come from, if that has to be said
    may_be_cut: bool = False  # start and end refer to the full video, and the file may be the clip cut out of it


def run_recipe(
    script: str,
    doc: str | None,
    find: Callable[[argparse.Namespace], Found],
    arguments: list[str] | None,
    *,
    layout: str,
    lists: str | None = None,
    download: str | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """The command of a script: find the clips, probe them, write the manifest and print a summary.

    Args:
        script: as it is called, such as avssl scan; `doc` is its docstring.
        find: looks for the clips, given the parsed options; its ManifestError names the first missing thing.
        layout: what is expected where, printed when no clip is usable.
        lists: help of --lists, the folder of the lists; None = there is no such option.
        download: what --download fetches; None = there is no such option.
        add_options: adds further options.

    Returns:
        Exit code: 0 when a clip is usable, 1 when none is; 2 when the call is wrong (by SystemExit).
    """
    parser = Parser(description=doc, prog=script)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of the clips")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write (parquet)")
    if lists:
        parser.add_argument("--lists", type=Path, metavar="FOLDER", help=lists)
    if download:
        parser.add_argument("--download", action="store_true", help=f"fetch {download} first, where it is missing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per file (default: 60)")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="PATH", type=expanduser, help="the summary as JSON (default: stdout)"
    )
    parser.set_defaults(download=False, list=None)
    if add_options:
        add_options(parser)
    given = parser.parse_args(arguments)
    nothing = f"no clip of {given.list or given.root} is usable: is ROOT right? {layout}"
    if not given.root.is_dir() and not given.download:
        parser.error(f"ROOT {given.root} is not a folder: {did_you_mean(given.root)}name that of the clips")
    if given.out.suffix not in ("", ".parquet"):
        parser.error(f"--out {given.out}: a manifest is a parquet file: name it {given.out.with_suffix('.parquet')}")
    if given.workers < 1 or not given.timeout > 0:
        parser.error(f"--workers {given.workers} must be at least 1 and --timeout {given.timeout:g} above 0")
    try:
        if given.download:
            given.root.mkdir(parents=True, exist_ok=True)
        found = find(given)
        if not found.rows:  # a mistyped ROOT or one that is not mounted must not cost the existing manifest
            print(f"error: {nothing}; {given.out} is left as it is", file=sys.stderr)
            return 1
        check_writable(given.out)
        if given.json not in (None, "-"):
            check_writable(given.json)
        how = {"may_be_cut": found.may_be_cut, "num_workers": given.workers, "timeout_seconds": given.timeout}
        table = build_table(given.root, found.rows, **how)
        table, replaced = keep_findings(table, given.root, given.out)
        write_manifest(given.out, table, root=given.root)
    except (ManifestError, DownloadError, WriteError, OSError) as error:
        parser.error(str(error))
    summary = summarize(table, found, given.out)
    text = format_summary(summary)
    if replaced:
        print(f"note: {replaced}", file=sys.stderr)
    if given.json == "-":
        print(text, file=sys.stderr)
    print_result(summary, text, to=given.json)
    return _advise(given, summary, nothing, script=script, has_audio=found.has_audio)


def keep_findings(table: pa.Table, root: Path, out: Path) -> tuple[pa.Table, str]:
    """The new rows with what `avssl check` had found of the same files in the manifest that is replaced, and how many
    rows are new and gone; "" when there is none or nothing changes."""
    try:
        before, ours = read_manifest(out), Manifest(table, root)
    except ManifestError:
        return table, ""
    place = {key: row for row, key in enumerate(before.keys.tolist())}
    rows = [place.get(key) for key in ours.keys.tolist()]
    paths = set(ours.column("path").tolist())
    for name, kind in FINDINGS.items():
        if name not in before.table.column_names:
            continue
        known, has = before.table.column(name).to_pylist(), name in table.column_names
        found = table.column(name).to_pylist() if has else [None] * len(table)
        found = [known[row] if own is None and row is not None else own for own, row in zip(found, rows, strict=True)]
        if name == "duplicate_of":
            found = [first if first in paths else None for first in found]
        if has:
            table = table.drop_columns(name)
        table = table.append_column(name, pa.array(found, kind))
    num_new = rows.count(None)
    num_gone = len(before) - (len(rows) - num_new)
    if not num_new and not num_gone:
        return table, ""
    return table, (
        f"{out} had {len(before)} rows: {num_new} are new, {num_gone} gone; a run of the old rows is not resumed, but "
        "another one starts from it with model.init=RUN"
    )


def summarize(table: pa.Table, found: Found, out: Path) -> dict[str, Any]:
    """Counts by status and of what is expected; by name unreadable files, files without audio, files of audio only and
    listed clips without a file."""
    facts = table.select(["path", "status", "has_audio", "reason"]).to_pylist()
    bad = [row for row in facts if row["status"] != "ok"]
    return {
        "manifest": str(out),
        "rows": table.num_rows,
        "status": dict(sorted(collections.Counter(row["status"] for row in facts).items())),
        "labels": _num_labels(table),
        "labels_from": found.labels_from,
        "splits": dict(sorted(collections.Counter(table.column("split").to_pylist()).items(), key=str)),
        "expected": {name: [_count(table, name), number] for name, number in found.expected.items()},
        "unreadable": [row for row in bad if row["status"] != "no_video" or not row["has_audio"]],
        "sound_only": [row for row in bad if row["status"] == "no_video" and row["has_audio"]],
        "without_audio": [row for row in facts if row["status"] == "ok" and not row["has_audio"]],
        "absent": list(found.absent),
        "other_files": list(found.others),
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as text."""
    status = ", ".join(f"{count} {name}" for name, count in summary["status"].items()) or "none"
    splits = ", ".join(f"{count} {name or 'in no split'}" for name, count in summary["splits"].items())
    source = f" ({summary['labels_from']})" if summary["labels"] and summary["labels_from"] else ""
    lines = [f"{summary['rows']} clips: {status}; {summary['labels']} labels{source}; {splits or 'no split'}"]
    if summary["expected"]:
        counts = (f"{have:,} of {whole:,} {name}" for name, (have, whole) in summary["expected"].items())
        lines.append(f"found {', '.join(counts)} expected")
    if any(have < whole for have, whole in summary["expected"].values()):
        lines.append("an incomplete copy can be used, but its metrics do not compare with those of the whole set")
    if summary["sound_only"]:
        lines.append(f"{len(summary['sound_only'])} audio only, such as {summary['sound_only'][0]['path']!r}")
    where = "see the columns status and reason of the manifest"
    for title, name in (("unreadable", "unreadable"), ("usable, but without audio", "without_audio")):
        lines += name_some(title, summary[name], where)
    lines += name_some("listed clips have no file and are no rows", summary["absent"], "--json names all")
    if summary["other_files"]:
        sounds = sum(Path(name).suffix.lower() in SOUNDS for name in summary["other_files"])
        hint = f" ({sounds} are audio files: --sounds takes them)" if sounds else ""
        lines.append(f"other files ignored: {len(summary['other_files'])}, such as {summary['other_files'][0]!r}{hint}")
    return "\n".join(lines)


def _count(table: pa.Table, name: str) -> int:
    """Number in the table for one entry of `Found.expected`."""
    if name == "clips":
        return table.num_rows
    if name == "classes":
        return _num_labels(table)
    column, value = name.split(" ", 1)
    return table.column(column).to_pylist().count(value)


def _num_labels(table: pa.Table) -> int:
    """Number of classes that occur, all of a clip with several."""
    labels = table.column("label")
    if "labels" in table.column_names:
        labels = pc.list_flatten(table.column("labels"))
    return len(set(labels.to_pylist()) - {None})


def _advise(
    given: argparse.Namespace, summary: Mapping[str, Any], nothing: str, *, script: str, has_audio: bool
) -> int:
    """Print what the manifest can be used for, and return the exit code."""
    usable, silent = summary["status"].get("ok", 0), len(summary["without_audio"])
    if not usable and summary["sound_only"]:
        print(
            f"no clip of {given.root} has video: its audio serves for queries and neighbors, and for evaluation "
            "(avssl embed, avssl evaluate)",
            file=sys.stderr,
        )
        return 0
    if not usable:
        print(f"error: {nothing}, or see the reasons above", file=sys.stderr)
        return 1
    if silent == usable:
        print(
            f"no usable clip of {given.root} has audio, and avid and avid_cma learn from video and audio together: "
            "train on clips with audio, or on video alone with method.name=avid method.within=1; these serve for "
            "evaluation too",
            file=sys.stderr,
        )
        return 0
    if has_audio and silent > usable / 2:
        print(
            f"warning: {silent} of {usable} usable clips have no audio, and those of the whole set have: this copy was "
            "stripped of it, and methods that learn from video and audio together have little to learn from",
            file=sys.stderr,
        )
    if script == "avssl scan":
        print_next("check", given.out, "--fix-manifest")
        print_training(given.out, summary["splits"], title="  or")
    else:
        print_training(given.out, summary["splits"])
    return 0


def print_training(manifest: str | Path, splits: Collection[str | None], *, title: str = "next") -> None:
    """Print the command that trains on a manifest whose rows are of these splits."""
    run = f"run.dir=runs/{Path(manifest).resolve().parent.name or 'mine'}"
    words = ["train", "toy/avid", f"data.manifest={manifest}", run]
    print_next(*words, *([] if "train" in splits or not any(splits) else ["data.split=null"]), title=title)
