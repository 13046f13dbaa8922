"""Bootstrap intervals: coverage, groups, and the grouped probe."""

import numpy as np
import pytest
from extra_metrics import grouped_predict

from avssl.evaluate.metrics import bootstrap_interval


def test_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(200):
        values = rng.random(40) < 0.7
        low, high = bootstrap_interval(values, np.arange(40), seed=trial)
        covered.append(low <= 0.7 <= high)
    assert 0.88 <= np.mean(covered) <= 0.98


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(1)
    per_group = rng.normal(size=10)
    values, groups = np.repeat(per_group, 20), np.repeat(np.arange(10), 20)  # 200 values, 10 independent ones
    low, high = bootstrap_interval(values, groups)
    as_if_alone = bootstrap_interval(per_group, np.arange(10))
    assert (low, high) == pytest.approx(as_if_alone)
    narrow = bootstrap_interval(values, np.arange(200))
    assert narrow[1] - narrow[0] < 0.4 * (high - low)


def test_interval_of_groups_of_different_size_is_of_the_mean_over_items() -> None:
    values, groups = np.array([1.0] * 90 + [0.0] * 10), np.array([0] * 90 + [1] * 10)
    low, high = bootstrap_interval(values, groups)
    assert (low, high) == (0, 1)  # only one of the groups is drawn often enough
    assert np.isnan(bootstrap_interval(np.array([]), np.array([]))).all()


def test_grouped_probe_never_sees_the_group_it_classifies() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    targets = rng.integers(0, 2, 20)[groups]  # a class per scene, and a feature that tells the scene only
    scene = np.eye(20)[groups]
    assert (grouped_predict(scene, targets, groups) == targets).mean() < 0.75
    assert (grouped_predict(scene + 5 * targets[:, None], targets, groups) == targets).all()
    with pytest.raises(ValueError, match="2 groups cannot be shared out over num_folds=5"):
        grouped_predict(scene[:12], targets[:12], groups[:12])
