"""avssl embed: see avssl/cli/embed.py."""

import sys

from avssl.cli.embed import main

if __name__ == "__main__":
    sys.exit(main())
