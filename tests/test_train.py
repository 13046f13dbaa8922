"""The loop: a stopped run continues bit-equal (killed ones: rigs/test_chaos.py), what is wrong is said before or
while it happens, and two processes train as one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl.config import ConfigError, loads
from avssl.data.manifest import Manifest, read_manifest
from avssl.logs import read_log
from avssl.training import setup
from avssl.training.checkpoint import CheckpointError, load_checkpoint
from avssl.training.loop import train
from avssl.training.session import TrainingError
from avssl.weights.load import load_run
from tests.support.runs import CMA, TINY, config, equal_models

pytestmark = pytest.mark.slow


def command(repository: Path, manifest: Manifest, folder: Path, *overrides: str) -> list[str]:
    (folder.parent / "empty.yaml").write_text("{}\n")
    return [
        sys.executable, str(repository / "tools" / "train.py"), str(folder.parent / "empty.yaml"),
        f"data.manifest={manifest.root / 'manifest.parquet'}", f"run.dir={folder}", *TINY, *overrides,
    ]  # fmt: skip


@pytest.mark.parametrize("extra", [[], CMA], ids=["avid", "avid_cma"])
def test_stopping_at_every_step_changes_nothing(clip_set: Manifest, tmp_path: Path, extra: list[str]) -> None:
    assert train(config(clip_set, tmp_path / "whole", *extra))
    step = 0
    while not train(config(clip_set, tmp_path / "parts", *extra, f"run.max_steps={step + 1}")):
        step += 1
        assert load_checkpoint(tmp_path / "parts")["step"] == step
    assert equal_models(tmp_path / "whole", tmp_path / "parts")
    keys = ("step", "loss", "v2a", "grad_norm", "lr", "video_rank")
    logs = [
        [[line.get(key) for key in keys] for line in read_log(tmp_path / run / "log.jsonl")]
        for run in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    if extra:
        assert (load_checkpoint(tmp_path / "whole")["model"]["sets"] >= 0).any()
    assert (tmp_path / "whole" / "encoders.safetensors").exists()
    assert loads((tmp_path / "whole" / "config.yaml").read_text()).optim.epochs == 2


def _last_step(folder: Path) -> int:
    return max((line["step"] for line in read_log(folder / "log.jsonl")), default=0)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_first(
    clip_set: Manifest, tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    call = command(repository, clip_set, tmp_path / "run", "optim.epochs=500", "data.num_workers=1")
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)
    since = time.monotonic()
    while _last_step(tmp_path / "run") < 3 and process.poll() is None and time.monotonic() - since < 90:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped and saved at step" in errors
    assert load_checkpoint(tmp_path / "run")["step"] >= 3


@pytest.mark.processes
def test_two_processes_train_as_one(clip_set: Manifest, tmp_path: Path, repository: Path) -> None:
    """Through torchrun; BatchNorm sees half the batch on each rank (as in AVID), so the losses are close, not equal,
    and the mined sets and the rows that moved are the same kind."""
    call = command(repository, clip_set, tmp_path / "two", *CMA)
    runner = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(29600 + os.getpid() % 300),
    ]
    done = subprocess.run([*runner, *call[1:]], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert train(config(clip_set, tmp_path / "one", *CMA))
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    losses = [np.array([line["loss"] for line in lines if "loss" in line]) for lines in (one, two)]
    assert np.allclose(*losses, rtol=0.15)
    state = load_checkpoint(tmp_path / "two")
    assert (state["model"]["sets"] >= 0).any()
    assert train(config(clip_set, tmp_path / "two", *CMA))  # one process reads what two have written


def test_a_loss_that_is_not_finite_stops_the_run(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avssl.models.heads import MLP

    forward, calls = MLP.forward, []

    def poisoned(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, x) * (float("nan") if len(calls) > 6 else 1.0)

    monkeypatch.setattr(MLP, "forward", poisoned)
    message = r"step 3: loss is nan.*such a gradient: encoders\.video.*last good checkpoint is .*last\.pt"
    with pytest.raises(TrainingError, match=message):
        train(config(clip_set, tmp_path / "run", "run.checkpoint_every=2"))
    assert load_checkpoint(tmp_path / "run")["step"] == 2


def test_unreadable_files_are_named_and_a_lost_folder_stops(clip_set: Manifest, tmp_path: Path) -> None:
    shutil.copytree(clip_set.root, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set" / "manifest.parquet")
    rows = np.flatnonzero(manifest.valid("train"))
    broken = [str(manifest.column("path")[row]) for row in rows[:2]]
    for path in broken:
        (tmp_path / "set" / path).write_bytes(b"")
    assert train(config(manifest, tmp_path / "run"))
    named = [reason for line in read_log(tmp_path / "run" / "log.jsonl") for reason in line.get("unreadable", [])]
    assert all(any(path in reason for reason in named) for path in broken)
    for row in rows:
        (tmp_path / "set" / str(manifest.column("path")[row])).unlink()
    with pytest.raises(TrainingError, match=r"no file of the batch could be read .*is data\.root right\?"):
        train(config(manifest, tmp_path / "other"))


def test_what_a_run_belongs_to_is_checked_before_any_work(clip_set: Manifest, tmp_path: Path) -> None:
    assert not train(config(clip_set, tmp_path / "run", "run.max_steps=1"))
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.5, but the run in .*run was started with 0\.0002"):
        train(config(clip_set, tmp_path / "run", "optim.lr=0.5"))
    with pytest.raises(ConfigError, match=r"run\.resume=never, but .*last\.pt holds a run already"):
        train(config(clip_set, tmp_path / "run", "run.resume=never"))
    with pytest.raises(ConfigError, match=r"no usable clip with data\.split=val"):
        train(config(clip_set, tmp_path / "new", "data.split=val"))
    with pytest.raises(ConfigError, match=r"unknown key temprature in method avid: did you mean temperature\?"):
        train(config(clip_set, tmp_path / "new", "method.temprature=1"))
    from tests.support.clips import make_set

    other = make_set(tmp_path / "other", num_train=8, num_test=0)
    with pytest.raises(CheckpointError, match="belongs to another manifest"):
        train(config(other, tmp_path / "run"))
    with pytest.raises(CheckpointError, match="belongs to another manifest"):
        train(config(other, tmp_path / "new", f"model.init={tmp_path / 'run'}"))


def test_accumulation_updates_the_same_memory_banks_once_per_step(clip_set: Manifest, tmp_path: Path) -> None:
    """BatchNorm sees the parts, so vectors differ; which rows of the banks move, and how often, may not."""
    moved = {}
    for name, parts in (("whole", 1), ("parts", 2)):
        for steps in (1, 2):
            folder = tmp_path / f"{name}{steps}"
            train(config(clip_set, folder, f"optim.accumulate={parts}", f"run.max_steps={steps}"))
            moved[name, steps] = load_checkpoint(folder)["model"]["banks.video.z"]
    start = load_run(tmp_path / "whole1", trained=False).method.banks["video"].z
    for steps in (1, 2):
        rows = [(moved[name, steps] != start).any(dim=1) for name in ("whole", "parts")]
        assert torch.equal(*rows)
        assert int(rows[0].sum()) == 4 * steps


def test_bfloat16_clipping_and_sgd_run(clip_set: Manifest, tmp_path: Path) -> None:
    assert train(
        config(
            clip_set,
            tmp_path / "run",
            "run.precision=bfloat16",
            "optim.clip_norm=0.5",
            "optim.name=sgd",
            "optim.lr=0.01",
        )
    )
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    expected = {
        "step",
        "epoch",
        "loss",
        "v2a",
        "a2v",
        "lr",
        "grad_norm",
        "clips_per_second",
        "data_wait",
        "video_std",
        "audio_rank",
    }
    assert expected <= lines[0].keys()
    assert json.dumps(lines)
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_auto_precision_is_the_devices_and_stays_the_runs(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fast, folder, expected in (
        ("bfloat16", "first", "bfloat16"),
        ("float32", "first", "bfloat16"),  # resumed on another processor
        ("float32", "second", "float32"),
    ):
        monkeypatch.setattr(setup, "fast_precision", lambda device, fast=fast: fast)
        train(config(clip_set, tmp_path / folder, "run.precision=auto", "run.max_steps=1"))
        assert loads(load_checkpoint(tmp_path / folder)["config"]).run.precision == expected
        said = capsys.readouterr()
        assert ("no bfloat16 kernels" in said.out + said.err) == (fast != expected)
