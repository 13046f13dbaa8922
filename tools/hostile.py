"""Read awkward and damaged files as preparing and training do: each is read with right times or refused with a reason.

    python tools/hostile.py
    python tools/hostile.py --awkward FOLDER --damaged 100 --seed 1 --keep failed

Makes clips whose pictures and sound tell where they belong, damages copies of them (cut, bits flipped, zeroed, spliced,
shuffled, doubled, headers that lie), and reads all in worker processes. Files of --awkward are compared with a decode
from their beginning to their end.

Exit code: 0 no hang, crash, wrong time or other exception, and memory bounded; 1 otherwise; 2 wrong call.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

from avssl.benchmark.hostile import describe, is_good, run_hostile
from avssl.files import WriteError, check_writable


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="tools/hostile.py"
    )
    parser.add_argument("--awkward", type=Path, metavar="FOLDER", help="further files to read")
    parser.add_argument("--damaged", type=int, default=500, help="number of damaged copies (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per file (default: 60)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="gets a copy of each file that failed")
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="the result as JSON (default: stdout)")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers {given.workers} must be at least 1")
    if not 0 < given.timeout < math.inf:
        parser.error(f"--timeout {given.timeout:g} must be seconds above 0")
    if given.damaged < 0 or given.seed < 0:
        parser.error(f"--damaged {given.damaged} and --seed {given.seed} must not be negative")
    if given.awkward is not None and not given.awkward.is_dir():
        parser.error(f"--awkward {given.awkward} is no folder")
    try:
        if given.json and given.json != "-":
            check_writable(given.json)
        with tempfile.TemporaryDirectory() as temporary:
            summary = run_hostile(
                Path(temporary),
                number=given.damaged,
                seed=given.seed,
                awkward=given.awkward,
                num_workers=given.workers,
                timeout_seconds=given.timeout,
                keep=given.keep,
            )
    except (ValueError, WriteError, OSError) as error:
        parser.error(str(error))
    print(describe(summary), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json == "-":
        print(json.dumps(summary))
    elif given.json:
        Path(given.json).write_text(json.dumps(summary))
    return 0 if is_good(summary) else 1


if __name__ == "__main__":
    sys.exit(main())
