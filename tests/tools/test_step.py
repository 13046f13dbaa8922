"""The step benchmark on miniature encoders: its metrics, its parts, its command."""

import json
from pathlib import Path

import pytest
from step import benchmark_step

from avssl.config import ConfigError
from tests.support.runs import Call

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "benchmarks" / "step.py"
TINY = [
    *("data.num_frames=2", "data.size=32", "data.audio_seconds=0.5", "method.num_negatives=8", "method.hidden_dim=16"),
    *("model.video_depth=10", "model.video_width=0.125", "model.audio_width=0.125"),
]
PARTS = [
    *("data", "views", "video encoder", "audio encoder", "heads", "loss", "heads and loss backward"),
    *("audio encoder backward", "video encoder backward", "gradient norms", "optimizer", "bank"),
]


def test_metrics_and_parts() -> None:
    result = benchmark_step(overrides=TINY, batch_size=4, num_steps=2, compiled=False, seed=0)
    for parts in (result["seconds"], result["reference_seconds"]):
        assert sorted(parts) == sorted(PARTS)
        assert all(seconds > 0 for seconds in parts.values())
    assert "compile_seconds" not in result
    assert result["product_gflops"].keys() == result["share_of_products"].keys() == {"reference", "ours"}
    assert all(0 < share < 1 for share in result["share_of_products"].values())


def test_bfloat16_gradients_are_as_near_as_rounding_allows() -> None:
    result = benchmark_step(overrides=TINY, batch_size=8, num_steps=1, compiled=False, seed=1)
    for name in ("video", "audio"):
        assert 0 < result["rounding_error"][name] < 1
        assert result["gradient_error"][name] < 3 * result["rounding_error"][name]


def test_command_prints_json_and_refuses_wrong_calls(call: Call) -> None:
    result = json.loads(call(TOOL, *TINY, "--batch", 4, "--steps", 1, "--threads", 1, "--json").out)
    assert {"reference_clips_per_second", "clips_per_second", "seconds"} <= result.keys()
    assert (result["batch"], result["threads"]) == (4, 1)
    call(TOOL, "--steps", 0).refused("batch is 8 and steps 0: expected at least 1 of each")
    with pytest.raises(ConfigError, match=r"unknown key model\.width"):
        benchmark_step(overrides=["model.width=1"], batch_size=4, num_steps=1, compiled=False, seed=0)
