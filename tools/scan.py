"""avssl scan: see avssl/cli/scan.py."""

import sys

from avssl.cli.scan import main

if __name__ == "__main__":
    sys.exit(main())
