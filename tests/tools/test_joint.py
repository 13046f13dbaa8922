"""The cost of a joint step, on miniature encoders."""

import json
from pathlib import Path

import pytest
import torch
from joint import benchmark_joint

from tests.support.runs import Call

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "benchmarks" / "joint.py"
TINY = [
    *("data.num_frames=2", "data.size=32", "data.patch_size=32", "data.audio_seconds=0.5"),
    *("model.video_depth=10", "model.video_width=0.125", "model.audio_width=0.125"),
]


def test_a_joint_step_encodes_each_view_once() -> None:
    torch.set_num_threads(1)
    result = benchmark_joint(overrides=TINY, batch_size=4, num_steps=1, seed=0)
    assert result["encoder_passes"] == {
        "avid_cma": {"video": 1, "audio": 1},
        "neighbour": {"video": 2},
        "patch": {"video": 2},
        "joint": {"video": 4, "audio": 1},  # AVID-CMA's clip is the neighbours' first
    }
    assert result["seconds"].keys() == result["data_seconds"].keys() == result["encoder_passes"].keys()


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch is 0 and steps 1: expected at least 1 of each"):
        benchmark_joint(overrides=TINY, batch_size=0, num_steps=1, seed=0)


def test_command_prints_json(call: Call) -> None:
    result = json.loads(call(TOOL, *TINY, "--batch", 4, "--steps", 1, "--threads", 1, "--json").out)
    assert {"seconds", "joint_fraction", "encoder_passes"} <= result.keys()
    assert (result["batch"], result["threads"]) == (4, 1)
