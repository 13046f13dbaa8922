"""What is reported: means, signs of collapse, and a log that a resumed run continues."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avssl.logs import RunLog, RunningMean, embedding_metrics, read_log


def test_running_mean_starts_anew() -> None:
    mean = RunningMean()
    for value in (1.0, 2.0, 6.0):
        mean.add({"loss": torch.tensor(value)})
    assert mean.pop() == {"loss": 3.0}
    assert mean.pop() == {}


def test_collapse_metrics_tell_spread_from_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = embedding_metrics(F.normalize(torch.randn(4000, 16, generator=generator), dim=1))
    assert float(spread["std"]) == pytest.approx(1, abs=0.05)
    assert float(spread["rank"]) == pytest.approx(16, abs=0.3)
    point = embedding_metrics(
        F.normalize(torch.ones(100, 16) + 1e-4 * torch.randn(100, 16, generator=generator), dim=1)
    )
    assert float(point["std"]) < 1e-3
    line = torch.randn(100, 1, generator=generator) * torch.randn(16, generator=generator)
    assert float(embedding_metrics(F.normalize(line, dim=1))["rank"]) == pytest.approx(1, abs=0.05)


def test_what_follows_a_save_comes_again_and_stands_once(tmp_path: Path) -> None:
    """Mining before step 4 and its files are reported at 3 steps done, like the loss of step 3 before the save."""
    for _ in range(2):
        with RunLog(tmp_path, first_step=3, num_steps=9) as log:
            log.report(3, {"mining/exact": 1.0})
            log.report(3, {"unreadable": ["a.mp4"]})
    assert len(read_log(tmp_path / "log.jsonl")) == 2
    with RunLog(tmp_path, first_step=4, num_steps=9):
        pass
    assert len(read_log(tmp_path / "log.jsonl")) == 2


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0, num_steps=9) as log:
        for step in range(1, 6):
            log.report(step, {"loss": float(step) if step != 2 else math.nan})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with RunLog(tmp_path, first_step=3, num_steps=9) as log:
        log.report(4, {"loss": 40.0})
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path / "log.jsonl")] == [
        (1, 1),
        (2, None),
        (3, 3),
        (4, 40),
    ]
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    with RunLog(tmp_path, first_step=0, num_steps=9):
        pass
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_log_is_read_up_to_what_is_none(tmp_path: Path) -> None:
    for broken in (b"\xff\xfe\n", b"3\n", b"[" * 5000, b'{"step": 2'):
        (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + broken)
        assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
