"""What a run reports: one JSON line per report (`log.jsonl`), trackers, a progress bar, and lines for a person. Rank 0
only.
"""

import json
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from avssl import distributed
from avssl.files import WriteError, atomic_write
from avssl.trackers import open_trackers

COLLAPSE_LIMITS = {"_std": 0.1, "_rank": 2.0}  # by ending of the metric: at or below, embeddings have collapsed
COLLAPSE_STEPS = 200  # that they stay there before a run warns: random encoders begin there


class RunningMean:
    """Means of named metrics since the last `pop`, over ranks too. Values stay on their device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        self._num += 1
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def pop(self) -> dict[str, float]:
        """The means so far, averaged over ranks (which must all call); starts anew."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        stacked = distributed.all_reduce(torch.stack([self._sums[name] for name in names]))
        means = (stacked / (self._num * distributed.world_size())).tolist()
        self._sums, self._num = {}, 0
        return dict(zip(names, means, strict=True))


class RunLog:
    """Where a run's metrics go. On ranks other than 0 every call does nothing.

    Args:
        folder: of the run.
        first_step: a resumed run continues from here; what was written after this step was saved, before the run
            was killed, is dropped, as it comes again.
        num_steps: of the whole run, for the progress bar.
        loggers: as run.loggers names them, and the configuration that they are told.

    Raises (on `report` and on leaving too):
        WriteError: the disk is full, or the folder may not be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        num_steps: int,
        loggers: tuple[str, ...] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.active = distributed.is_main()
        if not self.active:
            return
        self.path = folder / "log.jsonl"
        kept = [line for line in read_log(self.path) if _came_before(line, first_step)]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        try:
            self._trackers = open_trackers(loggers, folder, first_step=first_step, config=config or {})
        except OSError as error:
            raise WriteError(folder / "tensorboard", error) from error
        self._bar = tqdm(
            total=num_steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stderr, mininterval=1
        )

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line of metrics for a step (a number that is not finite as null)."""
        if not self.active:
            return
        line = {"step": step, **metrics}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({name: _jsonable(value) for name, value in line.items()}) + "\n")
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            for tracker in self._trackers:
                tracker.add(step, numbers)
        except OSError as error:
            raise WriteError(self.path, error) from error
        if "loss" in metrics:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {metrics.get('clips_per_second', 0):.0f} clips/s")

    def advance(self) -> None:
        if self.active:
            self._bar.update()

    def info(self, message: str) -> None:
        """A line for a person, above the progress bar."""
        if self.active:
            tqdm.write(message, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if not self.active:
            return
        self._bar.close()
        before, threading.excepthook = threading.excepthook, lambda problem: None
        try:
            for tracker in self._trackers:  # TensorBoard's thread writes what is left, and a failure comes back here
                tracker.close()
        except OSError as error:
            if kind is None:  # else the reason why the run ends is known already
                raise WriteError(self.path.parent / "tensorboard", error) from error
        finally:
            threading.excepthook = before


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`; a last line that a killed run left half written is passed over."""
    return list(log_lines(path))


def log_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The same one by one: all lines of a long run do not fit into memory."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not isinstance(entry, dict):
                return
            yield entry


def _came_before(line: Mapping[str, Any], first_step: int) -> bool:
    """Whether a line was written before its run was saved at `first_step`.

    A step's metrics, with its loss, come before the save; those of mining and reading for the next step, which carry
    the same number of steps done, come after it.
    """
    return line["step"] < first_step or (line["step"] == first_step and "loss" in line)


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def embedding_metrics(z: Tensor) -> dict[str, Tensor]:
    """Signs of collapse of unit vectors z (n, D): `std`, the mean over dimensions of the standard deviation times
    sqrt(D) (1 for vectors spread over the sphere, 0 when all are equal), and `rank`, the effective rank (Roy &
    Vetterli 2007) of the centered vectors, between 1 and min(n - 1, D)."""
    z = z.detach().float()
    std = z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5
    share = torch.linalg.svdvals(z - z.mean(dim=0)).clamp(min=1e-12)
    share = share / share.sum()
    return {"std": std, "rank": torch.exp(-(share * share.log()).sum())}
