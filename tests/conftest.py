"""What tests share: a small set of clips, made once, and calls of the commands."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from avssl.data.manifest import Manifest
from tests.support.clips import make_set
from tests.support.runs import Call, Outcome


@pytest.fixture(scope="session")
def clip_set(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """12 training and 6 test clips of two classes; one of each split has no audio. Not to be changed by tests."""
    return make_set(tmp_path_factory.mktemp("clips"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name != "test_commands_and_code_of_the_pages")  # minutes: not at the end


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # each worker has a core


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear heads of sets of some clips; where accuracies matter, tests ask for more."""
    monkeypatch.setattr("avssl.evaluate.heads.MIN_STEPS", 20)
    monkeypatch.setattr("avssl.evaluate.metrics.NUM_PARTITION_RESAMPLES", 20)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture
def call(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A tool run in this process, as importing torch anew for each call would take longer than the call."""

    def call(script: str, *arguments: object) -> Outcome:
        spec = importlib.util.spec_from_file_location(f"called_{Path(script).stem}", repository / script)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        spec.loader.exec_module(module)
        capsys.readouterr()
        try:
            code = module.main()
        except SystemExit as stop:  # argparse
            code = stop.code
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call
