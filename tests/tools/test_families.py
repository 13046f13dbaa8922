"""The table of the methods and the contact sheet of the pretext tasks, in miniature."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import cv2
import families
import pretext_picture
import pytest

from tests.support.clips import make_set
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
SMALL = [line for line in TINY if not line.startswith("method.")]
SMALL += ["data.cache_gigabytes=0", "data.clips_per_video=1", "optim.epochs=1"]


def call(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> str:
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
    capsys.readouterr()
    code = module.main()
    printed = capsys.readouterr()
    assert code == 0, printed.err[-2000:]
    return printed.out


def test_rows_take_the_rate_that_held_out_clips_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(tmp_path / "data" / "toy", num_train=12, num_test=4)
    monkeypatch.setattr(families, "RATES", (1e-3, 2e-3))
    words = [tmp_path / "data", *SMALL, "--out", tmp_path / "out", "--kept", tmp_path / "kept", "--seeds", 3, 4]
    words += ["--only", "infonce", "pretext_rotation"]
    printed = call(families, monkeypatch, capsys, *words)
    assert "| infonce |" in printed
    assert "| pretext_rotation |" in printed
    row = json.loads((tmp_path / "kept" / "families_toy_infonce.json").read_text())
    best = max(row["held_out"], key=lambda rate: max(row["held_out"][rate].values()))
    assert float(best) == row["rate"]
    folders = {
        name: {path.parent.name for path in (tmp_path / "out" / "toy" / "infonce").glob(f"*/{name}.json")}
        for name in ("held_out", "metrics")
    }
    assert folders["held_out"] == {"seed3_rate0.001", "seed3_rate0.002"}
    assert folders["metrics"] == {f"seed{seed}_rate{row['rate']:g}" for seed in (3, 4)}
    assert [set(seed["linear"]) for seed in row["seeds"]] == [{"video", "audio", "both"}] * 2
    other = json.loads((tmp_path / "kept" / "families_toy_pretext_rotation.json").read_text())
    assert [set(seed["linear"]) for seed in other["seeds"]] == [{"video"}] * 2
    assert all("recall" in seed for seed in row["seeds"])
    assert not any("recall" in seed for seed in other["seeds"])
    assert call(families, monkeypatch, capsys, *words) == printed  # from what is kept
    assert "| random |" in printed
    assert "| chance | 0." in printed
    assert all(seed["steps"] == 3 and 0 < seed["peak_gigabytes"] < 20 for seed in row["seeds"])
    timed = call(families, monkeypatch, capsys, *words, "--steps").splitlines()
    assert [line.split(" | ")[0] for line in timed[2:]] == ["| infonce", "| pretext_rotation"]
    assert all(0.01 < float(line.split("|")[3]) < 100 for line in timed[2:])
    other = ["--kept", str(tmp_path / "kept"), "method.hidden_dim=17"]
    for more, message in (
        (other, "toy_random.json was measured with another method.hidden_dim"),
        (["infonze"], "--only infonze: no configuration has this name"),
    ):
        monkeypatch.setattr(sys, "argv", [families.__file__, *map(str, words), *more])
        assert families.main() == 2
        assert message in capsys.readouterr().err


def test_variants_and_digits_are_trained_once_at_the_rate_of_their_base(tmp_path: Path) -> None:
    arguments = Namespace(kept=tmp_path)
    toy, digits = (families.Set(name, tmp_path, (3, 4)) for name in ("toy", "digits"))
    with pytest.raises(ValueError, match="simclr_unequal takes the rate of simclr on toy, which is not measured yet"):
        families.rates_and_seeds(arguments, toy, "simclr_unequal")
    (tmp_path / "families_toy_simclr.json").write_text('{"rate": 0.5}')
    assert families.rates_and_seeds(arguments, toy, "simclr_unequal") == ((0.5,), (3,))
    assert families.rates_and_seeds(arguments, digits, "simclr") == ((0.5,), (3,))
    assert families.rates_and_seeds(arguments, toy, "simclr") == (families.RATES, (3, 4))
    for name in ("toy", "digits"):
        trained = [path.stem for path in (families.shipped("configs") / name).glob("*.yaml")]
        assert {families.VARIANTS[row] for row in trained if row in families.VARIANTS} <= set(trained)


def test_the_contact_sheet_shows_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(tmp_path / "set", num_train=2, num_test=1, silent=0)
    out = tmp_path / "sheet.png"
    printed = call(pretext_picture, monkeypatch, capsys, tmp_path / "set" / "manifest.parquet", "--out", out)
    assert printed.strip() == f"written: {out}"
    sheet = cv2.imread(str(out))
    assert min(sheet.shape[:2]) > 300
    assert sheet.std() > 20
