"""avssl prepare: see avssl/cli/prepare.py."""

import sys

from avssl.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
