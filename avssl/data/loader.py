"""Loading batches in worker processes, in the order of the keys; each worker notes its clip, so that one that dies or
hangs leaves the name of its file.
"""

import errno
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from avssl.config import ConfigError, DataConfig
from avssl.data.dataset import ClipDataset, ClipNote, collate
from avssl.data.manifest import read_manifest
from avssl.data.policy import admit
from avssl.data.sampling import Key, TrainingBatches
from avssl.structs import Batch
from avssl.transforms.views import View, apply_views
from avssl.workers import Patience, state_of

PREFETCH = 4  # batches that each worker prepares ahead
CHECK_SECONDS = 5.0  # between checks for dead workers
KILL_SECONDS = 5.0  # for a killed worker to end: one that waits for a lost disk does not


class WorkerLost(RuntimeError):
    """A worker process died or hung.

    Attributes:
        ids: rows of the manifest that such a worker was reading.
    """

    def __init__(self, reason: str, ids: Sequence[int]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.ids = tuple(ids)


def build_loader(
    dataset: ClipDataset, batches: Iterable[Sequence[Key]], data: DataConfig, *, device: torch.device
) -> DataLoader[Batch]:
    """Iterate over batches of keys; pinned memory when they go to a GPU.

    Raises (while iterating, or at any later moment of the main process: see `lost_workers_named`):
        RuntimeError: a worker died.
        WorkerLost: a worker was silent for data.worker_timeout_seconds.
    """
    workers = data.num_workers
    if workers:
        dataset.note_clips(workers)
    return _Loader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_prepare_worker,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=device.type == "cuda",
    )


