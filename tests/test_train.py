"""The loop: a stopped run continues bit-equal (killed ones: rigs/test_chaos.py), what is wrong is said before or
while it happens, and two processes train as one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from avssl.cli.scan import main as scan
from avssl.cli.train import main as train_command
from avssl.config import ConfigError, from_dict, loads, with_overrides
from avssl.data.manifest import Manifest, read_manifest
from avssl.logs import read_log
from avssl.training import session, setup
from avssl.training.checkpoint import CheckpointError, load_checkpoint
from avssl.training.loop import train
from avssl.training.session import TrainingError
from avssl.weights.load import load_run
from tests.support.clips import make_clip
from tests.support.ranks import on_ranks
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


def trained(manifest: Path, folder: Path, *overrides: str) -> bool:
    return train(config(read_manifest(manifest), folder, *overrides))


@pytest.mark.processes
def test_two_processes_train_as_one(clip_set: Manifest, tmp_path: Path) -> None:
    """BatchNorm sees half the batch on each rank (as in AVID), so the losses are close, not equal, and the mined sets
    and the rows that moved are the same kind."""
    cma = [*CMA, "method.mine_in_background=true", "optim.epochs=3"]  # the sets of epoch 1 are used in epoch 2
    assert on_ranks(2, trained, clip_set.root / "manifest.parquet", tmp_path / "two", *cma) == [True, True]
    assert train(config(clip_set, tmp_path / "one", *cma))
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    losses = [np.array([line["loss"] for line in lines if "loss" in line]) for lines in (one, two)]
    assert np.allclose(*losses, rtol=0.15)
    state = load_checkpoint(tmp_path / "two")
    assert (state["model"]["sets"] >= 0).any()
    assert train(config(clip_set, tmp_path / "two", *cma))  # one process reads what two have written


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


def test_banks_in_16_bits_are_resumed_and_start_banks_in_32(clip_set: Manifest, tmp_path: Path) -> None:
    half, stopped = "method.bank_dtype=float16", tmp_path / "stopped"
    assert train(config(clip_set, tmp_path / "whole", half))
    assert not train(config(clip_set, stopped, half, "run.max_steps=4"))
    assert train(config(clip_set, stopped, half))
    assert equal_models(tmp_path / "whole", stopped)
    z = load_checkpoint(stopped)["model"]["banks.video.z"]
    assert z.dtype == torch.float16
    start = f"model.init={stopped}"
    assert train(config(clip_set, tmp_path / "cma", *CMA, start, "method.mine_from_epoch=0", "optim.lr=0"))
    assert load_checkpoint(tmp_path / "cma")["model"]["banks.video.z"].dtype == torch.float32
    assert train(config(clip_set, tmp_path / "half", *CMA, start, "method.mine_from_epoch=0", half))
    assert load_checkpoint(tmp_path / "half")["model"]["sets"].max() >= 0  # mined from 16 bits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_in_parts_trains(clip_set: Manifest, tmp_path: Path, precision: str) -> None:
    """BatchNorm sees the parts, so vectors differ; which rows of the banks move may not."""
    moved = {}
    for parts in (1, 2):
        folder = tmp_path / f"{parts}"
        settings = [f"optim.accumulate={parts}", f"run.precision={precision}", "run.max_steps=2"]
        assert not train(config(clip_set, folder, *CMA, *settings))
        start = load_run(folder, trained=False).method.banks["video"].z
        moved[parts] = (load_checkpoint(folder)["model"]["banks.video.z"] != start).any(dim=1)
    assert torch.equal(moved[1], moved[2])
    assert int(moved[1].sum()) == 8


def test_the_most_steps_hold_on_every_call(clip_set: Manifest, tmp_path: Path) -> None:
    for most, reached in ((2, 2), (2, 2), (1, 2), (3, 3)):
        assert not train(config(clip_set, tmp_path, f"run.max_steps={most}"))
        assert load_checkpoint(tmp_path)["step"] == reached
        assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(1, reached + 1))
    assert train(config(clip_set, tmp_path, "run.max_steps=99"))
    assert train(config(clip_set, tmp_path, "run.max_steps=12"))


def test_how_a_run_is_executed_may_change(
    clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its first weights lay, the cache and the threads; and a value may be written otherwise."""
    small = [line for line in TINY if not line.startswith("method.")]
    given = {"data": {"manifest": str(clip_set.root / "manifest.parquet")}, "run": {"dir": str(tmp_path)}}
    byol = {"name": "byol", "hidden_dim": "16", "embedding_dim": "8", "second": {"blur": "1"}}
    first = with_overrides(given | {"method": byol}, [*small, "run.max_steps=1"])
    assert not train(from_dict(first, source="test"))
    byol = {"name": "byol", "hidden_dim": 16, "embedding_dim": "8.0", "second": {"blur": 1.0}, "momentum": "0.9960"}
    free = ["data.cache_gigabytes=0.1", "model.video_weights=gone.pt", "run.num_threads=2", "run.max_steps=2"]
    assert not train(from_dict(with_overrides(first | {"method": byol}, free), source="test"))
    assert load_checkpoint(tmp_path)["step"] == 2
    assert "note: 2 threads of torch, 1 before: going on is not bit-equal" in capsys.readouterr().err
    assert not train(from_dict(with_overrides(first, ["model.init=gone", "run.max_steps=3"]), source="test"))


