"""Kill a small run at random moments, resume it each time, and compare it with an uninterrupted run bit for bit.

    python -m tests.rigs.chaos
    python -m tests.rigs.chaos --kills 3 --seed 1 --json

Linux; needs no data: the set is made on the spot. Exit code: 0 equal, 1 different (or an attempt failed by itself), 2
wrong call.

Each attempt is a forked process that calls `train()` as tools/train.py does and is ended by SIGKILL together with its
workers. Forked and not started anew, because importing torch takes far longer than the whole small run: most moments of
an attempt would fall into the import, where nothing is written yet. For the same reason the parent does nothing with
torch that starts threads before its last fork.

Where a kill fell is known and not guessed: the attempt keeps one shared byte up to date around the calls that save,
export and mine (wrapped in the attempt only; the package has no hook), and a dead process does not change it any more.
"""

import argparse
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.config import Config, load
from avssl.logs import RunLog
from avssl.methods.avid_cma import AVIDCMA
from avssl.training import loop
from avssl.training.checkpoint import ENCODERS, LAST, CheckpointError, load_checkpoint
from tests.support.clips import make_set
from tests.support.runs import TINY

PHASES = ("start-up", "training", "checkpoint", "export", "mining", "complete")
AIMS = ("any", "checkpoint", "mining", "training", "checkpoint", "any", "mining", "export", "start-up")  # in turn
NOT_COMPARED = {"clips_per_second", "data_wait"}  # what time decides
PHASE_SECONDS = {"start-up": 0.2, "training": 0.1, "checkpoint": 0.04, "export": 0.02, "mining": 0.001}  # about
ATTEMPT_SECONDS = 300.0  # an attempt that takes longer hangs


class ChaosError(RuntimeError):
    """A run did not survive: the message says how, and where its output is."""


