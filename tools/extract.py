"""avssl extract: see avssl/cli/extract.py."""

import sys

from avssl.cli.extract import main

if __name__ == "__main__":
    sys.exit(main())
