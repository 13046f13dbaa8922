"""The benchmark of the neighbour browser in miniature."""

from pathlib import Path

from avssl.benchmark.search import benchmark_search
from avssl.retrieval.search import WAYS


def test_search_is_measured(tmp_path: Path) -> None:
    found = benchmark_search(tmp_path, num_rows=1500, dim=16, num_queries=3, num_clients=4, seconds=1.5, seed=0)
    assert [row["way"] for row in found["ways"]] == list(WAYS)
    for row in found["ways"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["recall"] == 1.0
    load = found["load"]
    assert (load["errors"], load["first_error"]) == (0, "")
    assert load["requests"] > 4
    assert load["own_mb_at_the_end"] < 1.5 * load["own_mb_after_a_third"]
    assert found["start_seconds"] > 0
    assert found["n"] == 1500
