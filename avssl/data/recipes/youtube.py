"""Clips listed by YouTube id and seconds, found among files as crawlers name them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

# <id>, <id>_<start>, <id>_<start>_<end>: seconds, padded or not, or milliseconds; AudioSet's crawlers put a Y before it
NAME = re.compile(r"Y?(?P<id>[\w-]{11})(_(?P<start>\d+(\.\d+)?)(_\d+(\.\d+)?)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listed:
    """A clip of a list."""

    id: str  # of the video on YouTube
    start: float  # seconds of the clip in that video
    end: float
    columns: dict[str, Any]  # of its row: label, split and further ones


def youtube_id(path: str) -> str | None:
    """The id at the beginning of a file name, if it has a crawler's form."""
    found = NAME.fullmatch(PurePosixPath(path).stem)
    return found["id"] if found else None


def match_clips(listed: Iterable[Listed], paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Find the file of each listed clip.

    A file that names the second (or millisecond) where the clip starts is the clip; else a file that names the id only
    is the whole video, and the row gets the seconds of the list. A clip that is listed twice is one row, as first
    listed; of two files for one clip the first is taken.

    Returns:
        Rows sorted by path and start, with the id as group; listed clips without a file, as <id>_<start>; files that
        were not taken.
    """
    files: dict[str, dict[float | None, str]] = {}  # id -> start as the name says it, None = whole -> path
    for path in paths:
        if found := NAME.fullmatch(PurePosixPath(path).stem):
            start = float(found["start"]) if found["start"] else None
            files.setdefault(found["id"], {}).setdefault(start, path)
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    absent = []
    for clip in listed:
        known = files.get(clip.id, {})
        start = next((key for key in (clip.start, round(clip.start * 1000), None) if key in known), "absent")
        if start == "absent":
            absent.append(f"{clip.id}_{clip.start:g}")
            continue
        row = {"path": known[start], "group": clip.id} | clip.columns
        if start is None:
            row |= {"start": clip.start, "end": clip.end}
        rows.setdefault((known[start], row.get("start", 0.0)), row)
    taken = {path for path, _ in rows}
    return [rows[key] for key in sorted(rows)], absent, [path for path in paths if path not in taken]
