"""The manifest: one parquet file that lists the clips. The number of a row is the id of an instance."""

import collections
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avssl.data.quarantine import read_quarantine
from avssl.files import atomic_write, did_you_mean, digest
from avssl.windows import beginning

# A row is a clip or, with start and end, a part of one. Further columns may follow.
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the root, with forward slashes
        ("start", pa.float64()),  # seconds from the beginning of the file (windows.beginning); null = all of it
        ("end", pa.float64()),  # seconds; null = to the end
        ("group", pa.string()),  # kept together in train or test, such as the scene; the path if unknown
        ("label", pa.string()),
        ("split", pa.string()),
        # the facts of avssl.media.probe.Probe
        ("size", pa.int64()),
        ("content_key", pa.string()),
        ("duration", pa.float64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("video_start", pa.float64()),
        ("video_end", pa.float64()),
        ("audio_start", pa.float64()),
        ("audio_end", pa.float64()),
        ("has_audio", pa.bool_()),
        ("sample_rate", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
HOLES = "holes"  # a further column: [[begin, end], ...] seconds in which nothing is in the file
FINDINGS = {  # further columns of a checked manifest
    "cut_off_at": pa.float64(),
    "damaged_at": pa.float64(),
    "jump_at": pa.float64(),
    HOLES: pa.list_(pa.list_(pa.float64())),
    "variable_rate": pa.bool_(),
    "further_tracks": pa.string(),
    "duplicate_of": pa.string(),  # path of the first row with the same content, start and end
}
IDENTITY = ("path", "start", "end", "content_key")  # what identifies an instance
ROOT_KEY = b"avssl.root"
KINDS = (
    lambda type_: pa.types.is_string(type_) or pa.types.is_large_string(type_),
    lambda type_: pa.types.is_integer(type_) or pa.types.is_floating(type_),
    pa.types.is_boolean,
    pa.types.is_list,
)
OUTSIDE = r"^/|(^|/)\.\.(/|$)"  # a path that leaves the root
EXCHANGED = (
    "the file is not the one that the manifest was written from: put that one back, or write the manifest anew and "
    "train anew, as rows are instances"
)


class ManifestError(ValueError):
    """A manifest that cannot be used: the message names the file and the fix."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """A table of clips and the folder that their paths are relative to."""

    table: pa.Table
    root: Path

    def __len__(self) -> int:
        """N: rows of every status and split, as ids and bank slots count all of them."""
        return self.table.num_rows

    @cached_property
    def hash(self) -> str:
        """Digest (32 hex digits) of the instances and their order, without labels and probed facts."""
        parts = []
        for name in IDENTITY:
            values = self.table.column(name)
            if pa.types.is_floating(values.type):
                parts.append(values.to_numpy().astype("<f8").tobytes())  # null is NaN
            else:
                parts.append("\0".join(value or "" for value in values.to_pylist()))
            parts.append("\n")
        return digest(*parts)

    @cached_property
    def keys(self) -> np.ndarray:
        """(N,) int64 digests of the instances alone: the same part of the same file has the same key in a larger set,
        under another name, and as a training copy."""
        names = ("source_key", "content_key", "path", "start", "end")
        known = [name for name in names if name in self.table.column_names]
        keys, seen = np.zeros(len(self), dtype=np.int64), collections.Counter()
        for i, row in enumerate(self.table.select(known).to_pylist()):
            file = row.get("source_key") or row["content_key"] or row["path"]
            part = (file, row["start"], row["end"])
            keys[i] = int(digest("\0".join(map(str, (*part, seen[part]))), num_bytes=8), 16) - 2**63
            seen[part] += 1  # a copy is an instance of its own
        return keys

    def column(self, name: str) -> np.ndarray:
        """One column as (N,) array: text as objects with None, numbers with nulls as float64 with NaN.

        Raises:
            ManifestError: no such column.
        """
        if name not in self.table.column_names:
            raise ManifestError(f"the manifest has no column {name!r}, only {', '.join(self.table.column_names)}")
        return self.table.column(name).to_numpy()

    def path(self, id: int) -> Path:
        """The file of one instance."""
        return self.root / self.table.column("path")[id].as_py()

    def valid(self, split: str | None = None) -> np.ndarray:
        """(N,) bool: rows whose video can be read, of one split if named."""
        return self.has_video if split is None else self.has_video & (self.column("split") == split)

    def usable(self, split: str | None = None) -> np.ndarray:
        """(N,) bool: rows with a readable modality, of one split if named."""
        mask = self.has_video | ((self.column("status") == "no_video") & self.has_audio)
        return mask if split is None else mask & (self.column("split") == split)

    @property
    def has_video(self) -> np.ndarray:
        """(N,) bool: rows whose video can be read."""
        return self.column("status") == "ok"

    @property
    def has_audio(self) -> np.ndarray:
        """(N,) bool: rows with audio that is not digital silence."""
        return pc.fill_null(self.table.column("has_audio"), False).to_numpy()

    def bounds(self, track: Literal["video", "audio"]) -> np.ndarray:
        """(N, 2) float64 seconds of the container's clock at which a track begins and ends inside each row's part of
        the file; NaN = it has nothing there, or unknown."""
        names = ("video_start", "audio_start", "start", "end", f"{track}_start", f"{track}_end")
        video_start, audio_start, start, end, first, last = (self.column(name).astype(np.float64) for name in names)
        zero = beginning(video_start, audio_start)
        low, high = np.maximum(first, np.nan_to_num(zero + start, nan=-np.inf)), np.fmin(last, zero + end)
        return np.where((low < high)[:, None], np.stack([low, high], axis=1), np.nan)

    @cached_property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The classes of every row (N): its label, then those of the column labels (AudioSet); empty without any.

        Raises:
            ManifestError: the column labels does not hold lists of names.
        """
        sets = [(label,) if label else () for label in self.table.column("label").to_pylist()]
        if "labels" in self.table.column_names:
            column = self.table.column("labels")
            is_list = pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type)
            if not (is_list or pa.types.is_null(column.type)):
                raise ManifestError(
                    f"column labels holds {column.type}, expected lists of names: write the manifest anew"
                )
            more = column.to_pylist()
            sets = [tuple(dict.fromkeys([*own, *(each or [])])) for own, each in zip(sets, more, strict=True)]
        return sets

    @cached_property
    def labels_hash(self) -> str:
        """Digest (32 hex digits) of what `hash` leaves out: labels and splits of all rows."""
        return digest(self.label_sets, self.column("split").tolist())

    @property
    def holes(self) -> dict[int, list[list[float]]]:
        """Pauses of the file, [begin, end] in seconds, of the rows that have any."""
        found = self.table.column(HOLES).to_pylist() if HOLES in self.table.column_names else []
        return {row: holes for row, holes in enumerate(found) if holes}

    @property
    def class_names(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted(set(self.table.column("label").to_pylist()) - {None})

    def targets(self, class_names: Sequence[str] | None = None) -> np.ndarray:
        """(N,) int64 positions of the labels in `class_names`, -1 for rows without a label or with another one.

        Args:
            class_names: of the training manifest, if it is another; None = the labels of this one.
        """
        index = {name: i for i, name in enumerate(self.class_names if class_names is None else class_names)}
        return np.array([index.get(label, -1) for label in self.table.column("label").to_pylist()], dtype=np.int64)


def read_manifest(path: str | Path, *, root: str | Path | None = None) -> Manifest:
    """Read a manifest. Rows whose file is on the quarantine list beside it get the status quarantined.

    Args:
        path: parquet file written by `write_manifest`.
        root: folder of the clips; None = the one recorded in the file.

    Raises:
        ManifestError: the file is missing, is no parquet file, lacks columns, has a path that leaves its root, or its
            root does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise ManifestError(f"manifest {path} is a folder: name the file in it, such as {path / 'manifest.parquet'}")
    if not path.is_file():
        hint = f"write it with avssl scan ROOT --out {shlex.quote(str(path))}"
        raise ManifestError(f"manifest {path} does not exist: {did_you_mean(path)}{hint}")
    try:
        with path.open("rb") as file:  # pyarrow takes no name that is not UTF-8
            table = pq.read_table(file)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"manifest {path} is no parquet file that can be read: write it with avssl scan") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ManifestError(f"manifest {path} lacks the columns {', '.join(missing)}: write it again with avssl scan")
    table = _typed(path, table)
    outside = table.filter(pc.fill_null(pc.match_substring_regex(table.column("path"), OUTSIDE), True))
    if outside.num_rows:
        raise ManifestError(
            f"manifest {path} holds paths that leave its root, such as {outside.column('path')[0].as_py()!r}: write it "
            "again with a root that holds all clips"
        )
    recorded = (table.schema.metadata or {}).get(ROOT_KEY)
    if root is None and recorded is None:
        raise ManifestError(f"manifest {path} does not say where its clips are: name their folder as root (data.root)")
    folder = Path(root) if root is not None else path.parent.resolve() / os.fsdecode(recorded)
    if not folder.is_dir():
        raise ManifestError(
            f"manifest {path}: the folder of its clips does not exist: {folder}; name the right one as root (data.root)"
        )
    return Manifest(_quarantined(path, table), folder)


def _typed(path: Path, table: pa.Table) -> pa.Table:
    """The table with the types of SCHEMA and FINDINGS. Raises ManifestError: a column is of another kind."""
    for name, wanted in (dict(zip(SCHEMA.names, SCHEMA.types, strict=True)) | FINDINGS).items():
        if name not in table.column_names:
            continue
        values = table.column(name)
        found = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        try:
            if not (any(kind(found) and kind(wanted) for kind in KINDS) or pa.types.is_null(found)):
                raise pa.ArrowInvalid("another kind")
            table = table.set_column(table.column_names.index(name), name, values.cast(wanted))
        except pa.ArrowException as error:
            raise ManifestError(
                f"manifest {path}: the column {name} is of {found}, expected {wanted}: write it again with avssl scan"
            ) from error
    return table


def _quarantined(path: Path, table: pa.Table) -> pa.Table:
    """The table with the status of files on the quarantine list, by path and content key."""
    reasons = {(entry.path, entry.content_key): entry.reason for entry in read_quarantine(path)}
    if not reasons:
        return table
    columns = {name: table.column(name).to_pylist() for name in ("path", "content_key", "status", "reason")}
    for row, file in enumerate(zip(columns["path"], columns["content_key"], strict=True)):
        if file in reasons:
            columns["status"][row], columns["reason"][row] = "quarantined", reasons[file]
    for name in ("status", "reason"):
        table = table.set_column(table.column_names.index(name), name, pa.array(columns[name], pa.string()))
    return table


def write_manifest(path: str | Path, table: pa.Table, *, root: str | Path) -> None:
    """Write a manifest atomically.

    Args:
        path: file to write; missing folders are made.
        table: the columns of SCHEMA, in any order, and further ones.
        root: folder that the paths are relative to; stored relative to the manifest if it is inside the manifest's
            folder, so that both can be moved, otherwise absolute.

    Raises:
        ManifestError: columns are missing or cannot be read as their type.
        WriteError: the file cannot be written.
    """
    path, root = Path(path), Path(root).resolve()
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ManifestError(f"the table for {path} lacks the columns {', '.join(missing)}: see SCHEMA in {__name__}")
    further = [name for name in table.column_names if name not in SCHEMA.names]
    schema = pa.schema([*SCHEMA, *(table.schema.field(name) for name in further)])
    here = path.parent.resolve()
    recorded = root.relative_to(here).as_posix() if root.is_relative_to(here) else str(root)
    try:
        table = table.select(schema.names).cast(schema).replace_schema_metadata({ROOT_KEY: os.fsencode(recorded)})
    except pa.ArrowInvalid as error:
        raise ManifestError(f"the table for {path} does not fit the columns of a manifest: {error}") from error
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)
