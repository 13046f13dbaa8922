"""Accuracy of object masks: DAVIS' region similarity J and boundary accuracy F.

Letters: T frames, H x W pixels, K objects.
"""

import math

import cv2
import numpy as np

TOLERANCE = 0.008  # largest distance of matching boundaries, as a fraction of the diagonal


def score_masks(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """J and F of every object in the first frame, averaged over all frames but the first, which is given, and the last,
    as in DAVIS' semi-supervised task.

    Args:
        truth, found: (T, H, W) integers, T >= 3; 0 = background, other numbers are objects.

    Returns:
        (K, 2) float64: J and F in [0, 1].

    Raises:
        ValueError: shapes differ, fewer than 3 frames, or nothing in the first mask.

    Source: davis2017-evaluation, evaluation.py.
    """
    if truth.shape != found.shape or truth.ndim != 3 or len(truth) < 3:
        raise ValueError(
            f"masks of shape {truth.shape} (truth) and {found.shape}: expected two equal (T, H, W) with at least 3 "
            "frames, because the first and the last do not count"
        )
    things = [int(number) for number in np.unique(truth[0]) if number]
    if not things:
        raise ValueError("the first mask shows only background, so there is nothing to follow: leave this clip out")
    scores = np.zeros((len(things), 2))
    for k, thing in enumerate(things):
        pairs = [(true == thing, mine == thing) for true, mine in zip(truth[1:-1], found[1:-1], strict=True)]
        scores[k] = np.mean([(region_similarity(*pair), boundary_accuracy(*pair)) for pair in pairs], axis=0)
    return scores


def region_similarity(truth: np.ndarray, found: np.ndarray) -> float:
    """J: intersection over union of two (H, W) bool masks; 1 when both are empty.

    Source: Perazzi et al. 2016 (DAVIS), as in davis2017-evaluation, metrics.py.
    """
    union = np.count_nonzero(truth | found)
    return np.count_nonzero(truth & found) / union if union else 1.0


def boundary_accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    """F: harmonic mean of precision and recall of boundary pixels, of two (H, W) bool masks.

    Two boundary pixels match when they are at most ceil(0.008 x diagonal) pixels apart. 1 when neither mask has a
    boundary, 0 when only one has.

    Source: Perazzi et al. 2016 (DAVIS), matched by dilation as in davis2017-evaluation, metrics.py.
    """
    true_edge, found_edge = boundary(truth), boundary(found)
    if not true_edge.any() or not found_edge.any():
        return float(true_edge.any() == found_edge.any())
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    across = np.arange(-radius, radius + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.uint8)
    near_true, near_found = (cv2.dilate(edge.astype(np.uint8), disk) for edge in (true_edge, found_edge))
    precision, recall = near_true[found_edge].mean(), near_found[true_edge].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a (H, W) bool mask that differ from the one to the right, below or right below -> (H, W) bool; the
    picture's border is no boundary.

    Source: seg2bmap of the Berkeley segmentation benchmark (Martin 2003), as in davis2017-evaluation, metrics.py.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
