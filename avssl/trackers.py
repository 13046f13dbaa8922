"""Experiment trackers beside `log.jsonl`: TensorBoard, Weights & Biases, MLflow (run.loggers)."""

import importlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from avssl.files import digest, first_line

PROJECT = "avssl"  # project or experiment, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says another


class Tracker(Protocol):
    """What a run reports its numbers to."""

    def add(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class WandB:
    """A run of Weights & Biases, the same one when the folder's run is resumed. WANDB_MODE=offline keeps it in the
    folder."""

    def __init__(self, folder: Path, *, config: Mapping[str, Any]) -> None:
        wandb = _imported("wandb")
        where = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": folder.name, "dir": str(folder)}
        own = digest(folder.resolve(), num_bytes=8)
        self._run = wandb.init(**where, id=own, resume="allow", config=dict(config))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, the same one when the folder's run is resumed: its id is kept in
    mlflow.json."""

    def __init__(self, folder: Path, *, config: Mapping[str, Any]) -> None:
        self._mlflow = _imported("mlflow")
        kept = folder / "mlflow.json"
        before = json.loads(kept.read_text())["run_id"] if kept.exists() else None
        if before is None:
            self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        run = self._mlflow.start_run(run_id=before, run_name=folder.name)
        if before is None:
            kept.write_text(json.dumps({"run_id": run.info.run_id}) + "\n")
            self._mlflow.log_dict(dict(config), "config.json")

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class Guarded:
    """A tracker that may fail, such as without a network: it is then left alone, and the run goes on."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker: Tracker | None = tracker
        self._name = name

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracker is None:
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        try:
            self._tracker.add(step, finite)
        except Exception as error:  # whatever it raises
            self._give_up(error)

    def close(self) -> None:
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        reason = first_line(error)
        print(f"warning: {self._name} takes no more metrics ({reason}); log.jsonl has all", file=sys.stderr)


def check_installed(loggers: tuple[str, ...]) -> None:
    """Raises ValueError: a tracker's package is not installed."""
    for name in loggers:
        if name != "tensorboard":
            _imported(name)


def open_trackers(
    loggers: tuple[str, ...], folder: Path, *, first_step: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers of run.loggers.

    Raises:
        OSError: TensorBoard's folder cannot be written to.
        ValueError: another one cannot be opened.
    """
    found: list[Tracker] = []
    for name in loggers:
        if name == "tensorboard":
            found.append(TensorBoard(folder, first_step=first_step))
        else:
            try:
                tracker = {"wandb": WandB, "mlflow": MLflow}[name](folder, config=config)
            except Exception as error:  # whatever it raises
                raise ValueError(f"run.loggers: {name} cannot be opened ({first_line(error)})") from error
            found.append(Guarded(tracker, name))
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"run.loggers names {name}, which is not installed: pip install 'avssl[{name}]'") from error
