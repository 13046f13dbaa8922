"""The benchmark for GPUs, in miniature on what is here."""

import json
import sys

import gpu
import pytest

from tests.tools.test_step import TINY

pytestmark = pytest.mark.slow


def test_every_part_on_this_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "compile_encoders", lambda *given: None)  # tests/test_train_step.py compiles
    words = [line for line in TINY if not line.startswith("method.")]
    words += ["--methods", "avid", "simclr", "--batch", "4", "--steps", "1", "--sizes", "300", "--json"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    assert gpu.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["steps"]] == ["avid", "simclr"]
    for row in found["steps"]:
        assert min(row["float32"], row["bfloat16"], row["compiled"]) > 0
        assert row["gradient_error"] > 0
        assert row["host_syncs"] >= 0
    assert [row["proven"] for row in found["mining"] if row["engine"] == "tiles"] == [1]
    assert found["resume"]["largest_difference"] == 0
