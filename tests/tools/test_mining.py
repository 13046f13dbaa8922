"""The mining benchmark on miniature banks: its dense search, its data, its command."""

import json
from pathlib import Path

import pytest
import torch
from mining import (
    DATA,
    benchmark_mining,
    dense_agreement,
    fit_growth,
    make_banks,
    measure,
    project,
)

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "benchmarks" / "mining.py"


@pytest.mark.parametrize("data", DATA)
def test_the_engines_find_what_dense_finds(data):
    settings = {"num_rows": 600, "dim": 32, "k": 8, "data": data, "seed": 1}
    result = benchmark_mining(**settings, engines=["tiles", "flat", "ivf"], dense_rows=200)
    for engine in ("tiles", "flat"):
        assert result[f"{engine}_recall"] == result[f"{engine}_proven"] == 1
    assert result["ivf_recall"] > 0.9
    assert result["ivf_proven"] == 0
    assert result["tiles_speedup"] == pytest.approx(result["dense_seconds"] / result["tiles_seconds"])


def test_dense_agreement_without_self():
    video, audio = make_banks(300, 16, data="clustered", seed=0)
    rows = torch.arange(0, 300, 3)
    ids, scores = dense_agreement(video, audio, rows=rows, k=4)
    expected = torch.minimum(video @ video.T, audio @ audio.T).fill_diagonal_(-1)[rows].topk(4, dim=1)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(scores, expected.values)


def test_clustered_banks_look_as_described():
    video, audio = make_banks(4000, 128, data="clustered", seed=0)
    cosines = video @ video.T
    near = torch.minimum(cosines, audio @ audio.T).fill_diagonal_(-1).amax(dim=1)
    assert 0.07 < cosines[cosines < 0.4].std() < 0.12  # between classes
    assert 0.5 < near.median() < 0.75  # a clip of the same class
    peaked = make_banks(500, 128, data="peaked_audio", seed=0)[1]
    assert (peaked @ peaked.T).min() > 0.9


def test_command_prints_json(call):
    result = json.loads(call(TOOL, "--n", 300, "--dim", 16, "--k", 4, "--threads", 1, "--json").out)
    assert {"rows", "dim", "k", "data", "threads"} == result.keys()
    (row,) = result["rows"]
    of_engines = {f"{engine}_{what}" for engine in ("flat", "ivf", "tiles") for what in ("seconds", "recall", "proven")}
    assert {"n", "dense_seconds", *of_engines} <= row.keys()
    assert (row["n"], result["threads"]) == (300, 1)


def test_command_refuses_a_wrong_call(call):
    call(TOOL, "--n", 30, "--k", 30, "--json").refused("expected 1 <= k < n")


def test_growth_has_a_row_for_each_size_and_the_fitted_exponent():
    fit = fit_growth([10, 100, 1000], [3e-2, 3.0, 300.0])
    assert fit == pytest.approx((2, 3e-4))
    row = project(10**6, {"dense": fit}, dim=128)
    assert row == pytest.approx(
        {"n": 1e6, "dense_hours": 3e8 / 3600, "banks_gigabytes": 1.024, "index_gigabytes": 1.048}
    )
    settings = {"dim": 16, "k": 4, "data": "clustered", "seed": 0, "dense_rows": 100}
    result = measure([300, 600], engines=["tiles"], **settings)
    assert [row["n"] for row in result["rows"]] == [300, 600]
    assert {"dense_exponent", "tiles_exponent"} <= result.keys()


def test_command_prints_a_table(call):
    printed = call(TOOL, "--n", 300, 600, "--dim", 16, "--k", 4, "--threads", 1).out
    assert "n    dense_seconds     flat_seconds" in printed
    assert "ivf_exponent" in printed
