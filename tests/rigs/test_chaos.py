"""A killed run continues as if nothing had been, and the comparison that says so sees every difference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avssl.training.checkpoint import ENCODERS, LAST, save_checkpoint
from tests.rigs.chaos import compare_runs, run_chaos

pytestmark = pytest.mark.slow


@pytest.mark.processes
def test_three_kills_change_nothing(repository: Path) -> None:
    """In a process of its own: the tool forks, which this one, with torch's threads, may not. Other moments each time,
    though the seed is fixed: processes run as fast as the machine lets them.
    """
    command = [sys.executable, "-m", "tests.rigs.chaos", "--kills", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["equal"]
    assert result["differences"] == []
    assert result["kills"] == sum(result["during"].values()) == 3


def write_run(folder: Path) -> None:
    state = {
        "config": folder.name,
        "manifest_hash": "a",
        "rows": torch.arange(3),
        "instances": {"valid": torch.ones(2, dtype=torch.bool)},
        "decoder": {"name": "pyav", "version": "1", "ffmpeg": "1"},
        "step": 4,
        "model": {"bank": torch.tensor([0.0, torch.nan])},
        "optimizer": {"encoders.weight": {"exp_avg": torch.ones(2)}},
    }
    folder.mkdir()
    save_checkpoint(folder / LAST, state)
    (folder / ENCODERS).write_bytes(b"weights")
    lines = [{"step": step, "loss": 1.0 / step, "clips_per_second": len(folder.name)} for step in (1, 2, 3, 4)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change(folder: Path, what: str) -> None:
    state = torch.load(folder / LAST, weights_only=True)
    log = (folder / "log.jsonl").read_text()
    match what:
        case "bank":
            state["model"]["bank"][0] = -0.0  # equal as a number, not bit for bit
        case "moment":
            state["optimizer"]["encoders.weight"]["exp_avg"][1] += 1e-7
        case "step":
            state["step"] = 3
        case "missing":
            del state["model"]["bank"]
        case "export":
            (folder / ENCODERS).write_bytes(b"older weights")
        case "line twice":
            log += log.splitlines()[-1] + "\n"
        case "figure":
            log = log.replace("0.5", "0.25")
        case "left over":
            (folder / ".encoders.safetensors.partial").touch()
    save_checkpoint(folder / LAST, state)
    (folder / "log.jsonl").write_text(log)


@pytest.mark.parametrize(
    "what, named",
    [
        ("nothing", None),
        ("bank", "killed: model.bank in last.pt"),
        ("moment", "killed: optimizer.encoders.weight.exp_avg in last.pt"),
        ("step", "killed: step in last.pt"),
        ("missing", "killed: model.bank in last.pt"),
        ("export", "killed: encoders.safetensors"),
        ("line twice", "killed: log.jsonl from line 5 (4 and 5 lines)"),
        ("figure", "killed: log.jsonl from line 2 (4 and 4 lines)"),
        ("left over", "killed: .encoders.safetensors.partial"),
    ],
)
def test_every_difference_is_named(tmp_path: Path, what: str, named: str | None) -> None:
    for name in ("whole", "killed"):
        write_run(tmp_path / name)
    change(tmp_path / "killed", what)
    assert compare_runs(tmp_path / "whole", tmp_path / "killed") == ([named] if named else [])


def test_wrong_calls_are_refused_before_any_fork(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="is not empty: give a new folder"):
        run_chaos(tmp_path, num_kills=3, seed=0)
    with pytest.raises(ValueError, match="num_kills=0: expected at least 1"):
        run_chaos(tmp_path / "new", num_kills=0, seed=0)
