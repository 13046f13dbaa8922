"""Write the HTML report of a run: settings, clips, training curves, neighbors, and evaluations.

    avssl report runs/mine
    avssl report runs/mine --manifest moved/manifest.parquet --root moved --out page.html
    avssl report runs/infonce --embeddings embeddings/ --evaluations results/knn.json

One self-contained HTML file, RUN/report.html by default; avssl train writes it too when a run is complete.
Results of avssl evaluate --json in RUN or RUN/evaluations are included. Exit code: 0 done, 2 wrong call.
"""

import argparse
from os.path import expanduser
from pathlib import Path

from avssl.cli.common import info, new_parser, run
from avssl.methods import import_method
from avssl.report.run import write_run_report


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, help="HTML file to write (default: RUN/report.html)")
    parser.add_argument("--manifest", type=Path, help="the run's manifest, when it was moved")
    parser.add_argument("--root", type=Path, help="folder of its clips, when they were moved")
    parser.add_argument("--embeddings", type=Path, help="folder of avssl embed for the neighbors")
    parser.add_argument(
        "--evaluations", type=Path, nargs="+", default=[], metavar="JSON", help="further results of avssl evaluate"
    )
    parser.add_argument(
        "--plugin",
        type=expanduser,
        metavar="FILE.py:METHOD",
        action="append",
        default=[],
        help="your own method",
    )
    return run(_report, parser.parse_args(arguments))


def _report(given: argparse.Namespace) -> int:
    for name in given.plugin:
        import_method(name)
    path, missing = write_run_report(
        given.run,
        out=given.out,
        manifest=given.manifest,
        root=given.root,
        embeddings=given.embeddings,
        evaluations=given.evaluations,
    )
    for sentence in missing:
        info(f"note: {sentence}")
    print(f"report: {path}")
    return 0
