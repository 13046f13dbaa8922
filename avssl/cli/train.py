"""Train as a configuration says; the same command resumes a stopped run.

    python tools/train.py configs/toy/avid.yaml run.dir=runs/toy data.manifest=data/toy/manifest.parquet
    torchrun --nproc-per-node 2 tools/train.py configs/toy/avid.yaml ...
    python tools/train.py --list-options optim

A complete run ends with RUN/report.html (tools/report.py).
Exit code: 0 complete, 1 stopped (saved) or failed while training, 2 wrong configuration.
"""

import argparse
import shlex
from os.path import expanduser
from pathlib import Path

from avssl import distributed
from avssl.cli.common import info, new_parser, run
from avssl.config import load
from avssl.files import print_next
from avssl.training.loop import train
from avssl.training.options import list_options
from avssl.training.session import TrainingError


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument(
        "config", type=expanduser, nargs="?", help="YAML file, or the name of one that comes along, such as toy/avid"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="section.key=value, such as optim.lr=1e-3")
    parser.add_argument(
        "--list-options", nargs="?", const="all", metavar="SECTION", help="print the options of a section or a method"
    )
    given = parser.parse_args(arguments)
    if given.list_options:
        return run(_list, given)
    if given.config is None:
        parser.error("the following arguments are required: config")
    return run(_train, given, failures=(TrainingError,))


def _list(given: argparse.Namespace) -> int:
    print("\n".join(list_options(given.list_options)))
    return 0


def _train(given: argparse.Namespace) -> int:
    try:
        config = load(given.config, given.overrides)
        complete = train(config)
        is_main = distributed.is_main()
    finally:
        distributed.shut_down()
    if complete and is_main:
        report(Path(config.run.dir))
        print_next("tools/evaluate.py", config.run.dir, "knn", "--dataset", config.data.manifest)
    return 0 if complete else 1


def report(folder: Path) -> None:
    """Write the report of a complete run; the training is saved, so an error here is only printed."""
    try:
        from avssl.report.run import write_run_report  # heavy, and not needed before

        path, missing = write_run_report(folder)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        info(f"no report was written ({why}); to try again: python tools/report.py {shlex.quote(str(folder))}")
        return
    for sentence in missing:
        info(f"note: {sentence}")
    info(f"report: {path}")
