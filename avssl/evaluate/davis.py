"""Clips in the layout of DAVIS 2017: JPEGImages/480p/NAME/*.jpg and Annotations/480p/NAME/*.png, where a mask's
pixel is the number of the object.

Letters: T frames, H x W pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image

FRAMES, MASKS = Path("JPEGImages", "480p"), Path("Annotations", "480p")
VOID = 255  # ignored pixels of a mask: background, as in davis2017-evaluation


def davis_names(folder: Path, split: Path | None = None) -> list[str]:
    """Names of the clips: those that a file lists, one a line, or all that have masks.

    Raises:
        ValueError: not the layout of DAVIS, the list cannot be read, or there is no clip.
    """
    if not (folder / FRAMES).is_dir() or not (folder / MASKS).is_dir():
        raise ValueError(
            f"{folder} has no {FRAMES} and {MASKS}: give the folder that DAVIS 2017 unpacks to, often named DAVIS"
        )
    if split is None:
        names = sorted(path.name for path in (folder / MASKS).iterdir() if path.is_dir())
    else:
        try:
            names = split.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{split} cannot be read ({error}): give a list of clips such as {folder}/ImageSets/2017/val.txt"
            ) from error
    if not names:
        raise ValueError(f"{split or folder / MASKS} names no clip")
    return names


def read_davis(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 RGB and masks (T, H, W) uint8 of one clip.

    Raises:
        ValueError: a file is missing or damaged, frames and masks do not fit, or a mask holds colors.
    """
    frames = [_read(path, "RGB") for path in sorted((folder / FRAMES / name).glob("*.jpg"))]
    masks = [_read(path, None) for path in sorted((folder / MASKS / name).glob("*.png"))]
    if not frames or len(frames) != len(masks):
        raise ValueError(
            f"{name} has {len(frames)} frames in {FRAMES} and {len(masks)} masks in {MASKS}: each frame needs one "
            "(the masks of the test sets are not public, those of train and val are)"
        )
    sizes = {each.shape[:2] for each in (*frames, *masks)}
    if len(sizes) > 1 or masks[0].ndim != 2:
        raise ValueError(
            f"{name}: frames of {frames[0].shape} and masks of {masks[0].shape}: expected (H, W, 3) and (H, W) of one "
            "size, masks with a palette"
        )
    truth = np.stack(masks)
    truth[truth == VOID] = 0
    return np.stack(frames), truth


def _read(path: Path, mode: str | None) -> np.ndarray:
    """Pixels of an image; without mode as stored (palette index)."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert(mode) if mode else picture, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
