"""From a list of files to the table of a manifest: probing in long-lived worker processes.

What lives here: the pool with its time limit per file, and joining its facts with what is known of each row. What does
not: the facts themselves (media/probe.py) and how files are found (datasets/*.py).
"""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from avssl.data.manifest import SCHEMA
from avssl.media.probe import Probe

FACTS = tuple(asdict(Probe()))
WORKER_COMMAND = [sys.executable, "-m", "avssl.media.probe"]


def build_table(
    root: str | Path, rows: Sequence[Mapping[str, Any]], *, num_workers: int = 2, timeout_seconds: float = 60.0
) -> pa.Table:
    """Probe the files of all rows, each file once, and return the table of a manifest.

    Args:
        root: folder that the paths are relative to.
        rows: in the order of the manifest: "path" and, where known, start, end, group, label, split, further columns.
            `group` defaults to the path. A further column named like a probed fact is kept as listed_<name>.
        num_workers: processes.
        timeout_seconds: per file; a file that takes longer gets the status timeout.
    """
    root = Path(root)
    paths = sorted({row["path"] for row in rows})
    facts = {}
    probed = probe_files([root / path for path in paths], num_workers=num_workers, timeout_seconds=timeout_seconds)
    for i, probe in tqdm(probed, total=len(paths), desc="probing", unit="clip"):
        facts[paths[i]] = asdict(probe)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    further = {name: None for row in rows for name in row if name in FACTS or name not in SCHEMA.names}
    for row in rows:
        found = {"group": row["path"]} | {name: value for name, value in row.items() if value is not None}
        for name in SCHEMA.names:
            columns[name].append(facts[row["path"]][name] if name in FACTS else found.get(name))
    table = pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names})
    for name in further:
        values = pa.array([row.get(name) for row in rows])
        table = table.append_column(f"listed_{name}" if name in FACTS else name, values)
    return table


def probe_files(
    paths: Sequence[str | Path], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Probe]]:
    """Yield (position in `paths`, facts) as they come; a file that hangs or brings its worker down stops nothing.

    Args:
        paths: files.
        num_workers: processes.
        timeout_seconds: per file, the start of a new worker (below a second) included.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(len(paths)):
        todo.put(i)

    def work() -> None:
        with _Worker(timeout_seconds) as worker:
            while True:
                try:
                    i = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((i, worker.probe(paths[i])))
                except OSError as error:  # no process could be started: the caller must hear of it
                    done.put((i, error))
                    return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(num_workers, len(paths)))]
    for thread in threads:
        thread.start()
    try:
        for _ in paths:
            i, answer = done.get()
            if isinstance(answer, OSError):
                raise answer
            yield i, answer
    finally:  # also when the caller stops early
        while not todo.empty():
            try:
                todo.get_nowait()
            except queue.Empty:
                break
        for thread in threads:
            thread.join()


class _Worker:
    """One process that probes file after file; replaced after it was killed or died."""

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def probe(self, path: str | Path) -> Probe:
        if self.process is None:
            self.process = subprocess.Popen(
                WORKER_COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        process, late = self.process, threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(self.timeout_seconds, give_up)
        alarm.start()
        try:
            print(json.dumps(str(path)), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            alarm.cancel()
            alarm.join()  # or it might kill the process during the next file
        if answer.endswith("\n"):
            if late.is_set():
                self._stop()
            return Probe(**json.loads(answer))
        code = self._stop()
        if late.is_set():
            return Probe(status="timeout", reason=f"not probed within {self.timeout_seconds:g} seconds")
        return Probe(status="crashed", reason=f"the worker that probed it died (exit code {code})")

    def _stop(self) -> int | None:
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        return code
