"""avssl search: see avssl/cli/search.py."""

import sys

from avssl.cli.search import main

if __name__ == "__main__":
    sys.exit(main())
