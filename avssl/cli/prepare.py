"""Make training copies of a folder of clips: small frames that decode fast, mono audio, timestamps of the source.

    avssl prepare SRC DST
    avssl prepare SRC DST --short-side 256 --fps 16 --workers 8
    avssl prepare SRC DST --dry-run
    avssl prepare SRC DST --shards 1000

DST gets the same tree and manifest.parquet. With SRC/manifest.parquet (or --manifest) its rows are copied one by one,
so that ids stay the same; without, rows, labels and splits are those of avssl scan. A clip that cannot be
prepared keeps its row, with the reason, and is listed in DST/not_prepared.csv. --shards packs the copies into tar files
as WebDataset has them, DST-shards, whose manifest.parquet has the same rows: all commands read them as they are.

The same command resumes after an interruption; finished copies are kept unless their source or the settings changed.
Exit code: 0 all prepared, 1 some could not be prepared (or interrupted: 130), 2 wrong call.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from avssl.cli.common import add_json, check_above_0, check_at_least, info, new_parser, run
from avssl.data.check import name_some
from avssl.data.manifest import read_manifest
from avssl.data.pack import pack
from avssl.data.prepare import FAILURES, GIGABYTE, MANIFEST, check_folders, list_clips, plan, prepare
from avssl.data.recipes.build import print_training
from avssl.data.recipes.layout import find_clips
from avssl.files import print_result
from avssl.media.prepare import Settings


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    default = Settings()
    parser.add_argument("source", metavar="SRC", type=Path, help="folder of clips")
    parser.add_argument("target", metavar="DST", type=Path, help="folder of the copies")
    parser.add_argument("--manifest", type=Path, help="manifest of SRC (default: SRC/manifest.parquet, if there)")
    parser.add_argument("--short-side", type=int, default=default.short_side, help="pixels (default: %(default)s)")
    parser.add_argument("--gop", type=int, default=default.gop, help="frames from keyframe to keyframe (%(default)s)")
    parser.add_argument("--fps", type=float, help="constant rate (default: every frame keeps its timestamp)")
    parser.add_argument("--sample-rate", type=int, default=default.sample_rate, help="Hz (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per clip (default: 600)")
    parser.add_argument("--shards", type=int, metavar="N", help="pack the copies too, N to a tar file in DST-shards")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, write nothing")
    add_json(parser)
    return run(
        _prepare,
        parser.parse_args(arguments),
        fixable=(ValueError, OSError),
        interrupted="finished copies are kept, and the same command continues",
    )


def _prepare(given: argparse.Namespace) -> int:
    check_at_least(given, 1, "workers")
    if given.shards is not None:
        check_at_least(given, 1, "shards")
    check_above_0(given, "timeout")
    settings = Settings(given.short_side, given.gop, given.fps, given.sample_rate)
    check_folders(given.source, given.target)
    listing = list_clips(given.source, given.manifest)
    if unlisted := sorted(set(find_clips(given.source)[0]) - set(listing.clips)):
        manifest = given.manifest or given.source / "manifest.parquet"
        info(
            f"note: {len(unlisted)} clips of {given.source} are not in {manifest} and get no copies, such as "
            f"{unlisted[0]}: avssl scan lists them"
        )
    work = plan if given.dry_run else prepare
    summary = work(
        given.source, given.target, listing, settings, num_workers=given.workers, timeout_seconds=given.timeout
    )
    if given.dry_run:
        print_result(summary, format_plan(summary), to=given.json)
        return 0
    lines = [format_summary(summary, given.target)]
    if given.shards is not None:
        folder = given.target.with_name(f"{given.target.name}-shards")
        num_packed, num = pack(read_manifest(summary["manifest"]), folder, clips_per_shard=given.shards)
        summary |= {"packed": num_packed, "shards": num, "manifest": str(folder / MANIFEST)}
        packed = f"{num_packed} packed into {num} tar files -> {summary['manifest']}"
        lines.append(f"{packed}, which needs {given.target} no more")
    print_result(summary, "\n".join(lines), to=given.json)
    print_training(summary["manifest"], {row["split"] for row in listing.rows})
    return 1 if summary["not_prepared"] else 0


def format_summary(summary: dict[str, Any], target: Path) -> str:
    prepared = summary["written"] + summary["kept"]
    lines = [
        f"{prepared} of {summary['files']} clips prepared ({summary['written']} now, {summary['kept']} before), "
        f"{summary['without_audio']} of them without audio; {summary['source_bytes'] / GIGABYTE:.2f} GB became "
        f"{summary['bytes'] / GIGABYTE:.2f} GB -> {summary['manifest']}"
    ]
    lines += name_some("could not be prepared", summary["not_prepared"], f"see {target / FAILURES}")
    return "\n".join(lines)


def format_plan(summary: dict[str, Any]) -> str:
    return (
        f"{summary['files']} clips, {summary['hours']:.2f} hours, {summary['source_bytes'] / GIGABYTE:.2f} GB: "
        f"{summary['todo']} to prepare, about {summary['todo_bytes'] / GIGABYTE:.2g} GB in "
        f"{timedelta(seconds=round(summary['todo_seconds']))} (h:mm:ss), {summary['done']} prepared before "
        f"({summary['done_bytes'] / GIGABYTE:.2f} GB); nothing was written"
    )
