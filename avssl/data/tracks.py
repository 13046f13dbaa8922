"""The table of tracks: one parquet file with tracked patches of the clips of a manifest.

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

from avssl.files import atomic_write, digest

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),  # row of the manifest
        ("track", pa.int32()),  # number among its clip's tracks, from 0, best first; -1 = the clip has none
        ("times", pa.list_(pa.float64())),  # (T,) seconds of the container's clock
        ("boxes", pa.list_(pa.list_(pa.float32()))),  # (T, 4) top, left, height, width, fractions of the frame
        ("confidence", pa.list_(pa.float32())),  # (T,) in [0, 1]
        ("reason", pa.string()),  # why the clip has no track; null for tracks
    ]
)
MANIFEST_KEY, OPTIONS_KEY = b"avssl.manifest", b"avssl.tracks"
SLACK = 0.1  # seconds that a frame may lie outside of its row, by rounding
EDGE = 1e-6  # by which a box may pass the edge of the frame, by rounding
EMPTY: dict[str, Any] = {"track": -1, "times": [], "boxes": [], "confidence": []}


class TracksError(ValueError):
    """A table of tracks that cannot be used: the message names the file and the fix."""


@dataclass(frozen=True)
class Track:
    """One tracked patch."""

    times: np.ndarray  # (T,) float64 rising seconds of the container's clock
    boxes: np.ndarray  # (T, 4) float64 top, left, height, width as fractions of the upright frame, inside it
    confidence: np.ndarray  # (T,) float64 in [0, 1]: correlation with the first patch
    number: int  # among the tracks of its clip, from 0


@dataclass(frozen=True)
class Tracks:
    """All tracks in flat arrays (K tracks, n frames), shared by processes: 0.4 GB for 230,000 clips with 2 tracks."""

    ids: np.ndarray  # (K,) int64 rows of the manifest, ascending
    numbers: np.ndarray  # (K,) of each track in its clip
    ends: np.ndarray  # (K,) where its frames end among all frames
    times: np.ndarray  # (n,) float64
    boxes: np.ndarray  # (n, 4) float32
    confidence: np.ndarray  # (n,) float32
    reasons: Mapping[int, str]  # {id: why the clip has none}
    options: Mapping[str, Any] = field(default_factory=dict)  # of the search

    def of(self, id: int) -> list[Track]:
        """The tracks of one clip, best first."""
        found = []
        for k in range(*np.searchsorted(self.ids, [id, id + 1])):
            frames = slice(self.ends[k - 1] if k else 0, self.ends[k])
            boxes, confidence = (values[frames].astype(np.float64) for values in (self.boxes, self.confidence))
            found.append(Track(self.times[frames], boxes, confidence, int(self.numbers[k])))
        return found

    def check_rows(self, bounds: np.ndarray, *, path: str | Path) -> None:
        """Raise TracksError, naming `path`, unless every track is in a row and inside its `bounds` (N, 2) of video
        seconds (NaN = unknown)."""
        hint = "write them anew with avssl track MANIFEST --out"
        if self.ids.max(initial=-1) >= len(bounds):
            raise TracksError(
                f"tracks {path} are of row {self.ids.max()}, but the manifest has {len(bounds)} rows: {hint} {path}"
            )
        rows = np.repeat(self.ids, np.diff(self.ends, prepend=0))  # (n,)
        outside = (self.times < bounds[rows, 0] - SLACK) | (self.times > bounds[rows, 1] + SLACK)
        if outside.any():
            first = int(outside.argmax())
            low, high = bounds[rows[first]]
            raise TracksError(
                f"tracks {path}: a frame at second {self.times[first]:g} of row {rows[first]}, which lasts from "
                f"{low:g} to {high:g}: {hint} {path}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the tracks, recorded in runs trained on them."""
        columns = (self.ids, self.numbers, self.ends, self.times, self.boxes)
        return digest(*(values.tobytes() for values in columns), algorithm="sha256")


