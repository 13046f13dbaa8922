"""What is installed without the repository: the wheel's files, the commands, configurations by name, and the demo."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.processes]
BUILT_FROM = ("avssl", "configs", "datasets", "tools", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SUMMARY = {
    "agreement_precision": {"consensus", "union", "video", "audio", "chance"},
    "probe": {"chance", "shortcut", "random", "avid", "avid_cma"},
    "transfer": {"chance", "random", "avid_cma"},
    "retrieval": {"v2a_r1", "v2a_r5", "a2v_r1", "a2v_r5", "chance_r1"},
}
Call = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def avssl(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Calls the command of a wheel, installed over this environment's dependencies, in a folder of its own."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    for name in BUILT_FROM:  # copied, as a build writes beside its source
        if (repository / name).is_dir():
            shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repository / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(home), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = home.glob("*.whl")
    installed = home / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], check=True)
    shutil.rmtree(source)
    (home / "work").mkdir()

    def call(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [installed / "bin" / "avssl", *map(str, words)],
            cwd=home / "work",
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )

    return call


def test_help_and_versions(avssl: Call) -> None:
    assert "demo" in avssl("--help").stdout
    assert re.search(r"^avssl \d+\.\d+\.\d+$.*^torch \d.*^torchaudio \d", avssl("--version").stdout, re.M | re.S)


def test_configurations_and_data_sets_come_along(avssl: Call) -> None:
    done = avssl("train", "toy/avid", "data.manifest=lost.parquet")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "lost.parquet does not exist" in done.stderr
    assert "usage: datasets/kinetics.py" in avssl("datasets", "kinetics", "--help").stdout
    assert "invalid choice: 'kinetic'" in avssl("datasets", "kinetic").stderr


def test_the_demo(avssl: Call) -> None:
    done = avssl("demo", "--quick", "--num-train", 32, "--num-test", 24, "--out", "runs/quick", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    out = Path(done.args[0]).parents[2] / "work" / "runs" / "quick"
    summary = json.loads((out / "summary.json").read_text())
    assert json.loads(done.stdout) == summary
    assert summary.keys() >= {*SUMMARY, "seconds"}
    for section, names in SUMMARY.items():
        assert summary[section].keys() >= names, section
        assert all(0 <= value <= 1 for value in summary[section].values()), summary[section]
    for section, intervals in summary["intervals"].items():
        for name, (low, high) in intervals.items():
            assert 0 <= low <= summary[section][name] <= high <= 1, (section, name)
    assert summary["intervals"].keys() >= set(SUMMARY)
    assert summary["seconds"] > 0
    assert all((out / "embeddings" / name / "meta.json").exists() for name in ("avid", "avid_cma"))
    page = (out / "report.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)|url\(["']?([^"')]*)""", page)
    assert page.count("<svg") == 3
    assert len(links) >= 3 * 4  # three references with three others each, at least
    assert all((one or two).startswith(("data:", "#")) for one, two in links)
    assert not re.search(r"https?://|@import|<script", page)
    assert done.stderr.splitlines()[-1].startswith("next: avssl browse runs/quick/embeddings/avid_cma ")
