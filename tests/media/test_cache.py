"""The cache of decoded files: the same windows, bit for bit, and never more memory than it may take."""

from pathlib import Path

import numpy as np
import pytest

from avssl.media.cache import ClipCache, DecodedFile
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.encode import write_clip
from avssl.media.reader import DecodeError, Reader
from tests.support.clips import make_clip

VIDEO = [  # before, inside, across and past the end
    VideoWindow(start=start, duration=0.4, fps=fps, crop=(0.1, 0.2, 0.6, 0.5), size=(20, 24))
    for start, fps in ((-1.0, 10), (0.0, 5), (0.33, 25), (0.95, 10), (3.0, 10))
]
AUDIO = [AudioWindow(start=start, duration=0.5, sample_rate=6000, follows=0) for start in (-0.2, 0.3, 1.0, 2.0)]


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    for number in range(3):
        make_clip(tmp_path / f"{number}.mp4", number, number, sound=number != 2)
    return sorted(tmp_path.glob("*.mp4"))


def test_windows_are_those_of_the_file(clips: list[Path]) -> None:
    cache = ClipCache(1e9)
    for path in [*clips, *clips]:  # decoded the first time, remembered the second
        expected = read_clip(path, video=VIDEO, audio=AUDIO)
        found = read_clip(path, video=VIDEO, audio=AUDIO, opener=cache.open)
        for one, two in zip(expected[0] + expected[1], found[0] + found[1], strict=True):
            assert np.array_equal(one.data, two.data)
            assert (one.start, one.padded) == (two.start, two.padded)
    assert isinstance(cache.open(clips[0]), DecodedFile)


def test_windows_reached_by_a_seek(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    samples = (0.1 * rng.standard_normal(4 * 8000)).astype(np.float32)
    write_clip(tmp_path / "long.mp4", frames, fps=10, samples=samples, sample_rate=8000, gop=10)
    cache = ClipCache(1e9)
    for start in (1.37, 2.6, 3.2):
        windows = {
            "video": [VideoWindow(start=start, duration=0.4, fps=10)],
            "audio": [AudioWindow(start=start, duration=0.5, sample_rate=8000, follows=0)],
        }
        (picture,), (sound,) = read_clip(tmp_path / "long.mp4", **windows)
        (kept_picture,), (kept_sound,) = read_clip(tmp_path / "long.mp4", **windows, opener=cache.open)
        assert np.array_equal(picture.data, kept_picture.data)
        assert (picture.start, sound.start) == (kept_picture.start, kept_sound.start)
        assert np.abs(sound.data - kept_sound.data).max() < 1e-3


def test_a_full_cache_keeps_what_it_has_and_reads_the_rest_from_the_file(clips: list[Path]) -> None:
    whole = ClipCache(1e9)
    whole.open(clips[0])
    cache = ClipCache(1.5 * whole.num_bytes)
    for path in clips:
        found = read_clip(path, video=VIDEO[:1], opener=cache.open)[0][0]
        assert np.array_equal(found.data, read_clip(path, video=VIDEO[:1])[0][0].data)
    assert cache.num_bytes == whole.num_bytes <= cache.max_bytes
    assert isinstance(cache.open(clips[0]), DecodedFile)
    with cache.open(clips[1]) as reader:
        assert isinstance(reader, Reader)


def test_errors_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no clip at all" * 100)
    for opener in (None, ClipCache(1e9).open):
        with pytest.raises(DecodeError, match=r"broken\.mp4: no media file"):
            read_clip(tmp_path / "broken.mp4", video=VIDEO[:1], opener=opener)