def write_tracks(
    path: str | Path, rows: Iterable[Mapping[str, Any]], *, manifest_hash: str, options: Mapping[str, Any]
) -> None:
    """Write a table atomically. Raises WriteError.

    Args:
        rows: with the columns of SCHEMA, in any order.
        manifest_hash: of the manifest whose rows the ids are.
        options: of the search, plain data.
    """
    ordered = sorted(rows, key=lambda row: (row["id"], row["track"]))
    metadata = {MANIFEST_KEY: manifest_hash.encode(), OPTIONS_KEY: json.dumps(options, sort_keys=True).encode()}
    table = pa.Table.from_pylist(ordered, SCHEMA.with_metadata(metadata))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def read_tracks(path: str | Path, *, manifest_hash: str) -> Tracks:
    """Read a table written by `write_tracks`.

    Raises:
        TracksError: the file is missing, is no table of tracks, is damaged, or belongs to another manifest.
    """
    hint = "write it with avssl track MANIFEST --out"
    if not Path(path).is_file():
        raise TracksError(f"tracks {path} do not exist: {hint} {path}")
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        metadata = table.schema.metadata or {}
        options = json.loads(metadata.get(OPTIONS_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TracksError(f"tracks {path} are no parquet file that can be read: {hint} {path}") from error
    if not table.schema.equals(SCHEMA) or not {MANIFEST_KEY, OPTIONS_KEY} <= set(metadata):
        raise TracksError(f"{path} is no table of tracks: {hint} and another name")
    recorded = metadata[MANIFEST_KEY].decode()
    if recorded != manifest_hash:
        raise TracksError(
            f"tracks {path} belong to another manifest (hash {recorded}, not {manifest_hash}): {hint} and another "
            "name, or name the manifest that they were written from"
        )
    none = np.asarray(table["track"]) < 0
    reasons = table.filter(pa.array(none)).select(["id", "reason"]).to_pydict()
    table = table.filter(pa.array(~none)).combine_chunks()
    ids, numbers = np.asarray(table["id"]), np.asarray(table["track"])
    times, boxes, confidence = (table[name].combine_chunks() for name in ("times", "boxes", "confidence"))
    lengths = np.stack([np.asarray(values.value_lengths()) for values in (times, boxes, confidence)])  # (3, K)
    box_lengths = np.asarray(boxes.flatten().value_lengths())  # (n,)
    if (lengths == lengths[0]).all() and (lengths > 1).all() and (box_lengths == 4).all():
        flat = np.asarray(boxes.flatten().flatten()).reshape(-1, 4)
        seconds, alike = np.asarray(times.flatten()), np.asarray(confidence.flatten())
        arrays = (ids, numbers, lengths[0].cumsum(), seconds, flat, alike)
        tracks = Tracks(*arrays, dict(zip(*reasons.values(), strict=True)), options)
        wrong = _misplaced(tracks)
    else:
        wrong = (lengths != lengths[0]).any(axis=0) | (lengths[0] < 2)
        wrong = wrong if wrong.any() else np.ones_like(wrong)
    if wrong.any():
        raise TracksError(
            f"tracks {path} are damaged, at row {ids[wrong.argmax()]} of the manifest (a track has 2 frames or more, "
            f"rising times, and boxes inside the frame): {hint} {path} anew"
        )
    return tracks


def _misplaced(tracks: Tracks) -> np.ndarray:
    """(K,) bool: tracks whose times do not rise, or whose boxes are empty or not inside the frame."""
    corners, sizes = tracks.boxes[:, :2], tracks.boxes[:, 2:]
    wrong = ~((corners >= -EDGE) & (sizes > 0) & (corners + sizes <= 1 + EDGE)).all(axis=1)  # (n,)
    begins = tracks.ends - np.diff(tracks.ends, prepend=0)  # (K,)
    falls = np.diff(tracks.times, prepend=-np.inf) <= 0
    falls[begins] = False
    return np.logical_or.reduceat(wrong | falls, begins) if len(begins) else np.zeros(0, dtype=bool)
