"""avssl check: see avssl/cli/check.py."""

import sys

from avssl.cli.check import main

if __name__ == "__main__":
    sys.exit(main())
