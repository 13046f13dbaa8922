"""Train as a configuration says; run the same command again to continue a stopped run.

    python tools/train.py configs/toy/avid.yaml run.dir=runs/toy data.manifest=data/toy/manifest.parquet
    torchrun --nproc-per-node 2 tools/train.py configs/toy/avid.yaml ...

A complete run ends with RUN/report.html (tools/report.py).
Exit code: 0 complete, 1 stopped (saved) or failed while training, 2 wrong configuration.
"""

import argparse
import sys
from pathlib import Path

from avssl import distributed
from avssl.cli.common import new_parser, run
from avssl.config import load
from avssl.methods import import_methods
from avssl.train import TrainingError, train


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("config", help="YAML file, such as configs/toy/avid.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, such as optim.lr=1e-3")
    return run(_train, parser.parse_args(arguments), failures=(TrainingError,))


def _train(given: argparse.Namespace) -> int:
    try:
        config = load(given.config, given.overrides)
        import_methods(config)
        complete = train(config)
        is_main = distributed.is_main()
    finally:
        distributed.shut_down()
    if complete and is_main:
        report(Path(config.run.dir))
        print("next: python tools/evaluate.py RUN knn --dataset MANIFEST, with RUN as in run.dir", file=sys.stderr)
    return 0 if complete else 1


def report(folder: Path) -> None:
    """Write the page of a complete run and say so. The training is done and saved: whatever fails here is said, and
    changes nothing.
    """
    try:
        from avssl.report.run import write_run_report  # heavy, and not needed before

        path, missing = write_run_report(folder)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        print(f"no report was written ({why}); to try again: python tools/report.py {folder}", file=sys.stderr)
        return
    for sentence in missing:
        print(f"note: {sentence}", file=sys.stderr)
    print(f"report: {path}", file=sys.stderr)
