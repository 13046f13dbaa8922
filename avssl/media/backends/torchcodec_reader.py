"""Frames by torchcodec (see indexed.py), which imports torch. It gets the index of the file, and a frame with another
time than expected is refused.
"""

import json

import numpy as np
from torchcodec.decoders import VideoDecoder

from avssl.media.backends.indexed import IndexedReader, full_range


class TorchcodecReader(IndexedReader):
    """One opened file whose frames torchcodec decodes."""

    name = "torchcodec"

    def _open(self) -> None:
        index = self.index
        kind = index.first.format
        if full_range(index.first) and not kind.is_rgb and len(kind.components) >= 3 and "yuvj" not in kind.name:
            raise self.refused(f"torchcodec takes the full range of its {kind.name} frames for the limited one")
        rows = zip(index.ticks.tolist(), index.durations, index.keyframes, strict=True)
        frames = [{"pts": ticks, "duration": duration, "key_frame": int(key)} for ticks, duration, key in rows]
        try:
            self._library = VideoDecoder(
                self.source,
                stream_index=self.reader.video.index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
                custom_frame_mappings=json.dumps({"frames": frames}),
            )
        except (RuntimeError, ValueError) as error:
            raise self.refused(f"torchcodec cannot open it ({first_line(error)})") from error

    def _read_frame(self, number: int) -> np.ndarray:
        index = self.index
        try:
            frame = self._library.get_frame_at(number)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.refused(f"torchcodec cannot decode it ({first_line(error)})") from error
        if abs(frame.pts_seconds - index.seconds[number]) > index.time_base / 2:
            raise self.refused(
                f"torchcodec gives the frame at {frame.pts_seconds:.3f} s for the one at {index.seconds[number]:.3f} s"
            )
        return frame.data.numpy()


def first_line(error: Exception) -> str:
    """torchcodec's message without the source line."""
    lines = str(error).strip().splitlines()
    return lines[0].rpartition(".cpp:")[2].partition(",")[2].strip()[:120] or lines[0][:120] if lines else "no reason"
