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
from avssl.config import load
from avssl.train import TrainingError, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, such as configs/toy/avid.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, such as optim.lr=1e-3")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, arguments.overrides)
        complete = train(config)
        is_main = distributed.is_main()
    except ValueError as error:  # ConfigError, ManifestError, CheckpointError: the user's to mend
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.shut_down()
    if complete and is_main:
        report(Path(config.run.dir))
        print("next: python tools/evaluate.py RUN knn --dataset MANIFEST, with RUN as in run.dir", file=sys.stderr)
    return 0 if complete else 1


def report(run: Path) -> None:
    """Write the page of a complete run and say so. The training is done and saved: whatever fails here is said, and
    changes nothing.
    """
    try:
        from avssl.report.run import write_run_report  # here, as the workers of data import this file too

        path, missing = write_run_report(run)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        print(f"no report was written ({why}); to try again: python tools/report.py {run}", file=sys.stderr)
        return
    for sentence in missing:
        print(f"note: {sentence}", file=sys.stderr)
    print(f"report: {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
