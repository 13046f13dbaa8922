"""Decode every clip of a manifest wholly and say what is the matter with it.

    python tools/check.py data/toy/manifest.parquet
    python tools/check.py data/toy/manifest.parquet --fix-manifest

Found are files that are unreadable, cut off, damaged, rotated, silent, shorter than a clip, without pictures or sound,
with a late first frame, a variable frame rate, sound and picture of different length, or the content of another file;
files that take too long or bring a worker down are named and stop nothing. With --fix-manifest the manifest says so
too, and training does with each case as data.policy says. Ids and the manifest's hash stay, so that checkpoints fit.

Exit code: 0 nothing found, 1 something found, 2 wrong call.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

from avssl.data.check import describe, fix_manifest, inspect_manifest, report
from avssl.data.manifest import ManifestError, read_manifest
from avssl.files import WriteError, check_writable


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="tools/check.py"
    )
    parser.add_argument("manifest", type=Path, help="parquet file of datasets/*.py")
    parser.add_argument("--root", help="folder of the clips, when it moved")
    parser.add_argument("--clip-seconds", type=float, default=2.0, help="length of a run's clips (default: 2)")
    parser.add_argument("--fix-manifest", action="store_true", help="write what was found into the manifest")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per file (default: 300)")
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="the report as JSON (default: stdout)")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers {given.workers} must be at least 1")
    for name in ("timeout", "clip_seconds"):
        if not 0 < getattr(given, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} {getattr(given, name):g} must be seconds above 0")
    try:
        manifest = read_manifest(given.manifest, root=given.root)
        for path in ([given.manifest] if given.fix_manifest else []) + ([given.json] if given.json else []):
            if path != "-":
                check_writable(path)
        found = inspect_manifest(manifest, num_workers=given.workers, timeout_seconds=given.timeout)
        if given.fix_manifest:
            for path in fix_manifest(given.manifest, manifest, found):
                print(f"released from quarantine, it decodes: {path}", file=sys.stderr)
            manifest = read_manifest(given.manifest, root=given.root)
    except (ManifestError, WriteError, OSError) as error:
        parser.error(str(error))
    summary = report(manifest, found, clip_seconds=given.clip_seconds)
    print(describe(summary), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json == "-":
        print(json.dumps(summary))
    elif given.json:
        Path(given.json).write_text(json.dumps(summary))
    if summary["problems"]:
        print(
            "next: choose per case what training does, such as data.policy.damaged=skip (error | skip | mask)"
            if given.fix_manifest
            else f"next: python tools/check.py {given.manifest} --fix-manifest",
            file=sys.stderr,
        )
    return 1 if summary["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
