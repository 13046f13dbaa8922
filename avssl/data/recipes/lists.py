"""Lists of a dataset, and the files that they name."""

import csv
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from avssl.data.manifest import ManifestError
from avssl.data.recipes.layout import CLIPS, find_clips


def find_inside(root: Path, folder: str, *, endings: frozenset[str] = CLIPS, hint: str) -> tuple[list[str], list[str]]:
    """Files of one folder of ROOT as `find_clips` gives them, relative to ROOT. Raises ManifestError: there is none."""
    if not (root / folder).is_dir():
        raise ManifestError(f"{root / folder} is not a folder: {hint}")
    clips, others = find_clips(root / folder, endings=endings)
    return [f"{folder}/{path}" for path in clips], [f"{folder}/{path}" for path in others]


def match_files(
    clips: Mapping[str, Mapping[str, Any]], paths: Sequence[str], *, key: Callable[[str], str]
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Find the file of each listed clip by its name.

    Args:
        clips: {name in the list: columns of its row}.
        key: maps a name in the list and the path of its file to the same string.

    Returns:
        Rows sorted by path; listed clips without a file; files that were not taken.
    """
    files = {nfc(key(path)): path for path in paths}
    found = {name: files.get(nfc(key(name))) for name in clips}
    rows = [{"path": found[name], **columns} for name, columns in clips.items() if found[name]]
    taken = {row["path"] for row in rows}
    return (
        sorted(rows, key=lambda row: row["path"]),
        [name for name in clips if not found[name]],
        [path for path in paths if path not in taken],
    )


def nfc(text: str) -> str:
    """One form of letters that file systems and lists write as one character or as two, such as accented ones."""
    return unicodedata.normalize("NFC", text)


def path_on_disk(root: Path, path: str) -> str:
    """`path` as the disk writes it, if the disk has it in another form of Unicode or with spaces around it."""
    if (root / path).exists():
        return path
    found = Path()
    for part in Path(path).parts:
        names = os.listdir(root / found) if (root / found).is_dir() else []
        found /= next((name for name in names if nfc(name).strip() == nfc(part).strip()), part)
    return found.as_posix()


def check_classes(folder: Path, labels: Iterable[str], clips: Iterable[str], *, hint: str) -> None:
    """Raises ManifestError: a class has no folder with a clip; upper and lower case are the same."""
    known = {PurePosixPath(path).parent.name.lower() for path in clips}
    for label in sorted(labels):
        if label.lower() not in known:
            raise ManifestError(f"{folder / label} does not exist or holds no clip: {hint}")


def read_lines(path: Path, *, hint: str) -> list[str]:
    """Lines of a list, without empty ones; what is not UTF-8 is replaced. Raises ManifestError: it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}): {hint}") from error
    return [line for line in text.split("\n") if line.strip()]


def read_cells(path: Path, *, hint: str, comment: str = "#") -> Iterator[list[str]]:
    """Cells of each line of a CSV without spaces around them; lines that begin with `comment` are left out. Raises
    ManifestError: it cannot be read."""
    lines = [line for line in read_lines(path, hint=hint) if not (comment and line.startswith(comment))]
    if any("\ufffd" in line for line in lines):
        raise ManifestError(f"{path} is not UTF-8: save it so; {hint}")
    try:
        for cells in csv.reader(lines, skipinitialspace=True, strict=True):
            yield [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ManifestError(f"{path} cannot be read as CSV ({error}): {hint}") from error


def read_csv(path: Path, columns: Sequence[str], *, hint: str, comment: str = "#") -> list[dict[str, str]]:
    """Rows of a CSV whose first line names the columns, {column in lower case: cell}; columns without a name are left
    out.

    Raises:
        ManifestError: the file cannot be read, lacks a column or has it twice, holds no row, or a line has more or
            fewer cells than the first.
    """
    lines = read_cells(path, hint=hint, comment=comment)
    first = next(lines, [])
    names = [name.lower() for name in first]
    for name in columns:
        if name not in names:
            raise ManifestError(
                f"{path} has no column {name}: its first line must name {','.join(columns)}, with commas between, "
                f"and is {','.join(first)!r}; {hint}"
            )
    for name in filter(None, names):
        if names.count(name) > 1:
            raise ManifestError(f"{path} has the column {name} twice: {hint}")
    rows = []
    for cells in lines:
        if len(cells) != len(names):
            raise ManifestError(
                f"{path}: {','.join(cells)!r} has {len(cells)} cells and the first line {len(names)}: write a cell "
                f"that holds a comma in double quotes; {hint}"
            )
        rows.append({name: cell for name, cell in zip(names, cells, strict=True) if name})
    if not rows:
        raise ManifestError(f"{path} names no clip: {hint}")
    return rows


def read_seconds(text: str, *, where: str) -> float:
    """A cell of a list as seconds. Raises ManifestError: it is no number."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ManifestError(f"{where}: {text!r} is no number of seconds")
    return seconds
