"""The benchmark of the neighbor browser in miniature."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from avssl.retrieval.search import WAYS

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "benchmarks" / "search.py"


def test_search_is_measured() -> None:
    small = ["--n", "1500", "--dim", "16", "--queries", "3", "--clients", "4", "--seconds", "1.5"]
    done = subprocess.run([sys.executable, TOOL, *small, "--json"], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    assert [row["way"] for row in found["ways"]] == list(WAYS)
    for row in found["ways"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["recall"] == 1.0
    load = found["load"]
    assert (load["errors"], load["first_error"]) == (0, "")
    assert load["requests"] > 4
    assert load["own_mb_at_the_end"] < 1.5 * load["own_mb_after_a_third"]
    assert found["n"] == 1500
