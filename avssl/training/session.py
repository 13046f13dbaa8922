"""One start of a run: its note in sessions.jsonl, requests to stop, and what is left when it ends in an error."""

import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

import avssl
from avssl import distributed
from avssl.config import Config, ConfigError, dumps
from avssl.data.dataset import CLOSED
from avssl.data.loader import WorkerLost
from avssl.data.manifest import Manifest
from avssl.data.quarantine import Entry, add_to_quarantine, quarantine_path
from avssl.files import WriteError, atomic_write, folder_lock
from avssl.logs import RunLog, read_log
from avssl.structs import Batch
from avssl.training.checkpoint import load_checkpoint

SESSIONS = "sessions.jsonl"
PAGE_SECONDS = 600.0  # between two pages of a run that goes on


class TrainingError(RuntimeError):
    """A run that cannot go on: the message says at which step, why, and which checkpoint is good."""


class StopRequest:
    """Turns the first SIGTERM or Ctrl-C into a polite request to save and stop; the second acts as usual. In a thread
    other than the main one, which has no signals, nothing is asked."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make and lock the run's folder, for all ranks. Raises LockedError; ConfigError: the folder cannot be used."""
    with ExitStack() as stack:
        if distributed.is_main():
            with _named(folder):
                stack.enter_context(folder_lock(folder))
        yield


def write_config(folder: Path, config: Config) -> None:
    """Write the run's config.yaml. Raises ConfigError: the folder cannot be used."""
    with _named(folder), atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(dumps(config))


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except WriteError as error:
        raise ConfigError(f"run.dir={folder}: {error}") from error


@contextmanager
def wrap_errors(last: Path, config: Config, manifest: Manifest) -> Iterator[None]:
    """Say of a run whose folder can no longer be written to, or whose worker is lost, what is left and how to go on.
    The clips that the worker was at go on the manifest's quarantine list.
    """
    try:
        yield
    except WriteError as error:
        raise TrainingError(f"{error}; {last_good(last)}; the same command continues") from error
    except WorkerLost as error:
        what = quarantine_clips(error, config.data.manifest, manifest)
        raise TrainingError(f"{what}; {last_good(last)}; the same command continues") from error


def quarantine_clips(lost: WorkerLost, manifest_path: str, manifest: Manifest) -> str:
    """Put the clips that a lost worker was at on the quarantine list, and say so."""
    if not lost.ids:
        return f"{lost.reason}, at no clip that could be named: too little memory, or data.num_workers too high?"
    files = ", ".join(str(manifest.path(row)) for row in lost.ids)
    try:
        for row in lost.ids:
            path, key = (manifest.table.column(name)[row].as_py() for name in ("path", "content_key"))
            add_to_quarantine(manifest_path, Entry(path, key, lost.reason))
    except WriteError as error:
        return f"{lost.reason} at {files}, which will happen again, since the quarantine list {error}"
    return f"{lost.reason} at {files}: on the quarantine list {quarantine_path(manifest_path)} now, no longer read"


def last_good(last: Path) -> str:
    if not last.exists():
        return "no checkpoint was written yet"
    return f"the last good checkpoint is {last} at step {load_checkpoint(last)['step']}"


def check_readable(batch: Batch, log: RunLog, step: int) -> None:
    """Name every file that could not be read; stop when a whole batch is lost."""
    for error in batch.errors:
        log.info(f"step {step}: not read, left out: {error}")
    if batch.errors:
        log.report(step, {"unreadable": list(batch.errors)})
    closed = [error for error in batch.errors if CLOSED in error]  # a batch of one such clip is no reason to stop
    if len(batch.errors) == len(batch) and not closed:  # rank 0 has no empty place
        raise TrainingError(
            f"step {step}: no file of the batch could be read (first: {batch.errors[0]}): is data.root right?"
        )


class PageWriter:
    """Writes RUN/report.html while the run goes on: after an epoch, at most every PAGE_SECONDS, in a process of its own
    that has no GPU. What it says is left to `avssl report`, which says it again."""

    def __init__(self, folder: Path, *, plugins: Sequence[str] = ()) -> None:
        self._call = [sys.executable, "-m", "avssl", "report", str(folder)]
        self._call += [word for name in plugins for word in ("--plugin", name)]
        self._last, self._writer = time.monotonic(), None

    def __enter__(self) -> Self:
        return self

    def look(self) -> None:
        """Begin to write when it is time, and the last page is written."""
        busy = self._writer is not None and self._writer.poll() is None
        if busy or time.monotonic() - self._last < PAGE_SECONDS:
            return
        self._last, silent = time.monotonic(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._writer = subprocess.Popen(self._call, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, **silent)

    def __exit__(self, *exc: object) -> None:
        if self._writer is not None:  # an older page must not replace the last one
            self._writer.terminate()
            self._writer.wait()


def _command() -> list[str]:
    """The words that started this process."""
    script = Path(sys.argv[0])
    is_ours = script.name == "avssl" or script.parts[-2:] == ("avssl", "__main__.py")
    return ["avssl", *sys.argv[1:]] if is_ours else ["python", *sys.argv]


def note_session(folder: Path, *, first_step: int, decoder: Mapping[str, str], device: str) -> None:
    """Write down that this process starts, or continues, a run at `first_step`.

    What an earlier one has noted stays, unless none of its steps is kept.

    Args:
        decoder: as `avssl.media.decoders.describe` gives it.

    Raises:
        WriteError: the disk is full, or the folder may not be written to.
    """
    session = {
        "first_step": first_step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(_command()),
        "machine": machine(),
        "processes": f"{distributed.world_size()} x {device}",
        "versions": versions(decoder),
    }
    kept = [each for each in read_sessions(folder) if each["first_step"] < first_step]
    with atomic_write(folder / SESSIONS) as temporary:
        temporary.write_text("".join(json.dumps(each) + "\n" for each in [*kept, session]))


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """What `note_session` has written, oldest first; none for a run of before there were such notes."""
    return read_log(folder / SESSIONS)


def versions(decoder: Mapping[str, str]) -> dict[str, str]:
    """Of what the numbers of a run depend on."""
    faiss = [name for name in ("faiss-gpu", "faiss-cpu") if _installed(name)]
    return {
        "avssl": avssl.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        decoder["name"]: decoder["version"],
        "FFmpeg": decoder["ffmpeg"],
        **{name: importlib.metadata.version(name) for name in faiss},
    }


def machine() -> str:
    """Cores, processor and GPU of this machine."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {_processor()}{gpu}, {platform.system()}"


def _processor() -> str:
    """The name that the system gives it; where there is none (some ARM), the architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
