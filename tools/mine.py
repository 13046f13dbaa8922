"""avssl mine: see avssl/cli/mine.py."""

import sys

from avssl.cli.mine import main

if __name__ == "__main__":
    sys.exit(main())
