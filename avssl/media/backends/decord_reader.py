"""Frames by decord (see indexed.py). A file in which decord would count frames wrongly is refused; on damaged frames it
stops with an error or crashes.
"""

import re

import decord
import numpy as np

from avssl.media.backends.indexed import IndexedReader

TIMES_TOLERANCE = 1e-3  # seconds; decord keeps them as float32


class DecordReader(IndexedReader):
    """One opened file whose frames decord decodes."""

    name = "decord"

    def _open(self) -> None:
        index = self.index
        if len(self.reader.container.streams.video) > 1:
            raise self.refused("it has more than one video track, of which decord takes the largest")
        if index.first.rotation and not self.reader.container.format.name.startswith("mov"):
            raise self.refused("it is turned by its metadata, which decord reads in MP4 and MOV only")
        keyframes = np.flatnonzero(index.keyframes)
        if (index.decoded_at[keyframes] != keyframes).any():
            raise self.refused("frames before a keyframe are built on it (open GOP), which decord counts wrongly")
        try:
            # a tolerance of 0 would mean none
            self._library = decord.VideoReader(self.source, num_threads=1, fault_tol=1e-9)
            times = self._library.get_frame_timestamp(range(len(self._library)))[:, 0].astype(np.float64)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            raise self.refused(f"decord cannot open it ({first_line(error)})") from error
        expected = np.array(index.seconds) - index.seconds[0]
        if len(times) != len(index):
            raise self.refused(f"decord counts {len(times)} frames where {len(index)} are shown")
        if np.abs(times - times[0] - expected).max() > TIMES_TOLERANCE + 1e-6 * expected[-1]:
            raise self.refused("decord reports wrong times")

    def _read_frame(self, number: int) -> np.ndarray:
        try:
            pixels = self._library[number].asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, StopIteration) as error:
            raise self.refused(f"decord cannot decode it ({first_line(error)})") from error
        height, width = pixels.shape[:2]
        # where a padded row is as long as one of 4 colors, as with 48 pixels, decord takes it for that
        return pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def first_line(error: Exception) -> str:
    """decord's message without source lines and stack."""
    lines = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error)).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
