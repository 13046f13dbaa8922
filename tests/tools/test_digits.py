"""The digits and natural experiments in miniature: the whole way, on clips made here."""

import csv
import json
import sys
from pathlib import Path

import digits
import natural
import pytest

from avssl.config import load, merge_options
from avssl.methods import METHODS
from tests.support.clips import make_clip, make_digits
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OPTIONS = {
    "avid": ["method.num_negatives=8"],
    "avid_cma": ["method.num_negatives=8", "method.num_positives=2", "method.num_negatives_within=4"],
    "infonce": [],
}
SMALL = [line for line in TINY if not line.startswith("method.")]


def write_configs(folder: Path, methods: dict[str, list[str]]) -> Path:
    """Recipes of miniature size."""
    folder.mkdir(parents=True)
    for method, options in methods.items():
        lines = ["data:", "  manifest: none", "method:", f"  name: {method}", "  hidden_dim: 16"]
        lines += [f"  {option.removeprefix('method.').replace('=', ': ')}" for option in options]
        (folder / f"{method}.yaml").write_text("\n".join([*lines, "run:", "  dir: none", ""]))
    return folder


def call(module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    capsys.readouterr()
    code = module.main()
    printed = capsys.readouterr()
    assert code == 0, printed.err[-2000:]
    return printed.out


def test_main_and_hard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    media = make_digits(tmp_path / "media")
    write_configs(tmp_path / "configs" / "digits", OPTIONS)
    monkeypatch.setattr("avssl.config.shipped", lambda name: tmp_path / name)
    small = [*SMALL, "optim.epochs=1"]
    printed = call(digits, monkeypatch, capsys, media, *small, "--out", tmp_path / "main", "--seeds", 0, 1)
    for heading in ("AVID-CMA, from it", "random weights", "hand-made features", "linear both", "consensus", "±"):
        assert heading in printed
    folder = tmp_path / "main" / "all_clips" / "seed1"
    found = {row: json.loads((folder / row / "metrics.json").read_text()) for row in OPTIONS}
    found |= {row: json.loads((folder / f"{row}.json").read_text()) for row in ("random", "handmade")}
    for row in (*OPTIONS, "random"):
        for group in ("linear", "knn", "precision", "recall"):
            assert all(0 <= value <= 1 for value in found[row][group].values()), (row, group)
    assert found["handmade"]["linear"]["audio"] == 1  # the tone names the class
    again = call(digits, monkeypatch, capsys, media, *small, "--out", tmp_path / "main", "--seeds", 0, 1)
    assert again == printed

    few = digits.Setting(("--num-train", "8", "--foreign", "0.3"), 3, 2)
    monkeypatch.setitem(digits.HARD, "300 clips", few)
    settings = ["--part", "hard", "--settings", "300 clips", "--seeds", 0]
    printed = call(digits, monkeypatch, capsys, media, *small, "--out", tmp_path / "hard", *settings)
    for method in ("in-batch InfoNCE", "AVID", "AVID-CMA"):
        assert f"| 300 clips: {method} |" in printed
    steps = {
        method: (tmp_path / "hard" / "300_clips" / "seed0" / method / "log.jsonl").read_text().count('"loss"')
        for method in OPTIONS
    }
    assert len(set(steps.values())) == 1  # the same number of steps, and every step is reported

    monkeypatch.setitem(digits.ABLATIONS, "AVID-CMA from it: its recipe", ("avid_cma", ("method.num_positives=3",)))
    settings = ["--part", "ablation", "--settings", "AVID-CMA from it: its recipe", "K = 1024", "--seeds", 0]
    printed = call(digits, monkeypatch, capsys, media, *SMALL, "--out", tmp_path / "ablation", *settings)
    assert "| K = 1024 |" in printed
    assert "| AVID-CMA from it: its recipe |" in printed
    assert "| the recipe |" not in printed  # trained, as AVID-CMA starts from it, but not asked for


@pytest.mark.parametrize("name", digits.ABLATIONS)
def test_an_ablation_changes_options_that_exist(name: str) -> None:
    method, changed = digits.ABLATIONS[name]
    recipe, other = (load(ROOT / "configs" / "digits" / f"{method}.yaml", list(lines)) for lines in ((), changed))
    given = {option: value for option, value in other.method.items() if option != "name"}
    merge_options(METHODS[method].Options, given, where="test")  # an unknown option raises
    assert (other == recipe) == (not changed)


def test_natural(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number in range(6):
        rows.append({"path": f"talk/{number}.mp4", "label": "", "group": ""})
    for number in range(10):
        rows.append({"path": f"fight/{number}.mp4", "label": str(number % 2), "group": f"scene{number // 2}"})
    for number, row in enumerate(rows):
        make_clip(tmp_path / "media" / row["path"], number % 2, number, sound=number != 9)
    with open(tmp_path / "media" / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "group"])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(natural, "TRAIN_SECONDS", 0.5)
    monkeypatch.setattr(natural, "WINDOW_SECONDS", 0.4)
    for name in ("speech", "fight"):
        write_configs(tmp_path / "configs" / name, {"infonce": []})
    monkeypatch.setattr("avssl.config.shipped", lambda name: tmp_path / name)
    what = ["--out", tmp_path / "out", "--speech", "talk", "--json", tmp_path / "metrics.json"]
    printed = call(natural, monkeypatch, capsys, tmp_path / "media", *SMALL, "data.split=null", "optim.epochs=1", *what)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert len(found) == 3 * 2 + 3
    for name, figure in found.items():
        assert name in printed
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1, name
    assert found["fight or not, linear probe of video, trained"]["num"] == 5
    assert all(figure["num"] == 6 for name, figure in found.items() if "held out" in name)
