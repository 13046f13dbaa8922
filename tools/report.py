"""avssl report: see avssl/cli/report.py."""

import sys

from avssl.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
