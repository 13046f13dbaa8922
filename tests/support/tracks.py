"""Files of several tracks, with dispositions and programs: numbered frames (numbered.py) and tones of one pitch."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from tests.support.numbered import picture

FPS, RATE = 10, 16000


def write_tracks(
    path: Path,
    tracks: Sequence[dict],
    *,
    seconds: float = 2.0,
    start: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """One file of tracks in this order.

    Args:
        tracks: "first": number of the first frame, or "hz": of the tone, 0 = silence; "codec"; "disposition";
            "frames": how many; "side": pixels of a square frame of noise instead of numbers.
        start: second at which all begin.
        options: of the muxer.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        packets = []
        for track in tracks:
            codec = track.get("codec", "aac" if "hz" in track else "libx264")
            if "hz" in track:
                stream = container.add_stream(codec, rate=RATE, layout="mono")
            else:
                stream = container.add_stream(codec, rate=FPS)
                stream.height, stream.width, stream.pix_fmt = (
                    64,
                    96,
                    {"png": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p"),
                )
                stream.codec_context.max_b_frames = 0
            stream.disposition = track.get("disposition", Disposition(0))
            for frame in _sound(track["hz"], seconds, start) if "hz" in track else _frames(track, seconds, start):
                packets += stream.encode(frame)
            packets += stream.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


def _frames(track: dict, seconds: float, start: float) -> list[av.VideoFrame]:
    frames = []
    for i in range(track.get("frames", round(seconds * FPS))):
        frame = av.VideoFrame.from_ndarray(picture(track["first"] + i), format="rgb24")
        frame.pts, frame.time_base = round(start * FPS) + i, Fraction(1, FPS)
        frames.append(frame)
    return frames


def _sound(hz: float, seconds: float, start: float) -> list[av.AudioFrame]:
    t = np.arange(round(seconds * RATE)) / RATE
    frame = av.AudioFrame.from_ndarray((0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)[None], "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, round(start * RATE), Fraction(1, RATE)
    return [frame]
