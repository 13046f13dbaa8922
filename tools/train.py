"""avssl train: see avssl/cli/train.py."""

import sys

from avssl.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
