"""The aims of tracking, on a few made scenes: python tools/benchmark.py tracking measures them on more."""

import pytest

from avssl.benchmark.tracking import benchmark_tracking


def test_tracks_are_on_moving_things_and_stay_there() -> None:
    result = benchmark_tracking(num_scenes=3, first_seed=500, tracker="kcf")
    assert result["tracks"] >= 3
    assert result["iou"] >= 0.6
    assert result["on_thing"] >= 0.8
    assert result["iou_full_length"] >= 0.6


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="num_scenes is 0, expected at least 1"):
        benchmark_tracking(num_scenes=0, first_seed=0, tracker="kcf")