@pytest.mark.parametrize("starts_last", ["true", "false"])
def test_channels_last_may_change_between_stop_and_resume(clip_set: Manifest, tmp_path: Path, starts_last: str) -> None:
    other = "false" if starts_last == "true" else "true"
    settings = ["optim.lr=0.01", f"run.channels_last={starts_last}"]
    train(config(clip_set, tmp_path / "whole", *settings, "run.max_steps=4"))
    train(config(clip_set, tmp_path / "parts", *settings, "run.max_steps=2"))
    start = load_run(tmp_path / "whole", trained=False).method.state_dict()
    train(config(clip_set, tmp_path / "parts", *settings, f"run.channels_last={other}", "run.max_steps=4"))
    whole, parts = (load_checkpoint(tmp_path / name)["model"] for name in ("whole", "parts"))
    for name in ("encoders.video.conv3x.0.spt_conv1.weight", "encoders.audio.block2.conv1.weight"):
        moved = (whole[name] - start[name]).norm()
        assert (whole[name] - parts[name]).norm() < 0.02 * moved, name


def test_a_larger_set_of_other_names_keeps_the_memories_of_known_files(
    clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = tmp_path / "larger"  # eight others, and two of the first run
    for number in range(8):
        make_clip(larger / f"new_{number}.mp4", number % 2, 500 + number)
    for row in np.flatnonzero(clip_set.valid("train"))[:2]:
        shutil.copy(clip_set.path(int(row)), larger / f"again_{row}.mp4")
    assert scan([str(larger), "--out", str(larger / "manifest.parquet"), "--workers", "1"]) == 0
    larger = read_manifest(larger / "manifest.parquet")
    assert not train(config(clip_set, tmp_path / "first", "run.max_steps=3"))
    start = [f"model.init={tmp_path / 'first'}", "run.max_steps=1", "method.bank_momentum=0.99999", "run.seed=5"]
    assert not train(config(larger, tmp_path / "second", *start))
    assert "note: 8 of 10 clips are not among those that" in capsys.readouterr().err
    first, second = (load_checkpoint(tmp_path / name) for name in ("first", "second"))
    for row, key in enumerate(larger.keys.tolist()):
        known = (first["rows"] == key).nonzero().squeeze(1)
        ours, theirs = (each["model"]["banks.video.z"] for each in (second, first))
        alike = (ours[row] @ theirs.T).max().item() > 0.999
        assert alike == (len(known) == 1)
        assert not alike or (ours[row] @ theirs[known[0]]).item() > 0.999


def test_clips_that_are_new_to_the_run_before_are_counted(
    clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not train(config(clip_set, tmp_path / "first", "run.max_steps=3"))
    overrides = ["data.split=null", f"model.init={tmp_path / 'first'}", "run.max_steps=1"]
    assert not train(config(clip_set, tmp_path / "second", *overrides))
    assert "note: 6 of 18 clips are not among those that" in capsys.readouterr().err
    valid = load_checkpoint(tmp_path / "second")["model"]["banks.video.valid"]
    assert torch.equal(valid, torch.from_numpy(clip_set.valid()))


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
        assert ("no fast bfloat16" in said.out + said.err) == (fast != expected)


def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(
    clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = command(Path(), clip_set, tmp_path / "run", "method.num_negatives=12")[2:]
    assert train_command([call[0], "--dry-run", *call[1:]]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    steps = int(
        re.search(
            r"^(\d+) steps of \d+\.\d\d s \(mean of 3, after \d+ to warm up\): \d+ seconds; mining is not among them$",
            printed,
            re.M,
        )[1]
    )
    megabytes = int(re.search(rf"^(\d+) MB of disk for a checkpoint, {tmp_path}/run/last\.pt", printed, re.M)[1])
    assert f"note: {steps} steps are few" in printed
    assert "note: method.num_negatives=12 draws each of 11 clips again and again: method.num_negatives=16" in printed
    assert train_command(call) == 0
    assert load_checkpoint(tmp_path / "run")["step"] == steps
    assert megabytes == pytest.approx((tmp_path / "run" / "last.pt").stat().st_size / 1e6, rel=0.05, abs=0.6)
    assert "note: method.num_negatives=12 draws each of 11" in capsys.readouterr().err
    assert train_command([call[0], "--dry-run", *call[1:]]) == 0
    assert capsys.readouterr().out.endswith("complete: no step is left\n")
    almost = [*call, f"run.dir={tmp_path / 'almost'}"]
    assert train_command([*almost, f"run.max_steps={steps - 1}"]) == 1
    assert train_command([*almost, "--dry-run"]) == 0
    assert "1 step is left, too few to tell its seconds" in capsys.readouterr().out


def test_the_page_of_a_run_that_goes_on_is_written_between_epochs(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    class Writer:
        def __init__(self, call: list[str], **how: Any) -> None:
            assert how["env"]["CUDA_VISIBLE_DEVICES"] == ""
            assert (tmp_path / "run" / "last.pt").exists()
            calls.append(call)

        def poll(self) -> int | None:
            return None if len(calls) > 1 else 0  # the second is slow

        def terminate(self) -> None:
            calls.append(["ended"])

        def wait(self) -> None:
            pass

    monkeypatch.setattr(session.subprocess, "Popen", Writer)
    assert train(config(clip_set, tmp_path / "short"))
    assert calls == []  # nothing takes ten minutes here
    monkeypatch.setattr(session, "PAGE_SECONDS", 0)
    assert train(config(clip_set, tmp_path / "run", "optim.epochs=5"))
    report = [sys.executable, "-m", "avssl", "report", str(tmp_path / "run")]
    assert calls == [report, report, ["ended"]]
    assert f"to watch: tensorboard --logdir {tmp_path}/run" in capsys.readouterr().err


def test_bfloat16_is_for_processors_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, native, supported, expected in (
        ("x86_64", True, True, "bfloat16"),
        ("x86_64", False, True, "float32"),  # AVX-512 without its bfloat16 instructions: oneDNN supports it, slowly
        ("aarch64", False, torch.ops.mkldnn._is_mkldnn_bf16_supported(), None),
    ):
        monkeypatch.setattr(setup.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(setup, "has_fast_bfloat16", lambda native=native: native)
        kind = "bfloat16" if supported and torch.backends.mkldnn.is_available() else "float32"
        assert setup.fast_precision(torch.device("cpu")) == (expected or kind)
