"""avssl browse: see avssl/cli/browse.py."""

import sys

from avssl.cli.browse import main

if __name__ == "__main__":
    sys.exit(main())
