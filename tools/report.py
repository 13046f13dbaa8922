"""Write the page of a run: what ran, on which clips, how it went, neighbours, and evaluations.

    python tools/report.py runs/mine
    python tools/report.py runs/mine --manifest moved/manifest.parquet --root moved --out page.html
    python tools/report.py runs/infonce --embeddings embeddings/ --evaluations results/knn.json

One HTML file without a network, RUN/report.html by default; tools/train.py writes it at the end of a training too,
and a run that was stopped gets it here. Results of tools/evaluate.py --json that lie in RUN or RUN/evaluations are
shown. Exit code: 0 done, 2 wrong call.
"""

import argparse
import sys
from pathlib import Path

from avssl.report.run import write_run_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, help="HTML file to write (default: RUN/report.html)")
    parser.add_argument("--manifest", type=Path, help="the run's manifest, when it was moved")
    parser.add_argument("--root", type=Path, help="folder of its clips, when they were moved")
    parser.add_argument("--embeddings", type=Path, help="folder of tools/extract.py to look for neighbours in")
    parser.add_argument(
        "--evaluations", type=Path, nargs="+", default=[], metavar="JSON", help="further results of tools/evaluate.py"
    )
    arguments = parser.parse_args()
    try:
        path, missing = write_run_report(
            arguments.run,
            out=arguments.out,
            manifest=arguments.manifest,
            root=arguments.root,
            embeddings=arguments.embeddings,
            evaluations=arguments.evaluations,
        )
    except ValueError as error:  # CheckpointError, ManifestError, StoreError, WriteError: the user's to mend
        print(f"error: {error}", file=sys.stderr)
        return 2
    for sentence in missing:
        print(f"note: {sentence}", file=sys.stderr)
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
