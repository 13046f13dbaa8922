"""A worker process that dies or hangs: its file is named and quarantined, and the run goes on without it."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from avssl.config import ConfigError, DataConfig, load
from avssl.data.dataset import ClipDataset
from avssl.data.loader import WorkerLost, build_loader, lost_workers_named
from avssl.data.manifest import read_manifest, write_manifest
from avssl.data.quarantine import Entry, add_to_quarantine, quarantine_path, read_quarantine, release
from avssl.data.sampling import Key
from avssl.files import WriteError
from avssl.methods.avid import AVID
from avssl.training.loop import train
from tests.support.clips import make_set
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "toy" / "avid.yaml"
DEADLY = "train/0/004.mp4"
SCRIPT = """
import os, runpy, signal, sys, time
from torch.utils.data import get_worker_info
from avssl.media import reader

opened = reader.Reader._open

def open_or_die(self):
    late = os.path.exists({last!r})
    if late and str(self.path).endswith({deadly!r}) and get_worker_info() is not None:
        {end}
    opened(self)

reader.Reader._open = open_or_die
sys.argv[0] = {tool!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ENDS = {"dies": "os.kill(os.getpid(), signal.SIGKILL)", "hangs": "time.sleep(1000)"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_set(folder, num_train=12, num_test=0)
    return folder


@pytest.fixture
def manifest(clips: Path, tmp_path: Path) -> Path:
    """A manifest of its own, so that its quarantine list starts empty."""
    write_manifest(tmp_path / "manifest.parquet", read_manifest(clips / "manifest.parquet").table, root=clips)
    return tmp_path / "manifest.parquet"


def command(manifest: Path, end: str, launcher: list[str]) -> list[str]:
    script = manifest.parent / "deadly.py"
    last = str(manifest.parent / "run" / "last.pt")  # not before a checkpoint is there
    script.write_text(SCRIPT.format(deadly=DEADLY, last=last, end=ENDS[end], tool=str(ROOT / "tools" / "train.py")))
    small = [*TINY, "optim.warmup_epochs=0", "data.num_workers=1", "data.worker_timeout_seconds=4", "optim.epochs=4"]
    where = [f"data.manifest={manifest}", f"run.dir={manifest.parent / 'run'}", "run.checkpoint_every=1"]
    return [*launcher, str(script), str(CONFIG), *small, *where]


def run(words: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes, env=environment, cwd=ROOT, start_new_session=True) as process:
        try:
            printed = process.communicate(timeout=180)
        finally:
            if process.poll() is None:  # or what it has started would live on
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(words, process.returncode, *printed)


@pytest.mark.processes
@pytest.mark.parametrize("end", ENDS)
def test_the_file_is_named_and_the_same_command_goes_on_without_it(manifest: Path, end: str) -> None:
    words = command(manifest, end, [sys.executable])
    first = run(words)
    assert first.returncode == 1
    assert first.stderr.count(DEADLY) == 1
    assert {"dies": "killed by signal", "hangs": "gave nothing for 4 seconds"}[end] in first.stderr
    assert "the last good checkpoint is" in first.stderr
    assert "the same command continues" in first.stderr
    assert "Traceback" not in first.stderr
    (entry,) = read_quarantine(manifest)
    assert entry.path == DEADLY
    if end == "hangs":
        return  # it goes on as after a death
    assert train(load(CONFIG, words[3:]))
    lines = [json.loads(line) for line in (manifest.parent / "run" / "log.jsonl").read_text().splitlines()]
    missed = [name for line in lines for name in line.get("unreadable", [])]
    assert missed
    assert all(DEADLY in name and "quarantined" in name for name in missed)


@pytest.mark.processes
def test_torchrun_restarts_and_completes_the_run(manifest: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    launcher += ["--standalone"]
    done = run(command(manifest, "dies", launcher))
    assert done.returncode == 0, done.stderr
    assert {entry.path for entry in read_quarantine(manifest)} == {DEADLY}
    assert "complete: " in done.stdout + done.stderr


def test_a_quarantined_file_is_not_opened(manifest: Path) -> None:
    before = read_manifest(manifest)
    row = before.column("path").tolist().index(DEADLY)
    add_to_quarantine(manifest, Entry(DEADLY, str(before.column("content_key")[row]), "a worker died"))
    after = read_manifest(manifest)
    assert after.hash == before.hash
    assert after.column("status")[row] == "quarantined"
    assert after.valid().sum() == before.valid().sum() - 1
    data = DataConfig(manifest="", num_frames=2, fps=5, size=32, audio_seconds=0.5, sample_rate=8000)
    sample = ClipDataset(after, data, AVID.views)[Key(0, row, 0)]
    assert sample.id == -1
    assert sample.error == f"{after.path(row)}: the manifest marks it quarantined, a worker died"


def test_an_exchanged_file_is_free_again_and_others_can_be_released(manifest: Path) -> None:
    add_to_quarantine(manifest, Entry(DEADLY, "of an older file", "a worker died"))
    add_to_quarantine(manifest, Entry("train/1/001.mp4", "x", "a worker died"))
    with open(quarantine_path(manifest), "a") as file:
        file.write('{"path": "train/1/0')  # cut off by a crash
    add_to_quarantine(manifest, Entry("train/1/005.mp4", "x", "a worker died"))
    assert (read_manifest(manifest).column("status") == "ok").all()
    assert [entry.path for entry in read_quarantine(manifest)] == [DEADLY, "train/1/001.mp4", "train/1/005.mp4"]
    assert release(manifest, {DEADLY, "train/1/003.mp4"}) == [DEADLY]
    assert [entry.path for entry in read_quarantine(manifest)] == ["train/1/001.mp4", "train/1/005.mp4"]
    assert read_quarantine(manifest)[0].time.endswith("+00:00")


def test_a_list_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"nowhere/m.parquet.quarantine.jsonl cannot be written"):
        add_to_quarantine(tmp_path / "nowhere" / "m.parquet", Entry("a", "b", "c"))


def test_slow_clips_are_not_blamed(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip takes less than half the patience: the worker is slow, no clip hangs."""
    size = {"num_frames": 2, "fps": 5, "size": 32, "audio_seconds": 0.5, "sample_rate": 8000}
    data = DataConfig(manifest="", num_workers=1, worker_timeout_seconds=2, **size)
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views)
    monkeypatch.setattr(ClipDataset, "_sample", lambda self, key: time.sleep(0.5))
    loader = build_loader(dataset, [[Key(0, row, 0) for row in range(8)]], data, device=torch.device("cpu"))
    with pytest.raises(WorkerLost, match="gave nothing for 2 seconds") as lost, lost_workers_named(dataset, data):
        next(iter(loader))
    assert lost.value.ids == ()


def read_one(manifest: Path) -> None:
    """One batch of a clip that takes 1 of the 2 seconds that it may take."""
    size = {"num_frames": 2, "fps": 5, "size": 32, "audio_seconds": 0.5, "sample_rate": 8000}
    data = DataConfig(manifest="", num_workers=1, worker_timeout_seconds=2, **size)
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views)
    loader = build_loader(dataset, [[Key(0, 0, 0)]], data, device=torch.device("cpu"))
    with lost_workers_named(dataset, data):
        (batch,) = loader
    assert batch.ids.tolist() == [0]


@pytest.fixture
def slow_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ClipDataset._sample
    monkeypatch.setattr(ClipDataset, "_sample", lambda self, key: time.sleep(1) or sample(self, key))


@pytest.mark.usefixtures("slow_clips")
def test_a_stopped_run_goes_on_and_blames_no_clip(manifest: Path) -> None:
    """As by Ctrl-Z and fg, or when a scheduler suspends the job."""
    run = os.fork()
    if not run:
        os.setpgid(0, 0)
        code = 1
        try:
            read_one(manifest)
            code = 0
        finally:
            os._exit(code)
    time.sleep(1)  # wherever this falls
    os.killpg(run, signal.SIGSTOP)
    time.sleep(4)
    os.killpg(run, signal.SIGCONT)
    assert os.waitpid(run, 0)[1] == 0


@pytest.mark.usefixtures("slow_clips")
def test_a_stopped_worker_is_waited_for(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(workers[0].pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(workers[0].pid, signal.SIGCONT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    read_one(manifest)
    stopping.join()


@pytest.mark.usefixtures("slow_clips")
def test_clocks_do_not_matter(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging worker is named though the clock of the wall was set back, and a slow one is not when set forth."""
    jumps = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    read_one(manifest)
    monkeypatch.setattr(time, "time", lambda: -next(jumps))
    monkeypatch.setattr(ClipDataset, "_sample", lambda self, key: time.sleep(1000))
    with pytest.raises(WorkerLost, match="gave nothing for 2 seconds") as lost:
        read_one(manifest)
    assert lost.value.ids == (0,)


@pytest.mark.usefixtures("slow_clips")
def test_a_thread_that_is_not_the_main_one_reads_too(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a web server: Python's signals are for the main thread only."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(read_one, manifest).result()
        monkeypatch.setattr(ClipDataset, "_sample", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(WorkerLost, match="a worker died") as lost:
            threads.submit(read_one, manifest).result()
    assert lost.value.ids == (0,)


@pytest.mark.parametrize(
    "message",
    [
        "Caught RuntimeError in DataLoader worker process 0. unable to allocate shared memory(shm) for file </torch_1>",
        "Caught RuntimeError in DataLoader worker process 0. unable to write: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory.",
    ],
)
def test_too_little_shared_memory_blames_no_clip(manifest: Path, message: str) -> None:
    """Docker gives 64 MB."""
    data = DataConfig(manifest="", num_workers=2)
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views[:1])
    with (
        pytest.raises(ConfigError, match=r"num_workers=2: shared memory .* too small .*--shm-size=8g, or .*workers=0$"),
        lost_workers_named(dataset, data),
    ):
        raise RuntimeError(message)


def test_shared_memory_that_is_full_before_the_first_worker(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(manifest="", num_workers=2)
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views[:1])

    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.multiprocessing, "Queue", full)
    loader = build_loader(dataset, [[Key(0, 0, 0)]], data, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"num_workers=2: shared memory .* too small"):
        next(iter(loader))


def test_a_hanging_worker_does_not_outlive_the_run(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a run ends for, nobody waits for a worker that ignores requests to stop."""
    data = DataConfig(manifest="", num_workers=1, num_frames=2, fps=5, size=32, audio_seconds=0.5, sample_rate=8000)
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views)
    sample = ClipDataset._sample
    monkeypatch.setattr(ClipDataset, "_sample", lambda self, key: time.sleep(1000 * key.id) or sample(self, key))
    loader = build_loader(dataset, [[Key(0, 0, 0)], [Key(0, 1, 0)]], data, device=torch.device("cpu"))
    began = time.perf_counter()
    with lost_workers_named(dataset, data):
        next(iter(loader))
    assert multiprocessing.active_children() == []
    assert time.perf_counter() - began < 30


def test_a_death_that_was_not_heard_is_noticed_later(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process waits elsewhere: here it sleeps, in a run for the rest of what the dead worker was sending."""
    monkeypatch.setattr("avssl.data.loader.CHECK_SECONDS", 0.2)
    data = load(CONFIG, [*TINY, f"data.manifest={manifest}", "data.num_workers=1"]).data
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views)
    loader = build_loader(dataset, [[Key(0, row, 0)] for row in range(12)], data, device=torch.device("cpu"))

    def wait_unheard() -> None:
        arrivals = iter(loader)
        next(arrivals)
        heard = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            os.kill(arrivals._workers[0].pid, signal.SIGKILL)
            time.sleep(10)
        finally:
            signal.signal(signal.SIGCHLD, heard)

    with (
        pytest.raises(WorkerLost, match=r"a worker died .killed by signal: Killed") as lost,
        lost_workers_named(dataset, data),
    ):
        wait_unheard()
    assert lost.value.__cause__


def test_a_quarantined_clip_keeps_its_place_in_a_run(manifest: Path, tmp_path: Path) -> None:
    """AVID-CMA refuses more positives than there are clips; a run that began keeps the clips that it began with."""
    small = [*TINY, "optim.warmup_epochs=0", f"data.manifest={manifest}", f"run.dir={tmp_path / 'run'}"]
    settings = [*small, "method.num_positives=9", "model.init=null", "data.policy.quarantined=error"]
    settings += ["method.mine_from_epoch=1"]
    cma = ROOT / "configs" / "toy" / "avid_cma.yaml"
    assert not train(load(cma, [*settings, "run.max_steps=2"]))
    before = read_manifest(manifest)
    row = before.column("path").tolist().index(DEADLY)
    add_to_quarantine(manifest, Entry(DEADLY, str(before.column("content_key")[row]), "a worker died"))
    assert train(load(cma, settings))


def test_other_errors_pass(manifest: Path) -> None:
    data = DataConfig(manifest="")
    dataset = ClipDataset(read_manifest(manifest), data, AVID.views[:1])
    with pytest.raises(RuntimeError, match="of another kind"), lost_workers_named(dataset, data):
        raise RuntimeError("of another kind")


ORPHANS = """
import os, signal, sys
import torch
from avssl.config import DataConfig
from avssl.data.dataset import ClipDataset
from avssl.data.loader import build_loader
from avssl.data.manifest import read_manifest
from avssl.data.sampling import Key
from avssl.methods.avid import AVID

data = DataConfig(manifest="", num_frames=2, fps=5, size=32, audio_seconds=0.5, sample_rate=8000, num_workers=2)
clips = ClipDataset(read_manifest(sys.argv[1]), data, AVID.views)
arrivals = iter(build_loader(clips, [[Key(0, 0, 0)]] * 20, data, device=torch.device("cpu")))
next(arrivals)
print(*(worker.pid for worker in arrivals._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
def test_workers_end_with_a_killed_main_process(manifest: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANS, str(manifest)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [Path("/proc") / pid for pid in done.stdout.split()]
    assert len(workers) == 2
    since = time.monotonic()
    while any(worker.exists() and "(zombie)" not in (worker / "status").read_text() for worker in workers):
        assert time.monotonic() - since < 3.0  # torch's own watch looks every 5 seconds
        time.sleep(0.05)
