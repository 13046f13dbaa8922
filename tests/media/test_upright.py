"""Frames are upright in each of the eight orientations that a display matrix can say, wherever they are read."""

import gc
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.decode import read_frames
from avssl.media.decoders import DecoderMissingError, describe
from avssl.media.encode import write_clip
from avssl.media.prepare import Settings, prepare_clip
from avssl.media.preview import poster
from avssl.media.probe import probe
from tests.support.numbered import make, set_matrix

PICTURE = np.zeros((32, 48, 3), np.uint8)  # four corners of different brightness, and a color
PICTURE[:16, :24], PICTURE[:16, 24:], PICTURE[16:, :24], PICTURE[16:, 24:, 0] = 240, 160, 80, 90


@pytest.fixture(params=[(turn, mirrored) for mirrored in (False, True) for turn in (0, 90, 180, 270)], ids=str)
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """A clip and its degrees."""
    rotation, mirrored = request.param
    stored = np.rot90(PICTURE, -rotation // 90)
    stored = stored[:, ::-1] if mirrored else stored
    write_clip(tmp_path / "clip.mp4", np.repeat(stored[None], 6, axis=0), fps=10, crf=5)
    set_matrix(tmp_path / "clip.mp4", rotation, mirrored)
    return tmp_path / "clip.mp4", rotation


def is_upright(image: np.ndarray) -> bool:
    return image.shape == PICTURE.shape and np.abs(image.astype(int) - PICTURE).mean() < 3


def test_frames_facts_copies_and_posters_are_upright(tmp_path: Path, clip: tuple[Path, int]) -> None:
    path, rotation = clip
    facts = probe(path)
    assert (facts.width, facts.height, facts.rotation) == (48, 32, rotation)
    assert is_upright(read_frames(path, start=0.2, duration=0.1, fps=10).data[0])
    crop = read_frames(path, start=0.2, duration=0.1, fps=10, crop=(0, 0.5, 0.5, 0.5)).data[0]
    assert np.abs(crop[2:-2, 2:-2].astype(int) - 160).mean() < 3
    assert prepare_clip(path, tmp_path / "copy.mp4", Settings(short_side=32)).state == "written"
    assert is_upright(read_frames(tmp_path / "copy.mp4", start=0.2, duration=0.1, fps=10).data[0])
    poster(path, tmp_path / "poster.jpg")
    assert is_upright(read_frames(tmp_path / "poster.jpg", start=0, duration=1, fps=1).data[0])


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_other_decoders_turn_too(clip: tuple[Path, int], decoder: str) -> None:
    try:
        describe(decoder)
    except DecoderMissingError as error:
        pytest.skip(str(error))
    assert is_upright(read_frames(clip[0], start=0.2, duration=0.1, fps=10, decoder=decoder).data[0])


def test_frames_do_not_outlive_their_use(tmp_path):
    """A frame of 4K takes 25 MB, and garbage is seldom collected where few objects are made."""
    path = make(tmp_path / "clip.mp4", seconds=2.0)
    gc.collect()
    gc.disable()
    try:
        read_frames(path, start=0, duration=1.6, fps=25)
        prepare_clip(path, tmp_path / "copy.mp4", Settings())
        alive = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    finally:
        gc.enable()
    assert alive < 10
