"""tools/experiments/transfer.py in miniature: every protocol, a table whose metrics are those of the results."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import transfer
from transfer import Set

from tests.support.clips import make_clip, make_digits, make_set
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SMALL = [line for line in TINY if not line.startswith(("method.", "data.batch_size"))]
SMALL += ["data.batch_size=2", "optim.epochs=1", "data.cache_gigabytes=0"]
TUNED = ["optim.epochs=1", "optim.milestones=[]", "method.warmup_epochs=0", "data.clips_per_video=1"]
TUNED += ["data.batch_size=2", "data.num_workers=0", "run.precision=float32", "run.num_threads=1"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer sets, and recipes of miniature size."""
    for name in ("digits", "toy", "fight"):
        folder = tmp_path / "configs" / name
        folder.mkdir(parents=True)
        options = ["hidden_dim: 16", "num_negatives: 3"]
        for method, more in (("avid", []), ("avid_cma", ["num_positives: 2", "num_negatives_within: 2"])):
            lines = ["data:", "  manifest: none", "method:", f"  name: {method}", *(f"  {o}" for o in options + more)]
            lines += ["run:", "  dir: none"]
            text = "\n".join(lines).replace("  manifest: none", "  manifest: none\n  split: null")
            (folder / f"{method}.yaml").write_text(text + "\n")
    monkeypatch.setattr("avssl.config.shipped", lambda name: tmp_path / name)
    sets = {
        "toy_actions": Set("toy", num_clips=1, tuned=True),
        "fight": Set("fight", num_clips=1, folds=2, tuned=True),
    }
    monkeypatch.setattr(transfer, "SETS", sets)


def make_sets(folder: Path) -> list[object]:
    """The arguments that name them; toy_actions are those of toy."""
    make_set(folder / "data" / "toy", num_train=8, num_test=4, silent=0)
    shutil.copytree(folder / "data" / "toy", folder / "data" / "toy_actions")
    clips = folder / "clips"
    clips.mkdir()
    with open(clips / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        for number in range(10):
            make_clip(clips / f"fight/{number}.mp4", number % 2, number, sound=number > 1)
            writer.writerow([f"fight/{number}.mp4", f"class{number % 2}", f"g{number}"])
    return [folder / "data", "--digits", make_digits(folder / "digits"), "--clips", clips]


def test_one_table(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["transfer.py", *map(str, words)])
        capsys.readouterr()
        return transfer.main(), *capsys.readouterr()

    words = [*make_sets(tmp_path), "--out", tmp_path / "out", "--tuned", *TUNED, "--json", tmp_path / "all.json"]
    code, printed, said = call(words[0], *SMALL, *words[1:])
    assert code == 0, said[-2000:]
    found = json.loads((tmp_path / "all.json").read_text())
    assert found.keys() == {"toy_actions", "fight"}
    for name, protocols in found.items():
        assert set(protocols) == {"linear", "knn", "retrieval", "fewlabels", "finetune"}
        for protocol, results in protocols.items():
            assert results["avid"]["random"]
            assert results["avid_cma"]["random"] is None
            for way in transfer.WAYS[protocol]:
                line = next(line for line in printed.splitlines() if f"| {name} | {protocol} | {way} |" in line)
                for method in transfer.METHODS:
                    assert f"{results[method]['scores'][way]['mean']:.3f} (" in line
    assert found["fight"]["linear"]["avid"]["splits"] == ["fold1", "fold2"]
    assert found["fight"]["linear"]["avid"]["scores"]["audio"]["num"] == 8  # those with audio; all for video
    assert found["fight"]["linear"]["avid"]["scores"]["video"]["num"] == 10
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert call(words[0], *SMALL, *words[1:])[:2] == (0, printed)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == before

    code, _, said = call(tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2
    assert "nowhere/toy/manifest.parquet does not exist" in said
