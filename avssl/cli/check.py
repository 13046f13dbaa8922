"""Decode every clip of a manifest and list its problems.

    avssl check data/toy/manifest.parquet
    avssl check data/toy/manifest.parquet --fix-manifest

Problems are files that are unreadable, truncated, damaged, rotated, silent, shorter than a clip, without video or
audio, with a late first frame, a variable frame rate, further tracks that are not read, audio and video of different
length, or the content of another file. Files that time out or crash a worker are listed too. --fix-manifest writes the
findings into the manifest, and training treats each as data.policy says. Ids and the manifest's hash stay, so that
checkpoints fit.

Exit code: 0 nothing found, or written by --fix-manifest; 1 something found; 2 wrong call.
"""

import argparse
import os

from avssl.cli.common import add_json, add_manifest, check_above_0, check_at_least, info, new_parser, run
from avssl.data.check import describe, fix_manifest, inspect_manifest, report
from avssl.data.manifest import read_manifest
from avssl.data.recipes.build import print_training
from avssl.files import check_writable, print_next, print_result


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    add_manifest(parser)
    parser.add_argument("--clip-seconds", type=float, default=2.0, help="length of a run's clips (default: 2)")
    parser.add_argument("--fix-manifest", action="store_true", help="write the findings into the manifest")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per file (default: 300)")
    add_json(parser)
    return run(_check, parser.parse_args(arguments), fixable=(ValueError, OSError))


def _check(given: argparse.Namespace) -> int:
    check_at_least(given, 1, "workers")
    check_above_0(given, "timeout", "clip_seconds")
    manifest = read_manifest(given.manifest, root=given.root)
    if given.fix_manifest:
        check_writable(given.manifest)
    found = inspect_manifest(manifest, num_workers=given.workers, timeout_seconds=given.timeout)
    if given.fix_manifest:
        for path in fix_manifest(given.manifest, manifest, found):
            info(f"released from quarantine, it decodes: {path}")
        manifest = read_manifest(given.manifest, root=given.root)
    summary = report(manifest, found, clip_seconds=given.clip_seconds)
    print_result(summary, describe(summary), to=given.json)
    if summary["problems"]:
        if given.fix_manifest:
            info(
                f"written to {given.manifest}; what training does with each case is said when it starts, and chosen by "
                "data.policy, such as data.policy.damaged=skip (error, skip or mask)"
            )
            print_training(given.manifest, set(manifest.column("split").tolist()))
        else:
            root = ["--root", given.root] if given.root else []
            print_next("check", given.manifest, *root, "--fix-manifest")
    return 1 if summary["problems"] and not given.fix_manifest else 0
