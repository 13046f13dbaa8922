"""Find patches that can be followed in the clips of a manifest: where something moves by itself, over 30 frames.

    python tools/track.py clips/manifest.parquet --out clips/tracks.parquet
    python tools/track.py clips/manifest.parquet --out clips/tracks.parquet --split train --tracker csrt
    python tools/track.py clips/manifest.parquet --out clips/tracks.parquet --show 20

The table has a row per track: id, track, times, boxes, confidence; a clip without any has one row with the reason.
Files that hang or bring a worker down are named and stop nothing. --show writes sheets of tracks to look at (PNG).

Killed at any moment and started again, the command continues; clips that are done stay as they are, also in a finished
table, unless the options change. Exit code: 0 done, 1 some files could not be read (interrupted: 130), 2 wrong call.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from avssl.data.manifest import read_manifest
from avssl.data.tracks import read_tracks
from avssl.files import check_writable
from avssl.mining.tracking import TRACKERS, Options
from avssl.track import track_manifest, write_sheets

MAX_NAMED = 20  # files named one by one for a person; --json names all


def describe(summary: dict[str, Any]) -> str:
    """What was found, in words."""
    unread = summary["not_read"]
    lines = [
        f"{summary['tracks']} tracks in {summary['with_track']} of {summary['clips']} clips ({summary['kept']} known "
        f"before) -> {summary['out']}"
    ]
    if summary["without"]:
        lines.append(f"{sum(summary['without'].values())} clips without a track:")
        lines += [f"  {number} {reason}" for reason, number in summary["without"].items()]
    if unread:
        lines.append(f"{len(unread)} could not be read:")
        lines += [f"  {each['path']}: {each['reason']}" for each in unread[:MAX_NAMED]]
    if len(unread) > MAX_NAMED:
        lines.append(f"  and {len(unread) - MAX_NAMED} more: --json names all")
    lines += [f"sheet: {path}" for path in summary["sheets"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse and call; see the module for the exit codes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="tools/track.py"
    )
    default = Options()
    parser.add_argument("manifest", type=Path, help="parquet file of datasets/*.py")
    parser.add_argument("--out", type=Path, required=True, help="parquet file for the tracks")
    parser.add_argument("--root", help="folder of the clips, when it moved")
    parser.add_argument("--split", help="only the clips of this split are searched; what OUT knows of others stays")
    parser.add_argument("--max-frames", type=int, default=default.max_frames, help="of a track (default: %(default)s)")
    parser.add_argument("--max-tracks", type=int, default=default.max_tracks, help="of a clip (default: %(default)s)")
    parser.add_argument("--tracker", choices=TRACKERS, default=default.tracker, help="default: %(default)s")
    parser.add_argument(
        "--num-workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per clip (default: 300)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="write sheets of N tracks beside OUT")
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="the summary as JSON (default: stdout)")
    given = parser.parse_args(arguments)
    if given.num_workers < 1 or not 0 < given.timeout < math.inf or given.show < 0:
        parser.error(
            f"--num-workers {given.num_workers} must be at least 1, --timeout {given.timeout:g} seconds above 0, and "
            f"--show {given.show} at least 0"
        )
    try:
        options = Options(max_frames=given.max_frames, max_tracks=given.max_tracks, tracker=given.tracker)
        manifest = read_manifest(given.manifest, root=given.root)
        for path in (given.out, given.json):
            if path not in (None, "-"):
                check_writable(path)
        summary = track_manifest(
            manifest,
            given.out,
            options,
            split=given.split,
            num_workers=given.num_workers,
            timeout_seconds=given.timeout,
        )
        summary["sheets"] = []
        if given.show:
            tracks = read_tracks(given.out, manifest_hash=manifest.hash)
            summary["sheets"] = list(map(str, write_sheets(given.out, manifest, tracks, num=given.show)))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: clips that are done are kept, and the same command continues", file=sys.stderr)
        return 130
    print(describe(summary), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json == "-":
        print(json.dumps(summary))
    elif given.json:
        Path(given.json).write_text(json.dumps(summary))
    if not given.show:
        print(
            f"next: look at some of them: python tools/track.py {given.manifest} --out {given.out} --show 20",
            file=sys.stderr,
        )
    return 1 if summary["not_read"] else 0


if __name__ == "__main__":
    sys.exit(main())
