"""Reading the layout of DAVIS: palette masks as numbers, undecided pixels as ground, and what is wrong said by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avssl.evaluate.davis import davis_names, read_davis
from tests.support.clips import write_davis


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two clips of 4 frames of one color each; thing 2 and an undecided column."""
    for number, name in enumerate(("cows", "bear")):
        masks = np.zeros((4, 32, 48), dtype=np.uint8)
        masks[:, 8:16, 8:24] = 2
        masks[:, :, 40] = 255
        frames = np.full((4, 32, 48, 3), (200, 100, 50 * number), dtype=np.uint8)
        write_davis(tmp_path / "DAVIS", name, frames, masks)
    return tmp_path / "DAVIS"


def test_frames_and_masks_come_as_they_are_meant(davis: Path) -> None:
    (davis / "val.txt").write_text("cows\n")
    assert davis_names(davis) == ["bear", "cows"]
    assert davis_names(davis, davis / "val.txt") == ["cows"]
    frames, masks = read_davis(davis, "cows")
    assert (frames.shape, frames.dtype, masks.shape, masks.dtype) == ((4, 32, 48, 3), np.uint8, (4, 32, 48), np.uint8)
    assert np.abs(frames.astype(int) - [200, 100, 0]).max() <= 3
    expected = np.zeros((32, 48), dtype=np.uint8)
    expected[8:16, 8:24] = 2
    assert np.array_equal(masks, np.broadcast_to(expected, masks.shape))


def test_what_is_not_davis_is_refused(davis: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no JPEGImages/480p and Annotations/480p: give the folder"):
        davis_names(tmp_path)
    with pytest.raises(ValueError, match=r"gone\.txt cannot be read .* such as .*ImageSets/2017/val\.txt"):
        davis_names(davis, tmp_path / "gone.txt")
    (davis / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt names no clip"):
        davis_names(davis, davis / "val.txt")
    with pytest.raises(ValueError, match="dogs has 0 frames in JPEGImages/480p and 0 masks"):
        read_davis(davis, "dogs")


def test_a_clip_with_files_that_do_not_fit_is_refused(davis: Path) -> None:
    masks = davis / "Annotations" / "480p" / "bear"
    Image.new("RGB", (48, 32)).save(masks / "00000.png")
    with pytest.raises(ValueError, match=r"frames of \(32, 48, 3\) and masks of \(32, 48, 3\): .* with a palette"):
        read_davis(davis, "bear")
    Image.new("P", (24, 32)).save(masks / "00000.png")
    with pytest.raises(ValueError, match=r"bear: frames of \(32, 48, 3\) and masks of \(32, 24\)"):
        read_davis(davis, "bear")
    (masks / "00000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"00000\.png cannot be read"):
        read_davis(davis, "bear")
    (masks / "00000.png").unlink()
    with pytest.raises(ValueError, match="bear has 4 frames in JPEGImages/480p and 3 masks"):
        read_davis(davis, "bear")
