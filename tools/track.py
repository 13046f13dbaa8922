"""avssl track: see avssl/cli/track.py."""

import sys

from avssl.cli.track import main

if __name__ == "__main__":
    sys.exit(main())
