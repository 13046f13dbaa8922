"""The benchmark for GPUs, in miniature on what is here."""

import json
import sys
from pathlib import Path

import gpu
import pytest

from tests.support.runs import TINY

pytestmark = pytest.mark.slow
SMALL_ENCODERS = ("model.video_depth=10", "model.video_width=0.125", "model.audio_width=0.125")


def test_every_part_on_this_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "compile_encoders", lambda *given: None)  # tests/test_train_step.py compiles
    words = [line for line in TINY if not line.startswith(("method.", "data.batch_size", "optim.epochs"))]
    words += ["--methods", "avid", "simclr", "--batch", "4", "--steps", "1", "--sizes", "300", "--json"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    assert gpu.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["steps"]] == ["avid", "simclr"]
    for row in found["steps"]:
        assert min(row["float32"], row["bfloat16"], row["compiled"]) > 0
        assert row["gradient_error"] > 0
        assert row["host_syncs"] >= 0
    assert [row["found"] for row in found["mining"] if row["engine"] == "tiles"] == [1]
    assert all(0.5 < row["found"] <= 1 for row in found["mining"])
    assert found["resume"]["largest_difference"] == 0


@pytest.mark.parametrize("method", [name for name in gpu.METHODS if name not in gpu.LEFT_OUT])
def test_every_method_gets_a_batch_that_it_learns_from(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.step, "_NUM_CLIPS", 4)
    settings = [*gpu.step.SETTINGS, f"method.name={method}", *gpu.OWN.get(method, ()), *SMALL_ENCODERS]
    config = gpu.step.make_config(tmp_path, settings, batch_size=4, seed=0)
    (batch,), _ = gpu.step.load_batches(config, num=1)
    assert (batch.ids >= 0).all()
    assert not any(padded.all() for padded in batch.padded.values())
