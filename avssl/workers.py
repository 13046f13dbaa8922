"""Jobs in long-lived processes that may hang or die without stopping the rest: `serve` is a worker's loop, `Worker` one
process, `run_jobs` a pool of them. Jobs and answers are one line of JSON each. Nothing heavy is imported,
for fast starts.
"""

import contextlib
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

ORPHAN_SECONDS = 0.5  # between a worker's checks that its pool still lives
MEMORY_BYTES = 6 << 30  # address space of one worker; more raises MemoryError


class Patience:
    """How long others may take, counted while they and this process run: stopped (Ctrl-Z, a suspended job, a debugger)
    they are not late, and clocks do not matter.

    Args:
        seconds: that they may take.
    """

    def __init__(self, seconds: float) -> None:
        self.tick = min(1.0, seconds / 20)  # seconds to wait at a time; being stopped costs one tick at most
        self._left = seconds

    def spend(self, pids: Iterable[int]) -> bool:
        """Count one tick of waiting for the processes `pids`; whether none is left."""
        if not any(state_of(pid) in "Tt" for pid in pids):
            self._left -= self.tick
        return self._left <= 0


def state_of(pid: int) -> str:
    """Letter of the state of a process: T or t stopped, Z dead; R where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "R"


@dataclass(frozen=True)
class Lost:
    """A job without an answer: its worker took too long or died."""

    status: Literal["timeout", "crashed"]
    reason: str


def run_jobs(
    module: str, jobs: Sequence[Any], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Any | Lost]]:
    """Yield (position in `jobs`, answer) as they come; a job that hangs or kills its worker does not stop the others.

    Args:
        module: run as `python -m module`; it calls `serve`.
        jobs: JSON values.
        timeout_seconds: per job, including the start of a new worker (below a second).

    Raises:
        OSError, RuntimeError: no process or thread could be started.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(len(jobs)):
        todo.put(i)

    def work() -> None:
        with Worker(module, timeout_seconds) as worker:
            while True:
                try:
                    i = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((i, worker.ask(jobs[i])))
                except (OSError, RuntimeError) as error:  # raised by the caller's loop
                    done.put((i, error))
                    return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(num_workers, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            i, answer = done.get()
            if isinstance(answer, Exception):
                raise answer
            yield i, answer
    finally:  # also when the caller stops early
        with contextlib.suppress(queue.Empty):
            while True:
                todo.get_nowait()
        for thread in threads:
            thread.join()


def serve(answer: Callable[[Any], Any], *, memory_bytes: int = MEMORY_BYTES) -> None:
    """Answer one job per line until the input ends; what libraries print goes to stderr. Ends with its pool, even
    during a job.

    Args:
        memory_bytes: address space of this process.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    threading.Thread(target=_end_with_pool, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def _end_with_pool(pool: int) -> None:
    while os.getppid() == pool:
        time.sleep(ORPHAN_SECONDS)
    os._exit(1)


class Worker:
    """One process that does job after job, restarted after it was killed or died. For one thread at a time.

    Args:
        module: run as `python -m module`; it calls `serve`. Started with the first job.
        timeout_seconds: per job, including the start of a new process.
    """

    def __init__(self, module: str, timeout_seconds: float) -> None:
        self.module = module
        self.timeout_seconds = timeout_seconds
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def ask(self, job: Any) -> Any | Lost:
        """Answer of the module to a job, or how the process was lost."""
        if self.process is not None and self.process.poll() is not None:  # died after its last answer
            self.stop()
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        process, late, answered = self.process, threading.Event(), threading.Event()

        def kill_late() -> None:
            patience = Patience(self.timeout_seconds)
            while not answered.wait(patience.tick):
                if patience.spend([process.pid]):
                    late.set()
                    return process.kill()

        alarm = threading.Thread(target=kill_late, daemon=True)
        alarm.start()
        try:
            print(json.dumps(job), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            answered.set()
            alarm.join()  # or it might kill the process during the next job
        if answer.endswith("\n"):
            if late.is_set():
                self.stop()
            try:
                return json.loads(answer)
            except ValueError:
                self.stop()
                return Lost("crashed", f"the worker that had it answered {answer[:80]!r}")
        code = self.stop()
        if late.is_set():
            return Lost("timeout", f"not done within {self.timeout_seconds:g} seconds")
        return Lost("crashed", f"the worker that had it died (exit code {code})")

    def stop(self) -> int | None:
        """Kill the process, if there is one, and return its exit code; the next job starts another."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return code
