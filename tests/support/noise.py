"""Clips of noise, which no codec can foretell, under a steady tone."""

from pathlib import Path

import av
import numpy as np

from avssl.media.encode import write_clip

FPS, SECONDS = 25, 4
FRAMES = np.random.default_rng(0).integers(0, 255, (FPS * SECONDS, 48, 64, 3), dtype=np.uint8)


def tone(rate: int) -> np.ndarray:
    return (0.3 * np.sin(np.arange(SECONDS * rate) / 8)).astype(np.float32)


def clip(path: Path, *, frames: np.ndarray = FRAMES, rate: int = 16000, gain: float = 1.0, **options) -> Path:
    options = {"samples": gain * tone(rate), "gop": 12} | options
    write_clip(path, frames, fps=FPS, sample_rate=rate, **options)
    return path


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target
