"""Clips are written byte for byte the same, and wrong input is refused."""

import numpy as np
import pytest

from avssl.media.encode import write_clip

FRAMES = np.random.default_rng(0).integers(0, 255, size=(10, 32, 48, 3), dtype=np.uint8)
SAMPLES = np.sin(np.arange(16000) / 8).astype(np.float32)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_same_input_same_bytes(tmp_path, name):
    contents = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_clip(tmp_path / folder / name, FRAMES, fps=10, samples=SAMPLES, sample_rate=16000, b_frames=2)
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    "frames, options, message",
    [
        (FRAMES[:, :31], {}, "31x48: height and width must be even"),
        (FRAMES[..., 0], {}, "frames must be"),
        (FRAMES[:0], {}, "T > 0"),
        (FRAMES / 255, {}, "uint8"),
        (FRAMES, {"times": np.zeros(10)}, "strictly rising"),
        (FRAMES, {"rotation": 45}, "rotation=45"),
        (FRAMES, {"samples": SAMPLES}, "sample_rate=None"),
        (FRAMES, {"samples": SAMPLES.astype(np.int16), "sample_rate": 16000}, "float32"),
        (FRAMES, {"samples": np.zeros((10, 3), np.float32), "sample_rate": 16000}, "channels in"),
    ],
)
def test_wrong_input_is_refused(tmp_path, frames, options, message):
    with pytest.raises(ValueError, match=message):
        write_clip(tmp_path / "clip.mp4", frames, fps=10, **options)
