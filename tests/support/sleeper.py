"""A worker that answers nothing."""

import time

time.sleep(1000)
