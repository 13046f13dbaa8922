"""A machine is cut off: the others go on from the last checkpoint with fewer processes, the same clips in each step.

Two agents of torchrun on the loopback stand for two machines of two processes and one; a batch of 7 cannot be divided
by 3 nor by 2.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avssl.data.manifest import Manifest
from avssl.logs import read_log
from avssl.training.checkpoint import load_checkpoint
from avssl.training.session import read_sessions
from tests.support.runs import TINY, free_port

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def start_machine(port: int, processes: int, folder: Path, command: list[str]) -> subprocess.Popen:
    quick = "keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=2"  # to notice who is gone
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", str(processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "elastic"]
    launcher += ["--rdzv-conf", quick, "--local-addr", "127.0.0.1", "--max-restarts", "3", "-m", "avssl", *command]
    with open(folder / f"machine{processes}.txt", "w") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(launcher, env=environment, stdout=output, stderr=output, start_new_session=True)


def end(machine: subprocess.Popen) -> None:
    """Its agent and its processes, each of which has a session of its own."""
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
    for pid in [str(machine.pid), *children]:
        os.kill(int(pid), signal.SIGKILL)


def test_a_run_goes_on_with_the_machines_that_are_left(clip_set: Manifest, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    (tmp_path / "empty.yaml").write_text("{}\n")
    command = ["train", str(tmp_path / "empty.yaml"), f"data.manifest={clip_set.root / 'manifest.parquet'}", *TINY]
    command += [f"run.dir={run}", "run.checkpoint_every=2", "optim.epochs=12", "data.batch_size=7"]
    first = start_machine(port, 2, tmp_path, command)
    time.sleep(1)  # its agent holds the rendezvous
    second = start_machine(port, 1, tmp_path, command)

    def printed() -> str:
        return "\n".join((tmp_path / f"machine{n}.txt").read_text() for n in (2, 1))

    try:
        since = time.monotonic()
        while not (run / "last.pt").exists() and first.poll() is None and time.monotonic() - since < 120:
            time.sleep(0.05)
        end(second)
        assert first.wait(timeout=120) == 0, printed()
    finally:
        for machine in (first, second):
            if machine.poll() is None:
                end(machine)
    assert [each["processes"] for each in read_sessions(run)] == ["3 x cpu", "2 x cpu"], printed()
    steps = [line["step"] for line in read_log(run / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, load_checkpoint(run)["step"] + 1))
    assert "3 processes do not divide data.batch_size=7: 2 of them have one clip less" in printed()
