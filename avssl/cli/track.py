"""Track moving patches in the clips of a manifest, over up to 30 frames.

    avssl track clips/manifest.parquet --out clips/tracks.parquet
    avssl track clips/manifest.parquet --out clips/tracks.parquet --split train --tracker csrt
    avssl track clips/manifest.parquet --out clips/tracks.parquet --show 20

The table has a row per track: id, track, times, boxes, confidence; a clip without tracks has one row with the reason.
Files that time out or crash a worker are listed. --show writes contact sheets of tracks (PNG).

The same command resumes after an interruption; finished clips are kept unless the options change.
Exit code: 0 done, 1 some files could not be read (interrupted: 130), 2 wrong call.
"""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from avssl.cli.common import add_json, add_manifest, check_above_0, check_at_least, new_parser, run
from avssl.data.check import name_some
from avssl.data.find_tracks import track_manifest
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.tracks import Track, Tracks, read_tracks
from avssl.files import atomic_write, check_writable, print_next, print_result
from avssl.media.decode import VideoWindow, read_clip
from avssl.mining.tracking import TRACKERS, Options

SHEET_FRAMES, SHEET_TRACKS, SHEET_HEIGHT, LINE = 8, 10, 150, 18  # frames of a row, rows of a sheet; pixels


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    default = Options()
    add_manifest(parser)
    parser.add_argument("--out", type=Path, required=True, help="parquet file for the tracks")
    parser.add_argument("--split", help="only this split; rows of others in OUT stay")
    parser.add_argument("--max-frames", type=int, default=default.max_frames, help="of a track (default: %(default)s)")
    parser.add_argument("--max-tracks", type=int, default=default.max_tracks, help="of a clip (default: %(default)s)")
    parser.add_argument("--tracker", choices=TRACKERS, default=default.tracker, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per clip (default: 300)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="write sheets of N tracks beside OUT")
    add_json(parser)
    return run(
        _track,
        parser.parse_args(arguments),
        fixable=(ValueError, OSError),
        interrupted="clips that are done are kept, and the same command continues",
    )


def _track(given: argparse.Namespace) -> int:
    check_at_least(given, 1, "workers")
    check_at_least(given, 0, "show")
    check_above_0(given, "timeout")
    options = Options(max_frames=given.max_frames, max_tracks=given.max_tracks, tracker=given.tracker)
    manifest = read_manifest(given.manifest, root=given.root)
    check_writable(given.out)
    summary = track_manifest(
        manifest,
        given.out,
        asdict(options),
        split=given.split,
        num_workers=given.workers,
        timeout_seconds=given.timeout,
    )
    summary["sheets"] = []
    if given.show:
        tracks = read_tracks(given.out, manifest_hash=manifest.hash)
        summary["sheets"] = list(map(str, write_sheets(given.out, manifest, tracks, num=given.show)))
    print_result(summary, format_summary(summary), to=given.json)
    if not given.show:
        print_next("track", given.manifest, "--out", given.out, "--show", 20)
    return 1 if summary["not_read"] else 0


def format_summary(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['tracks']} tracks in {summary['with_track']} of {summary['clips']} clips ({summary['kept']} known "
        f"before) -> {summary['out']}"
    ]
    if summary["without"]:
        lines.append(f"{sum(summary['without'].values())} clips without a track:")
        lines += [f"  {number} {reason}" for reason, number in summary["without"].items()]
    lines += name_some("could not be read", summary["not_read"], "--json names all")
    lines += [f"sheet: {path}" for path in summary["sheets"]]
    return "\n".join(lines)


def write_sheets(out: Path, manifest: Manifest, tracks: Tracks, *, num: int) -> list[Path]:
    """Draw `num` tracks of the table `out`, evenly spread, beside it: a row per track, frames with box, second and
    confidence.

    Raises:
        DecodeError: a clip cannot be read any more.
        WriteError: an image cannot be written.
    """
    every = [(id, track) for id in np.unique(tracks.ids).tolist() for track in tracks.of(id)]
    chosen = [every[i] for i in sorted({round(i) for i in np.linspace(0, len(every) - 1, min(num, len(every)))})]
    paths = []
    for first in range(0, len(chosen), SHEET_TRACKS):
        rows = [_sheet_row(manifest, id, track) for id, track in chosen[first : first + SHEET_TRACKS]]
        width = max(row.shape[1] for row in rows)
        sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
        path = out.with_name(f"{out.stem}_sheet_{len(paths)}.png")
        with atomic_write(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
        paths.append(path)
    return paths


def _sheet_row(manifest: Manifest, id: int, track: Track) -> np.ndarray:
    """Some frames of a track in a row, (H, W, 3) RGB, below a line with its id and path."""
    facts = manifest.table.slice(id, 1).to_pylist()[0]
    size = np.array([SHEET_HEIGHT, round(SHEET_HEIGHT * facts["width"] / facts["height"])])
    numbers = np.unique(np.linspace(0, len(track.times) - 1, SHEET_FRAMES).round().astype(int))
    windows = [VideoWindow(track.times[i], 1.0, 1.0, size=tuple(size.tolist())) for i in numbers]
    frames, _ = read_clip(manifest.path(id), video=windows)
    images = []
    for i, frame in zip(numbers, frames, strict=True):
        image = np.ascontiguousarray(frame.data[0])
        corners = np.concatenate([track.boxes[i, :2], track.boxes[i, :2] + track.boxes[i, 2:]])
        top, left, bottom, right = np.rint(corners * np.tile(size, 2)).astype(int).tolist()
        cv2.rectangle(image, (left, top), (right, bottom), (255, 255, 0), 2)
        images.append(np.pad(image, ((LINE, 4), (0, 4), (0, 0))))
        _write(images[-1], f"{track.times[i]:.2f}s {track.confidence[i]:.2f}")
    row = np.pad(np.concatenate(images, axis=1), ((LINE, 0), (0, 0), (0, 0)))
    _write(row, f"{id}, track {track.number}: {facts['path']}")
    return row


def _write(image: np.ndarray, text: str) -> None:
    cv2.putText(image, text, (2, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