def clip_loader(
    data: DataConfig,
    *,
    views: Sequence[View] = (View("video"), View("audio", recipe="audio")),
    num_epochs: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Augmented batches for a training loop of one's own, in the order in which a run has them.

    Args:
        data: such as `load_config("toy/avid", ["data.manifest=my_clips/manifest.parquet"]).data`; says which clips, how
            many of them in a batch, and how they are cut and augmented.
        views: of each clip: here one of its frames, and one of its sound at the same seconds.

    Yields:
        batch.video["video"] (B, 3, T, size, size), batch.audio["audio"] (B, 1, S, F), batch.ids (B,) rows of the
        manifest, -1 for a file that could not be read (batch.errors says why), batch.has_video and batch.has_audio.

    Raises:
        ManifestError, ConfigError: the clips cannot be used.
    """
    manifest, device = read_manifest(data.manifest, root=data.root), torch.device(device)
    valid = np.flatnonzero(admit(manifest, data).valid)
    if not len(valid):
        raise ConfigError(f"no usable clip with data.split={data.split or 'null'} in {data.manifest}")
    dataset = ClipDataset(manifest, data, views, seed=seed)
    sizes = {"clips_per_video": data.clips_per_video, "batch_size": data.batch_size}
    batches = TrainingBatches(valid, **sizes, num_epochs=num_epochs, seed=seed)
    loader = build_loader(dataset, batches, data, device=device)
    with lost_workers_named(dataset, data):
        for batch in loader:
            yield apply_views(batch.to(device), views, data)


class _Loader(DataLoader):
    """Differs from torch: waits as long as `Patience` lasts; `timeout` goes on while the process is stopped."""

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _Arrivals(self) if self.num_workers else super()._get_iterator()


class _Arrivals(_MultiProcessingDataLoaderIter):
    def __init__(self, loader: DataLoader) -> None:
        self._start_waiting(loader.dataset.data.worker_timeout_seconds)
        try:
            super().__init__(loader)
        except OSError as error:
            self._shutdown = True  # there is nothing to shut down
            if error.errno != errno.ENOSPC:
                raise
            raise _too_small(loader.num_workers) from error

    def _start_waiting(self, seconds: float) -> None:
        self._seconds, self._patience = seconds, Patience(seconds)
        self._ticks: Counter[ClipNote] = Counter()  # that a worker was seen at a clip

    def _try_get_data(self, timeout: float | None = None) -> tuple[bool, Any]:
        came, data = super()._try_get_data(self._patience.tick)
        if came:
            self._start_waiting(self._seconds)
            return came, data
        self._ticks.update(notes := self._dataset.notes())
        if self._patience.spend(worker.pid for worker in self._workers):
            long = self._seconds / 2 / self._patience.tick
            at = [note for note in notes if note.id >= 0 and self._ticks[note] > long]
            raise WorkerLost(
                f"a worker gave nothing for {self._seconds:g} seconds (data.worker_timeout_seconds)",
                [note.id for note in at if state_of(note.pid) not in "TtZ"],
            )
        return came, data


@contextmanager
def lost_workers_named(dataset: ClipDataset, data: DataConfig) -> Iterator[None]:
    """Turn the loader's error about a worker into WorkerLost, which names its clips; at the end, end the workers.

    For all code that runs while the workers do: torch raises anywhere in the main process as soon as one dies. In
    another thread than the main one, where Python has no signals, only the loader notices it.

    Raises:
        ConfigError: shared memory is too small for the workers' batches.
    """
    try:
        with _checking_workers(dataset):
            yield
    except RuntimeError as error:
        text = str(error)
        if re.search(r"(?s)^(?:Caught|DataLoader ).*(?:\(shm\)|shared memory|Bus error|No space left)", text):
            raise _too_small(data.num_workers) from error
        if not text.startswith("DataLoader "):
            raise
        died = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text)
        pids = [int(pid) for pid in died.group(1).split(",")] if died else []
        ids = [note.id for note in dataset.notes() if note.id >= 0 and note.pid in pids]
        raise WorkerLost(f"a worker died ({_exit_reason(error)})", ids) from error
    finally:
        _kill(dataset.notes())


def _too_small(num_workers: int) -> ConfigError:
    return ConfigError(
        f"data.num_workers={num_workers}: shared memory (/dev/shm) is too small for their batches: give it more, as "
        "with docker run --shm-size=8g, or set num_workers=0"
    )


def _has_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _checking_workers(dataset: ClipDataset) -> Iterator[None]:
    """Check for dead workers every few seconds: torch raises only once, on SIGCHLD; if that is swallowed, the main
    process may wait forever for the rest of a batch."""
    if not (dataset.notes() and _has_signals()):
        yield
        return
    handler = signal.signal(signal.SIGALRM, lambda number, frame: _raise_if_dead(dataset.notes()))
    before = signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS, CHECK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)  # of a loader around this one


def _raise_if_dead(notes: Sequence[ClipNote]) -> None:
    """Raise RuntimeError as torch does for a worker that was killed or failed, which stays to be waited for."""
    for note in notes:
        try:
            end = os.waitid(os.P_PID, note.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) if note.pid > 0 else None
        except ChildProcessError:  # waited for: it ended as it should
            continue
        if end is not None and end.si_code != os.CLD_EXITED:
            raise RuntimeError(
                f"DataLoader worker (pid {note.pid}) is killed by signal: {signal.strsignal(end.si_status)}"
            )
        if end is not None and end.si_status:
            raise RuntimeError(f"DataLoader worker (pid {note.pid}) exited unexpectedly with code {end.si_status}")


def _kill(notes: Sequence[ClipNote]) -> None:
    """End the workers: they ignore SIGTERM, and one that hangs would keep the main process from ending."""
    pids = {note.pid for note in notes}
    # torch would raise again for each of them
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if pids and _has_signals() else None
    try:
        for process in multiprocessing.active_children():
            if process.pid in pids:
                process.kill()
                process.join(timeout=KILL_SECONDS)
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _exit_reason(error: RuntimeError) -> str:
    """The part of torch's message that tells how it ended."""
    text = f"{error.__cause__} {error}"  # the first knows the signal
    found = re.search(r"killed by signal: [^.]*|exited unexpectedly[^.:]*", text)
    if not found:
        return str(error)
    return found.group(0).replace(": Killed", ": Killed, as the system does when memory runs out")


def _prepare_worker(worker: int) -> None:
    """One thread each. Stop signals, sent to the whole process group, are for the main process, which saves first."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker as soon as the main process is gone: torch's own way out can wait for it without end."""
    multiprocessing.parent_process().join()
    os._exit(1)
