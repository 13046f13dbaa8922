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

from avssl.files import atomic_write, digest

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
SLACK = 0.1  # seconds that a frame may lie outside of its row: manifests round, too
EDGE = 1e-6  # by which a box may pass the picture's edge: float32 rounds
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
    """The tracks of a manifest's clips, in a few flat arrays: 230,000 clips with two tracks of 30 frames take 0.4 GB,
    and worker processes share them.

    Args:
        ids: (K,) int64 rows of the manifest, ascending, one for each track.
        numbers: (K,) of each track among its clip's.
        ends: (K,) where its frames end among all frames.
        times: (n,) float64 of all frames.
        boxes: (n, 4) float32.
        confidence: (n,) float32.
        reasons: {id: why the clip has none}.
        options: how they were found.
    """

    ids: np.ndarray
    numbers: np.ndarray
    ends: np.ndarray
    times: np.ndarray
    boxes: np.ndarray
    confidence: np.ndarray
    reasons: Mapping[int, str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, id: int) -> list[Track]:
        """The tracks of one clip, best first; none for a clip that has none or that is not in the table."""
        found = []
        for k in range(*np.searchsorted(self.ids, [id, id + 1])):
            frames = slice(self.ends[k - 1] if k else 0, self.ends[k])
            boxes, confidence = (values[frames].astype(np.float64) for values in (self.boxes, self.confidence))
            found.append(Track(self.times[frames], boxes, confidence, int(self.numbers[k])))
        return found

    def check_rows(self, bounds: np.ndarray, *, path: str | Path) -> None:
        """Raise TracksError, naming `path`, unless every track is of a row and lies inside its seconds.

        Args:
            bounds: (N, 2) seconds between which the picture of each row of the manifest lies; NaN = not known.
        """
        hint = "write them anew with python tools/track.py MANIFEST --out"
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
        """SHA-256 of the tracks: what a run that is trained on them belongs to."""
        columns = (self.ids, self.numbers, self.ends, self.times, self.boxes)
        return digest(*(values.tobytes() for values in columns), algorithm="sha256")


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
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def read_tracks(path: str | Path, *, manifest_hash: str) -> Tracks:
    """Read a table.

    Args:
        path: parquet file written by `write_tracks`.
        manifest_hash: of the manifest that it is to be used with.

    Raises:
        TracksError: the file is missing, is no table of tracks, is damaged, or belongs to another manifest.
    """
    hint = "write it with python tools/track.py MANIFEST --out"
    if not Path(path).is_file():
        raise TracksError(f"tracks {path} do not exist: {hint} {path}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TracksError(f"tracks {path} are no parquet file that can be read: {hint} {path}") from error
    metadata = table.schema.metadata or {}
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
    sides = np.asarray(boxes.flatten().value_lengths())  # (n,) numbers of each box
    if (lengths == lengths[0]).all() and (lengths > 1).all() and (sides == 4).all():
        flat = np.asarray(boxes.flatten().flatten()).reshape(-1, 4)
        arrays = (
            ids,
            numbers,
            lengths[0].cumsum(),
            np.asarray(times.flatten()),
            flat,
            np.asarray(confidence.flatten()),
        )
        tracks = Tracks(*arrays, dict(zip(*reasons.values(), strict=True)), json.loads(metadata[OPTIONS_KEY]))
        wrong = _misplaced(tracks)
    else:
        wrong = (lengths != lengths[0]).any(axis=0) | (lengths[0] < 2)
        wrong = wrong if wrong.any() else np.ones_like(wrong)
    if wrong.any():
        raise TracksError(
            f"tracks {path} are damaged, at row {ids[wrong.argmax()]} of the manifest (a track has 2 frames or more, "
            f"rising times, and boxes inside the picture): {hint} {path} anew"
        )
    return tracks


def _misplaced(tracks: Tracks) -> np.ndarray:
    """(K,) bool: tracks whose times do not rise, or whose boxes are empty or not inside the picture."""
    corners, sides = tracks.boxes[:, :2], tracks.boxes[:, 2:]
    wrong = ~((corners >= -EDGE) & (sides > 0) & (corners + sides <= 1 + EDGE)).all(axis=1)  # (n,)
    begins = tracks.ends - np.diff(tracks.ends, prepend=0)  # (K,)
    falls = np.diff(tracks.times, prepend=-np.inf) <= 0
    falls[begins] = False
    return np.logical_or.reduceat(wrong | falls, begins) if len(begins) else np.zeros(0, dtype=bool)
