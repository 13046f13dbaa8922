"""avssl evaluate: see avssl/cli/evaluate.py."""

import sys

from avssl.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
