"""Train as a configuration says; run the same command again to continue a stopped run.

    python tools/train.py configs/toy/avid.yaml run.dir=runs/toy data.manifest=data/toy/manifest.parquet
    torchrun --nproc-per-node 2 tools/train.py configs/toy/avid.yaml ...

Exit code: 0 complete, 1 stopped (saved) or failed while training, 2 wrong configuration.
"""

import argparse
import sys

from avssl import distributed
from avssl.config import load
from avssl.train import TrainingError, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, such as configs/toy/avid.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, such as optim.lr=1e-3")
    arguments = parser.parse_args()
    try:
        complete = train(load(arguments.config, arguments.overrides))
    except ValueError as error:  # ConfigError, ManifestError, CheckpointError: the user's to mend
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.shut_down()
    if complete and distributed.is_main():
        print("next: python tools/evaluate.py RUN knn --dataset MANIFEST, with RUN as in run.dir", file=sys.stderr)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
