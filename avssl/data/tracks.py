"""The table of tracks: one parquet file that says where patches can be followed in the clips of a manifest.

What lives here: writing, reading and asking it. What does not: finding tracks (mining/tracking.py) and the command
(tools/track.py).

A row is a track of a clip; a clip without any has one row with track -1, empty lists and the reason.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avssl.files import whole_file

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),  # row of the manifest
        ("track", pa.int32()),  # number among its clip's tracks, from 0, best first; -1 = the clip has none
        ("times", pa.list_(pa.float64())),  # (T,) seconds of the container's clock
        ("boxes", pa.list_(pa.list_(pa.float32()))),  # (T, 4) top, left, height, width, fractions of the picture
        ("confidence", pa.list_(pa.float32())),  # (T,) in [0, 1]
        ("reason", pa.string()),  # why the clip has no track; null for tracks
    ]
)
MANIFEST_KEY, OPTIONS_KEY = b"avssl.manifest", b"avssl.tracks"
EMPTY: dict[str, Any] = {"track": -1, "times": [], "boxes": [], "confidence": []}


class TracksError(ValueError):
    """A table of tracks that cannot be used: the message names the file and the way out."""


@dataclass(frozen=True)
class Track:
    """One followed patch.

    Args:
        times: (T,) float64 rising seconds of the container's clock.
        boxes: (T, 4) float64 top, left, height, width as fractions of the upright picture, inside it.
        confidence: (T,) float64 in [0, 1]: how alike the patch is to the first.
        number: among the tracks of its clip, from 0.
    """

    times: np.ndarray
    boxes: np.ndarray
    confidence: np.ndarray
    number: int


@dataclass(frozen=True)
class Tracks:
    """The tracks of a manifest's clips; reasons: {id: why the clip has none}; options: how they were found."""

    tracks: Mapping[int, list[Track]]
    reasons: Mapping[int, str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, id: int) -> list[Track]:
        """The tracks of one clip, best first; none for a clip that has none or that is not in the table."""
        return self.tracks.get(id, [])


def write_tracks(
    path: str | Path, rows: Iterable[Mapping[str, Any]], *, manifest_hash: str, options: Mapping[str, Any]
) -> None:
    """Write a table, whole or not at all.

    Args:
        path: file to write.
        rows: with the columns of SCHEMA; they are sorted by id and track.
        manifest_hash: of the manifest whose rows the ids are.
        options: how the tracks were found, plain data.

    Raises:
        WriteError: the file cannot be written.
    """
    ordered = sorted(rows, key=lambda row: (row["id"], row["track"]))
    metadata = {MANIFEST_KEY: manifest_hash.encode(), OPTIONS_KEY: json.dumps(options, sort_keys=True).encode()}
    table = pa.Table.from_pylist(ordered, SCHEMA.with_metadata(metadata))
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def read_tracks(path: str | Path, *, manifest_hash: str) -> Tracks:
    """Read a table.

    Args:
        path: parquet file written by `write_tracks`.
        manifest_hash: of the manifest that it is to be used with.

    Raises:
        TracksError: the file is missing, is no table of tracks, is damaged, or belongs to another manifest.
    """
    way_out = "write it with python tools/track.py MANIFEST --out"
    if not Path(path).is_file():
        raise TracksError(f"tracks {path} do not exist: {way_out} {path}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TracksError(f"tracks {path} are no parquet file that can be read: {way_out} {path}") from error
    metadata = table.schema.metadata or {}
    if not table.schema.equals(SCHEMA) or not {MANIFEST_KEY, OPTIONS_KEY} <= set(metadata):
        raise TracksError(f"{path} is no table of tracks: {way_out} and another name")
    recorded = metadata[MANIFEST_KEY].decode()
    if recorded != manifest_hash:
        raise TracksError(
            f"tracks {path} belong to another manifest (hash {recorded}, not {manifest_hash}): {way_out} and another "
            "name, or name the manifest that they were written from"
        )
    tracks: dict[int, list[Track]] = {}
    reasons: dict[int, str] = {}
    for row in table.to_pylist():
        if row["track"] < 0:
            reasons[row["id"]] = row["reason"]
            continue
        boxes = np.array(row["boxes"], dtype=np.float64).reshape(-1, 4)
        times, confidence = (np.array(row[name], dtype=np.float64) for name in ("times", "confidence"))
        if not 0 < len(times) == len(boxes) == len(confidence):
            raise TracksError(f"tracks {path} are damaged, at row {row['id']} of the manifest: {way_out} {path} anew")
        tracks.setdefault(row["id"], []).append(Track(times, boxes, confidence, row["track"]))
    return Tracks(tracks, reasons, json.loads(metadata[OPTIONS_KEY]))
