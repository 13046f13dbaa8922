"""What Python shows: the notebook runs from top to bottom and prints what it shows; what importing does."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_every_cell_runs_and_prints_what_it_shows(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads((repository / "docs" / "tour.ipynb").read_text())["cells"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(repository / "datasets")
    known: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec("".join(cell["source"]), known)
        shown = "".join(text for output in cell["outputs"] for text in output["text"])
        assert shown, cell["source"]
        assert shapes_of(out.getvalue()) == shapes_of(shown)


def shapes_of(text: str) -> list[str]:
    """The words of a text without its decimals and clips, which differ between machines."""
    return [word for word in text.split() if "." not in word and not word.strip("[],").isdigit() and "_" not in word]


def test_threads_that_wait_leave_the_core_unless_the_user_says_otherwise() -> None:
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
        code = "import sys, avssl, os; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
        found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert found.stdout.strip() == expected, found.stderr
