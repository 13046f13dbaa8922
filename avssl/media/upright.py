"""How a stored frame is turned upright: its display matrix, rounded to one of the eight orientations."""

import math
import struct
from typing import NamedTuple

import av
import numpy as np


class Orientation(NamedTuple):
    """Mirror the stored frame left to right, then turn it."""

    mirrored: bool
    turns: int  # quarter turns counterclockwise, 0 to 3

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after turning, or of the stored frame from those of the upright one."""
        return (height, width) if self.turns % 2 else (width, height)

    def upright(self, image: np.ndarray) -> np.ndarray:
        """(H, W, ...) as stored -> the same upright, contiguous."""
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if self.mirrored else image, self.turns))


def orientation(frame: av.VideoFrame) -> Orientation:
    """Of a decoded frame. Source: libavutil/display.h; FFmpeg's angle alone takes a mirrored frame for a turned one."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation(False, 0)
    # a stored pixel (x, y), y downwards, is shown at (a x + c y, b x + d y)
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return Orientation(mirrored, round(math.atan2(c - b, a + d) / (math.pi / 2)) % 4)


class Orientations:
    """Those of the frames of one file. A frame whose side data were looked at holds itself in memory until the next
    garbage collection, so only the first one of each of FFmpeg's angles is looked at.
    """

    def __init__(self) -> None:
        self._known: dict[int, Orientation] = {}  # by angle

    def of(self, frame: av.VideoFrame) -> Orientation:
        angle = frame.rotation
        if angle not in self._known:
            self._known[angle] = orientation(frame)
        return self._known[angle]
