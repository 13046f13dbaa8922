"""python -m avssl NAME ..."""

import sys

from avssl.cli import main

if __name__ == "__main__":
    sys.exit(main())