def run_chaos(folder: Path, *, num_kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume `num_kills` times; a run that completes before is compared, and another one is begun.

    Args:
        folder: new or empty; the set, all runs and `output.txt` of the attempts go there.
        num_kills: at least 1.
        seed: draws at which moments.

    Returns:
        kills, during {phase: kills}, partial_files (kills after which one lay beside the checkpoint), runs, equal,
        differences (at most 20), seed, seconds.

    Raises:
        ChaosError: an attempt ended otherwise than complete or killed, or a checkpoint was damaged or went back.
        ValueError: the folder is in use, or num_kills < 1.
    """
    if num_kills < 1:
        raise ValueError(f"num_kills={num_kills}: expected at least 1")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    since, draw = time.perf_counter(), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    _Attempt(folder, partial(make_set, folder / "clips", num_train=12, num_test=0)).wait()
    started = time.perf_counter()
    _Attempt(folder, partial(loop.train, small_run(folder, "whole"))).wait()
    duration = time.perf_counter() - started
    aims = list(islice(cycle(AIMS), num_kills))
    kills, differences, runs = [], [], 0
    while aims or not runs:
        runs += 1
        run = folder / f"killed{runs}"
        while (kill := _attempt_to_kill(folder, run, aims, draw, duration)) is not None:
            kills.append(kill)
            beside = f", beside it {', '.join(kill.partial_files)}" if kill.partial_files else ""
            print(f"kill {len(kills)}: {kill.phase}, {run.name} saved at step {kill.step}{beside}", file=sys.stderr)
        differences += compare_runs(folder / "whole", run)
    during = Counter(kill.phase for kill in kills)
    return {
        "kills": len(kills),
        "during": {phase: during[phase] for phase in PHASES},
        "partial_files": sum(bool(kill.partial_files) for kill in kills),
        "runs": runs,
        "equal": not differences,
        "differences": differences[:20],
        "seed": seed,
        "seconds": time.perf_counter() - since,
    }


@dataclass(frozen=True)
class _Kill:
    phase: str  # in which the attempt died
    step: int  # of the checkpoint that it left; 0 = none
    partial_files: list[str]  # beside it, of this kill or an earlier one


def _attempt_to_kill(folder: Path, run: Path, aims: list[str], draw: random.Random, duration: float) -> _Kill | None:
    """Start or resume a run and kill it as the first of `aims` says, which is then used up; None when it completed."""
    before = _saved_step(run)
    attempt = _Attempt(folder, partial(loop.train, small_run(folder, run.name)))
    if aims:
        _kill_at_random(attempt, aims[0], draw, duration)
    if attempt.wait():
        return None
    aims.pop(0)
    kill = _Kill(attempt.phase, _saved_step(run), sorted(path.name for path in run.glob(".*.partial")))
    if kill.step < before:
        raise ChaosError(f"{run / LAST} went back from step {before} to {kill.step}")
    return kill


def _saved_step(run: Path) -> int:
    """Step of a run's checkpoint, which must be readable at any moment; 0 = none yet."""
    try:
        return load_checkpoint(run)["step"] if (run / LAST).exists() else 0
    except CheckpointError as error:
        raise ChaosError(str(error)) from error


def compare_runs(whole: Path, killed: Path) -> list[str]:
    """What differs between two complete runs: every entry of the checkpoints (model, optimizer, step) bit for bit, the
    exported encoders, the lines of the logs but for speeds, and files left over. Empty when all is equal.
    """
    states = [_flat(load_checkpoint(run)) for run in (whole, killed)]
    names = sorted(states[0].keys() | states[1].keys())
    differences = [f"{name} in {LAST}" for name in names if not _same(states[0].get(name), states[1].get(name))]
    exports = [(run / ENCODERS).read_bytes() for run in (whole, killed)]
    differences += [] if exports[0] == exports[1] else [ENCODERS]
    logs = [_compared_lines(run / "log.jsonl") for run in (whole, killed)]
    if logs[0] != logs[1]:
        place = next((i for i, (a, b) in enumerate(zip(*logs, strict=False)) if a != b), min(map(len, logs)))
        differences.append(f"log.jsonl from line {place + 1} ({len(logs[0])} and {len(logs[1])} lines)")
    left = sorted({path.name for path in killed.iterdir()} - {path.name for path in whole.iterdir()})
    return [f"{killed.name}: {difference}" for difference in [*differences, *left]]


def small_run(folder: Path, name: str) -> Config:
    """AVID-CMA that mines before every epoch and saves every 2 of its 24 steps, with one worker."""
    (folder / "defaults.yaml").write_text("{}\n")
    own = [f"data.manifest={folder / 'clips' / 'manifest.parquet'}", f"run.dir={folder / name}"]
    own += ["data.num_workers=1", "optim.epochs=4", "run.device=cpu", "run.checkpoint_every=2"]
    own += ["method.name=avid_cma", "method.num_negatives_within=4", "method.num_positives=2"]
    return load(folder / "defaults.yaml", [*TINY, *own, "method.mine_every=1", "method.mine_from_epoch=1"])


class _Attempt:
    """A forked process, leader of its own group, that does `work` and keeps its phase in a shared byte."""

    def __init__(self, folder: Path, work: Callable[[], object]) -> None:
        self._byte = mmap.mmap(-1, 1)
        self._output = folder / "output.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._child(work))
        _lead_group(self.pid)
        self._status: int | None = None

    @property
    def phase(self) -> str:
        return PHASES[self._byte[0]]

    @property
    def alive(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is None

    def kill(self) -> None:
        """SIGKILL to the attempt and all its workers."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> bool:
        """True when the work was done, False when the attempt was killed."""
        since = time.perf_counter()
        while self.alive:
            if time.perf_counter() - since > ATTEMPT_SECONDS:
                self.kill()
                raise ChaosError(f"an attempt hung while {self.phase}: see {self._output}")
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(self._status)
        if code not in (0, -signal.SIGKILL):
            raise ChaosError(f"an attempt ended with exit code {code} while {self.phase}: see {self._output}")
        return code == 0

    def _child(self, work: Callable[[], object]) -> int:
        _lead_group(0)
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        self._mark_phases()
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            return 1
        self._byte[0] = PHASES.index("complete")
        return 0

    def _mark_phases(self) -> None:
        """Wrap what saves, exports, mines and opens the log; this process only."""
        loop.save_checkpoint = self._marked("checkpoint", loop.save_checkpoint)
        loop.export_encoders = self._marked("export", loop.export_encoders)
        AVIDCMA.mine = self._marked("mining", AVIDCMA.mine)
        enter = RunLog.__enter__

        def enter_training(log: RunLog) -> RunLog:
            self._byte[0] = PHASES.index("training")
            return enter(log)

        RunLog.__enter__ = enter_training

    def _marked(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*given: object, **named: object) -> object:
            before, self._byte[0] = self._byte[0], PHASES.index(phase)
            try:
                return function(*given, **named)
            finally:
                self._byte[0] = before

        return call


def _kill_at_random(attempt: _Attempt, aim: str, draw: random.Random, duration: float) -> None:
    """Kill at a moment of the aimed phase, or at any moment; nothing when the attempt is complete before.

    Args:
        duration: seconds of an uninterrupted attempt.
    """
    entries = draw.randint(1, 3) if aim in ("checkpoint", "export") else 1  # which of the next times it is entered
    delay, before = draw.random() * PHASE_SECONDS.get(aim, duration), None
    while attempt.alive and entries:
        now = attempt.phase
        entries -= now != before and aim in ("any", now)
        before = now
        time.sleep(1e-4)
    time.sleep(delay)
    if attempt.alive:
        attempt.kill()


def _lead_group(pid: int) -> None:
    """Parent and child both ask, as neither knows who comes first."""
    try:
        os.setpgid(pid, pid)
    except (PermissionError, ProcessLookupError):  # the child has gone on, or is gone
        return


def _flat(value: object, name: str = "") -> dict[str, object]:
    """The leaves of nested dictionaries and lists by their path, without the config, which names the run's folder."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {name: value}
    return {
        path: leaf
        for key, entry in items
        if (name, key) != ("", "config")
        for path, leaf in _flat(entry, f"{name}.{key}" if name else str(key)).items()
    }


def _same(one: object, two: object) -> bool:
    """Equal type, shape and bits; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        alike = one.dtype == two.dtype and one.shape == two.shape
        return alike and one.contiguous().numpy().tobytes() == two.contiguous().numpy().tobytes()
    return type(one) is type(two) and one == two


def _compared_lines(path: Path) -> list[dict[str, Any]]:
    """All lines, which must be whole, without what time decides."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in NOT_COMPARED} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--keep", type=Path, help="new folder for the runs; without it they are removed at the end")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.keep or Path(temporary)
            result = run_chaos(folder, num_kills=arguments.kills, seed=arguments.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ChaosError as error:
        print(f"error: {error} (run again with --keep FOLDER)", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(result))
    else:
        fell = ", ".join(f"{number} {phase}" for phase, number in result["during"].items())
        print(f"{result['kills']} kills in {result['runs']} runs and {result['seconds']:.0f} s, seed {result['seed']}")
        print(f"fell into: {fell}; after {result['partial_files']} a partial file lay beside the checkpoint")
        print("equal to the uninterrupted run, bit for bit" if result["equal"] else "DIFFERENT:")
        for difference in result["differences"]:
            print(f"  {difference}")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
