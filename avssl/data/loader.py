"""Loading batches in worker processes, in the order of the keys; each worker notes its clip, so that one that dies or
hangs leaves the name of its file.
"""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import cv2
import torch
from torch.utils.data import DataLoader

from avssl.config import DataConfig
from avssl.data.dataset import ClipDataset, ClipNote, collate
from avssl.data.sampling import Key
from avssl.structs import Batch

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
        RuntimeError: a worker died or was silent for data.worker_timeout_seconds.
    """
    workers = data.num_workers
    if workers:
        dataset.note_clips(workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_prepare_worker,
        prefetch_factor=PREFETCH if workers else None,
        timeout=data.worker_timeout_seconds if workers else 0,
        pin_memory=device.type == "cuda",
    )


@contextmanager
def lost_workers_named(dataset: ClipDataset, data: DataConfig) -> Iterator[None]:
    """Turn the loader's error about a worker into WorkerLost, which names its clips; at the end, end the workers.

    For all code that runs while the workers do: torch raises anywhere in the main process as soon as one dies.
    """
    try:
        with _checking_workers(dataset):
            yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader "):
            raise
        notes = dataset.notes()
        died = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text)
        if died is None:  # timed out
            patience = data.worker_timeout_seconds / 2
            ids = [note.id for note in notes if note.id >= 0 and time.time() - note.since > patience]
            reason = f"a worker gave nothing for {data.worker_timeout_seconds:g} seconds (data.worker_timeout_seconds)"
        else:
            pids = [int(pid) for pid in died.group(1).split(",")]
            ids = [note.id for note in notes if note.id >= 0 and note.pid in pids]
            reason = f"a worker died ({_exit_reason(error)})"
        raise WorkerLost(reason, ids) from error
    finally:
        _kill(dataset.notes())


@contextmanager
def _checking_workers(dataset: ClipDataset) -> Iterator[None]:
    """Check for dead workers every few seconds: torch raises only once, on SIGCHLD; if that is swallowed, the main
    process may wait forever for the rest of a batch."""
    handler = signal.signal(signal.SIGALRM, lambda number, frame: _raise_if_dead(dataset.notes()))
    signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS, CHECK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


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
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise again for each of them
    try:
        for process in multiprocessing.active_children():
            if process.pid in pids:
                process.kill()
                process.join(timeout=KILL_SECONDS)
    finally:
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
