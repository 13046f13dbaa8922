"""avssl convert: see avssl/cli/convert.py."""

import sys

from avssl.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
