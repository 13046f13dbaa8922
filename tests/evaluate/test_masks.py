"""J and F against definitions written out pixel by pixel, and on masks whose score is known."""

import itertools
import math

import cv2
import numpy as np
import pytest

from avssl.evaluate.masks import boundary, boundary_accuracy, region_similarity, score_masks


def naive_boundary(mask: np.ndarray) -> set[tuple[int, int]]:
    """davis2017-evaluation's rule: a pixel is compared with its east, south and south-east; the last row only with the
    east, the last column only with the south, the last corner with nothing."""
    height, width = mask.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        others = []
        if x + 1 < width:
            others.append((y, x + 1))
        if y + 1 < height:
            others.append((y + 1, x))
        if x + 1 < width and y + 1 < height:
            others.append((y + 1, x + 1))
        if any(mask[other] != mask[y, x] for other in others):
            found.add((y, x))
    return found


def naive_accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    tolerance = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    true_edge, found_edge = naive_boundary(truth), naive_boundary(found)
    if not true_edge and not found_edge:
        return 1.0
    if not true_edge or not found_edge:
        return 0.0

    def share(these: set, those: set) -> float:
        near = sum(any((y - b) ** 2 + (x - a) ** 2 <= tolerance**2 for b, a in those) for y, x in these)
        return near / len(these)

    precision, recall = share(found_edge, true_edge), share(true_edge, found_edge)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blob(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A random smooth mask, which may touch the border."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(shape), (0, 0), 4)
    return noise > noise.std() * 0.7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_scores_equal_their_definition(seed: int) -> None:
    shape = [(40, 60), (97, 64), (130, 131)][seed % 3]  # tolerances of 1 and 2 pixels
    truth, found = blob(seed, shape), np.roll(blob(seed, shape), seed, axis=1) | blob(seed + 100, shape)
    assert set(zip(*map(list, np.nonzero(boundary(truth))), strict=True)) == naive_boundary(truth)
    assert boundary_accuracy(truth, found) == pytest.approx(naive_accuracy(truth, found))
    pixels = list(zip(truth.flatten(), found.flatten(), strict=True))
    both, either = sum(a and b for a, b in pixels), sum(a or b for a, b in pixels)
    assert region_similarity(truth, found) == pytest.approx(both / either)


def square(place: int, *, height: int = 100, width: int = 100) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[20:40, place : place + 20] = True
    return mask


def test_squares_that_are_apart() -> None:
    """The tolerance of 100 x 100 is ceil(1.13) = 2 pixels."""
    assert region_similarity(square(10), square(20)) == pytest.approx(1 / 3)
    assert [region_similarity(square(10), square(10 + d)) for d in (0, 20)] == [1, 0]
    assert [boundary_accuracy(square(10), square(10 + d)) for d in (0, 2, 60)] == [1, 1, 0]
    assert 0 < boundary_accuracy(square(10), square(13)) < 1


def test_empty_and_full_masks() -> None:
    nothing, everything = np.zeros((50, 50), dtype=bool), np.ones((50, 50), dtype=bool)
    some = square(10, height=50, width=50)
    assert (region_similarity(nothing, nothing), boundary_accuracy(nothing, nothing)) == (1, 1)
    for one, other in ((nothing, some), (some, nothing)):
        assert (region_similarity(one, other), boundary_accuracy(one, other)) == (0, 0)
    assert not boundary(everything).any()  # the border is none
    assert boundary_accuracy(everything, nothing) == 1


def test_first_and_last_frame_and_things_that_come_later_do_not_count() -> None:
    truth = np.zeros((4, 100, 100), dtype=np.uint8)
    truth[:, square(10)] = 2
    truth[2:, square(60)] = 5
    found = truth.copy()
    found[0] = found[3] = 0
    assert score_masks(truth, found).tolist() == [[1, 1]]
    found[1] = 0
    assert score_masks(truth, found).tolist() == [[0.5, 0.5]]
    truth[0, square(70)] = 1  # seen in the first frame only, and rightly never found: both empty
    assert score_masks(truth, found).tolist() == [[1, 1], [0.5, 0.5]]


def test_masks_without_anything_to_score_are_refused() -> None:
    masks = np.ones((4, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 8, 8\) \(truth\) and \(2, 8, 8\): expected two equal .* 3 frames"):
        score_masks(masks[:2], masks[:2])
    with pytest.raises(ValueError, match=r"\(4, 8, 8\) \(truth\) and \(3, 8, 8\)"):
        score_masks(masks, masks[:3])
    with pytest.raises(ValueError, match="first mask shows only background, so there is nothing to follow"):
        score_masks(0 * masks, masks)
