"""Pictures by torchcodec (see indexed.py). Only imported when torchcodec is asked for by name: it imports torch.

torchcodec is given the index, so that it need not go through the file once more, and says of each picture which second
it belongs to: another one than was asked for is refused.
"""

import json

import numpy as np
from torchcodec.decoders import VideoDecoder

from avssl.media.indexed import IndexedReader, full_range


class TorchcodecReader(IndexedReader):
    """One opened file whose pictures torchcodec decodes."""

    name = "torchcodec"

    def _open(self) -> None:
        index = self.index
        kind = index.first.format
        if full_range(index.first) and not kind.is_rgb and len(kind.components) >= 3 and "yuvj" not in kind.name:
            raise self.refused(f"torchcodec takes the full range of its {kind.name} pictures for the limited one")
        rows = zip(index.ticks.tolist(), index.durations, index.keyframes, strict=True)
        frames = [{"pts": ticks, "duration": duration, "key_frame": int(key)} for ticks, duration, key in rows]
        try:
            self._library = VideoDecoder(
                str(self.path.absolute()),  # absolute: it takes "http:..." for an address
                stream_index=self.reader.video.index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
                custom_frame_mappings=json.dumps({"frames": frames}),
            )
        except (RuntimeError, ValueError) as error:
            raise self.refused(f"torchcodec cannot open it ({first_line(error)})") from error

    def _picture(self, number: int) -> np.ndarray:
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
    """What torchcodec says, without the place in its source."""
    lines = str(error).strip().splitlines()
    return lines[0].rpartition(".cpp:")[2].partition(",")[2].strip()[:120] or lines[0][:120] if lines else "no reason"
