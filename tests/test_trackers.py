"""Trackers get what log.jsonl gets, and go on in the same run of theirs; a failing one does not stop the training."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from avssl.data.manifest import Manifest
from avssl.logs import read_log
from avssl.training.loop import train
from tests.support.runs import config

pytestmark = pytest.mark.slow


class Recorder:
    """Both packages, as far as they are used: runs by id, {step: metrics}."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.calls: list[Any] = []
        self.fails = False

    def init(self, *, id: str, **how: Any) -> SimpleNamespace:
        self.calls.append(how)
        return SimpleNamespace(
            log=lambda metrics, step: self._log(id, step, metrics), finish=lambda: self.calls.append("finish")
        )

    def set_experiment(self, name: str) -> None:
        self.calls.append(name)

    def start_run(self, *, run_id: str | None, run_name: str) -> SimpleNamespace:
        self.current = run_id or f"{run_name}-{len(self.runs)}"
        return SimpleNamespace(info=SimpleNamespace(run_id=self.current))

    def log_dict(self, content: dict, file: str) -> None:
        self.calls.append((file, content))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._log(self.current, step, metrics)

    def end_run(self) -> None:
        self.calls.append("end")

    def _log(self, id: str, step: int, metrics: dict[str, float]) -> None:
        if self.fails:
            raise ConnectionError("no network\nat all")
        self.runs.setdefault(id, {}).setdefault(step, {}).update(metrics)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_every_number_in_one_run(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder, loggers = Recorder(), f"run.loggers=[{name}]"
    monkeypatch.setitem(sys.modules, name, recorder)
    assert not train(config(clip_set, tmp_path / "run", loggers, "run.max_steps=3"))
    assert train(config(clip_set, tmp_path / "run", loggers))
    assert not (tmp_path / "run" / "tensorboard").exists()
    ((_, found),) = recorder.runs.items()
    expected: dict[int, dict[str, float]] = {}
    for line in read_log(tmp_path / "run" / "log.jsonl"):
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        expected.setdefault(line["step"], {}).update(numbers)
    assert found == expected
    if name == "wandb":
        first, end, second, _ = recorder.calls
        assert (first["project"], first["name"], first["resume"], end) == ("avssl", "run", "allow", "finish")
        assert first["config"]["optim"]["epochs"] == second["config"]["optim"]["epochs"] == 2
    else:
        experiment, (file, content), *ends = recorder.calls
        assert (experiment, file, content["method"]["name"], ends) == ("avssl", "config.json", "avid", ["end", "end"])
        assert json.loads((tmp_path / "run" / "mlflow.json").read_text()) == {"run_id": "run-0"}


def test_a_tracker_that_fails_is_left_alone(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    recorder.fails = True
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    assert train(config(clip_set, tmp_path / "run", "run.loggers=[tensorboard,wandb]"))
    assert capsys.readouterr().err.count("warning: wandb takes no more metrics (no network); log.jsonl has all") == 1
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_tracker_that_cannot_be_opened_is_one_sentence(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    with pytest.raises(ValueError, match=r"run\.loggers: mlflow cannot be opened \(.*set_experiment"):
        train(config(clip_set, tmp_path / "run", "run.loggers=[mlflow]"))


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"run\.loggers names mlflow, .*pip install 'avssl\[mlflow\]'"):
        train(config(clip_set, tmp_path / "run", "run.loggers=[mlflow]"))
    assert not (tmp_path / "run").exists()
