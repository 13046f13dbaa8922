"""avssl retrieve: see avssl/cli/retrieve.py."""

import sys

from avssl.cli.retrieve import main

if __name__ == "__main__":
    sys.exit(main())
