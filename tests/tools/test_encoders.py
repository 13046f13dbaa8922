"""The encoder benchmark: its metrics, its table, its command."""

import json
from pathlib import Path

import pytest
from encoders import USUAL_SIZE, as_markdown, benchmark_encoders

from avssl.models import ENCODERS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "benchmarks" / "encoders.py"


def test_every_encoder_has_a_usual_size():
    assert USUAL_SIZE.keys() == ENCODERS.keys()
    for name, size in USUAL_SIZE.items():
        least = ENCODERS[name]().min_size
        assert all(length >= shortest for length, shortest in zip(size, least, strict=True)), name


def test_metrics_of_a_small_encoder():
    result = benchmark_encoders(names=["resnet18_audio"], batch_size=2, num_steps=1)
    (row,) = result["encoders"]
    assert row["parameters"] == pytest.approx(11.17, abs=0.01)  # torchvision's 11.69 less classifier and two inputs
    # The published 1.81 GMAC at 224 x 224, twice, scaled to the area; one input channel and rounded-up maps between.
    assert row["gflops"] == pytest.approx(2 * 1.81 * 200 * 64 / 224**2, rel=0.1)
    table = as_markdown(result).splitlines()
    assert table[2].startswith("| resnet18_audio | 200x64 | 32x32 | 11.2 | ")
    assert "conv5x 512, pool 512" in table[2]


@pytest.mark.parametrize(
    "given, match",
    [
        ({"names": ["x3d"]}, "x3d is not an encoder: did you mean x3d_"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"num_steps": 0}, "steps 0"),
    ],
)
def test_wrong_call(given, match):
    with pytest.raises(ValueError, match=match):
        benchmark_encoders(**{"names": ["x3d_xs"], "batch_size": 1, "num_steps": 1} | given)


def test_command_prints_a_table_or_json(call):
    words = [TOOL, "--names", "resnet18_audio", "--steps", 1, "--threads", 1]
    assert call(*words).out.splitlines()[1] == "|---|---|---|---|---|---|---|"
    result = json.loads(call(*words, "--json").out)
    assert [row["name"] for row in result["encoders"]] == ["resnet18_audio"]
    assert result["threads"] == 1


def test_documented_table_is_about_todays_encoders():
    lines = (ROOT / "docs" / "encoders.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and line.count("|") == 8]
    documented = [line for line in rows if line.split(" ")[1] in ENCODERS]
    assert [line.split(" ")[1] for line in documented] == list(ENCODERS)
    for line in documented:
        name = line.split(" ")[1]
        maps = ", ".join(f"{key} {channels}" for key, channels in ENCODERS[name]().feature_dims.items())
        assert line.endswith(f"| {maps} |"), name
