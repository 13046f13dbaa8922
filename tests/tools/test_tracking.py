"""The aims of tracking, on a few made scenes: python tools/benchmarks/tracking.py measures them on more."""

import json
from pathlib import Path

import pytest
from tracking import benchmark_tracking

from tests.support.runs import Call

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "benchmarks" / "tracking.py"


def test_tracks_are_on_moving_things_and_stay_there() -> None:
    result = benchmark_tracking(num_scenes=2, first_seed=500, tracker="kcf")
    assert result["tracks"] >= 2
    assert result["iou"] >= 0.6
    assert result["on_thing"] >= 0.8
    assert result["iou_full_length"] >= 0.6


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="num_scenes is 0, expected at least 1"):
        benchmark_tracking(num_scenes=0, first_seed=0, tracker="kcf")


def test_command_prints_json(call: Call) -> None:
    result = json.loads(call(TOOL, "--scenes", 1, "--seed", 500, "--threads", 1, "--json").out)
    assert {"tracks", "iou", "on_thing"} <= result.keys()
