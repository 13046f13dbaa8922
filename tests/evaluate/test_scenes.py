"""Made scenes: their truth is true, and the things in them move by themselves."""

import numpy as np
import pytest

from avssl.evaluate.scenes import make_scene

pytestmark = pytest.mark.slow


def test_boxes_are_the_extents_of_the_masks() -> None:
    scene = make_scene(1, num_frames=12)
    assert scene.frames.shape == (12, 240, 320, 3)
    assert scene.masks.shape == (12, 240, 320)
    for i, k in np.ndindex(12, 2):
        rows, columns = np.nonzero(scene.masks[i] == k + 1)
        top, left, height, width = scene.boxes[i, k] * [240, 320, 240, 320]
        assert (round(top), round(left)) == (rows.min(), columns.min())
        assert (round(top + height), round(left + width)) == (rows.max() + 1, columns.max() + 1)


def test_same_seed_same_bytes() -> None:
    first, again, other = make_scene(3, num_frames=4), make_scene(3, num_frames=4), make_scene(4, num_frames=4)
    for name in ("frames", "masks", "boxes"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert (first.frames != other.frames).any()


def test_things_stay_inside_and_move_while_the_ground_does_not() -> None:
    for seed in range(5):
        scene = make_scene(seed, shake=0, pan=0, num_objects=1)
        centers = scene.boxes[:, 0, :2] + scene.boxes[:, 0, 2:] / 2
        assert ((centers > 0.1) & (centers < 0.9)).all()
        assert np.linalg.norm((centers[-1] - centers[0]) * [240, 320]) > 60
        ground = (scene.masks == 0).all(axis=0)
        assert ground.mean() > 0.5
        changed = np.abs(scene.frames.astype(int) - scene.frames[0]).max(axis=(0, 3))  # the edges are half covered
        assert (changed[ground] > 0).mean() < 0.1


def test_camera_alone() -> None:
    scene = make_scene(0, num_frames=5, num_objects=0)
    assert scene.boxes.shape == (5, 0, 4)
    assert not scene.masks.any()
    assert (scene.frames[1:] != scene.frames[:-1]).mean() > 0.5
    still = make_scene(0, num_frames=5, num_objects=0, shake=0, pan=0)
    assert (still.frames == still.frames[0]).all()


def test_what_nothing_is_seen_of_has_no_box() -> None:
    hidden = [make_scene(seed, num_frames=20, num_objects=12).boxes for seed in range(4)]
    boxes = np.concatenate(hidden, axis=1)
    gone = np.isnan(boxes)
    assert (gone.all(axis=2) == gone.any(axis=2)).all()
    assert not (boxes[~gone] < 0).any()
