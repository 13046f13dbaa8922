"""avssl predict: see avssl/cli/predict.py."""

import sys

from avssl.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
