"""Train as a configuration says; the same command resumes a stopped run.

    avssl train toy/avid run.dir=runs/toy data.manifest=data/toy/manifest.parquet
    avssl train toy/avid data.manifest=data/toy/manifest.parquet --dry-run
    torchrun --nproc-per-node 2 -m avssl train toy/avid ...
    avssl train --list-options optim

A complete run ends with RUN/report.html (avssl report).
Exit code: 0 complete, 1 stopped (saved) or failed while training, 2 wrong configuration.
"""

import argparse
import shlex
from os.path import expanduser
from pathlib import Path

from avssl import distributed
from avssl.cli.common import info, new_parser, run
from avssl.config import load
from avssl.data.manifest import read_manifest
from avssl.files import print_next
from avssl.training.dry_run import dry_run
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
    parser.add_argument("--dry-run", action="store_true", help="train a few steps and say what all would take")
    given = parser.parse_intermixed_args(arguments)
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
        if given.dry_run:
            dry_run(config, lambda line: print(line, flush=True) if distributed.is_main() else None)
            return 0
        complete = train(config)
        is_main = distributed.is_main()
    finally:
        distributed.shut_down()
    if complete and is_main:
        report(Path(config.run.dir))
        folder, manifest = config.run.dir, config.data.manifest
        print_next("embed", folder, manifest, "--out", Path(folder) / "embeddings")
        if read_manifest(manifest, root=config.data.root).class_names:
            print_next("evaluate", folder, "knn", "--dataset", manifest, title="  or")
    return 0 if complete else 1


def report(folder: Path) -> None:
    """Write the report of a complete run; the training is saved, so an error here is only printed."""
    try:
        from avssl.report.run import write_run_report  # heavy, and not needed before

        path, missing = write_run_report(folder)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        info(f"no report was written ({why}); to try again: avssl report {shlex.quote(str(folder))}")
        return
    for sentence in missing:
        info(f"note: {sentence}")
    info(f"report: {path}")
