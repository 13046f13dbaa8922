"""The claims of the lecture, in miniature."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import lecture
import pytest

from avssl.data.manifest import read_manifest
from avssl.training.loop import train
from avssl.weights.load import load_run
from tests.support.clips import make_set
from tests.support.runs import TINY, config

pytestmark = pytest.mark.slow
SMALL = [line for line in TINY if not line.startswith("method.")]
SMALL += ["data.cache_gigabytes=0", "data.clips_per_video=1", "optim.epochs=3", "optim.warmup_epochs=0"]
ROWS = (lecture.Row("rotation", "pretext_rotation"), lecture.Row("contrast", "simclr", rate=2.0))


def test_rows_take_the_rate_that_held_out_clips_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(tmp_path / "data" / "toy", num_train=12, num_test=4)
    monkeypatch.setattr(lecture, "FACTORS", (0.5, 2.0))
    claims = {
        "layers": lecture.Claim("said.", "", ROWS[:1], lecture.STAGES, lecture.stages, over="stage"),
        "epochs": lecture.Claim("said too.", "found on video.", ROWS[1:], lecture.AFTER, lecture.epochs),
    }
    monkeypatch.setattr(lecture, "CLAIMS", claims)
    words = [tmp_path / "data", *SMALL, "--out", tmp_path / "out", "--kept", tmp_path / "kept", "--seeds", 3, 4]

    def call(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [lecture.__file__, str(words[0]), *more, *map(str, words[1:])])
        capsys.readouterr()
        return lecture.main(), *capsys.readouterr()

    code, printed, said = call()
    assert code == 0, said[-2000:]
    assert "The lecture: said too." in printed
    assert printed.count("On video") == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") == 2
    assert "found on video." in page
    row = json.loads((tmp_path / "kept" / "lecture_layers_rotation.json").read_text())
    assert set(row["seeds"][0]["stage"]) == {"conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool"}
    assert row["seeds"][0]["stage"]["pool"] == row["seeds"][0]["linear"]["video"]
    other = json.loads((tmp_path / "kept" / "lecture_epochs_contrast.json").read_text())
    assert other["rate"] in (1e-3 * 2 * 0.5, 1e-3 * 2 * 2)
    assert all(set(seed["after"]) == {"1", "2", "3"} for seed in other["seeds"])
    assert len(other["seeds"]) == 2
    assert call()[:2] == (0, printed)  # from what is kept
    code, _, said = call("method.hidden_dim=17")
    assert code == 2
    assert "lecture_layers_rotation.json was measured with another method.hidden_dim" in said
    shared = lecture.Claim("said.", "", (lecture.Row("sound", "infonce", of_families=True),))
    monkeypatch.setattr(lecture, "CLAIMS", {"signal": shared})
    assert call()[0] == 2
    row["rate"] = 0.25
    for name in ("infonce", "simclr"):
        (tmp_path / "kept" / f"families_toy_{name}.json").write_text(json.dumps(row))
    assert "| sound | " in (printed := call()[1])
    assert "| 0.25 |" in printed
    arguments = Namespace(data=tmp_path, out=tmp_path, overrides=[], kept=tmp_path / "kept")
    assert lecture.config_of(arguments, "batch", ROWS[1], seed=0, factor=0.5).optim.lr == 0.25 * 2 * 0.5


def test_few_labels_and_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_set(tmp_path / "toy", num_train=12, num_test=4)
    make_set(tmp_path / "toy_actions", num_train=4, num_test=4, silent=4)
    few = ["optim.epochs=1", "optim.milestones=[]", "method.warmup_epochs=0", "data.clips_per_video=1"]
    monkeypatch.setattr(lecture, "TUNED", [*few, "data.batch_size=2"])
    assert train(config(toy, tmp_path / "run", "optim.epochs=1"))
    found = lecture.few_labels(load_run(tmp_path / "run"), toy)
    assert all(0 <= found[group][key] <= 1 for group, key in lecture.FEW.values())
    for share, num in (("0.01", 2), ("0.1", 2)):  # of six clips of each of two classes: one at least
        split = read_manifest(tmp_path / "run" / f"few_{share}" / "split" / "trained" / "manifest.parquet")
        assert (split.column("split") == "train").sum() == num


@pytest.mark.parametrize("claim", lecture.CLAIMS)
def test_rows_of_a_claim_differ_and_can_be_trained(claim: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = lecture.CLAIMS[claim].rows
    assert len({lecture.slug(row) for row in rows}) == len(rows) > 1
    arguments = type("Arguments", (), {"data": Path("data"), "out": Path("out"), "overrides": [], "kept": Path("none")})
    configs = [lecture.config_of(arguments, claim, row, seed=0, factor=1.0) for row in rows]
    known = [
        (config.data.manifest, config.optim.lr, json.dumps(lecture.families.settings_of(config), sort_keys=True))
        for config in configs
    ]
    assert len(set(known)) == len(rows)
    if claim == "batch":
        rates = {config.data.batch_size: config.optim.lr for config in configs if config.method["name"] == "simclr"}
        assert rates == pytest.approx({16: rates[64] / 4, 64: rates[64], 256: 4 * rates[64]})
