"""tools/evaluate.py as a user calls it: every protocol, its result, tables, a picture, and wrong use."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.check import build_table
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.evaluate.table import compare, shown
from avssl.training.loop import train
from avssl.weights.load import load
from tests.support.clips import make_sound
from tests.support.runs import SMALL, Call, config

pytestmark = pytest.mark.slow
FACTS = {
    *("protocol", "weights", "weights_hash", "manifest", "manifest_hash", "splits", "asked_hash", "shared", "classes"),
    *("several_labels", "settings", "data", "training", "scores", "random", "clips", "errors", "seconds", "versions"),
    *("device", "date", "unlabeled", "own_groups", "similar"),
}


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "avid"
    assert train(config(clip_set, folder, "optim.epochs=1"))
    return folder


@pytest.mark.parametrize("protocol", ["knn", "linear", "svm", "fewlabels", "partition", "retrieval"])
def test_frozen_protocols(protocol: str, run: Path, clip_set: Manifest, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    dataset = ("--dataset", clip_set.root / "manifest.parquet")
    done = call("tools/evaluate.py", run, protocol, *dataset, *SMALL, "--json", path)
    assert done.code == 0, done.err
    result = json.loads(path.read_text())
    assert result.keys() == FACTS
    assert result["manifest_hash"] == clip_set.hash
    assert result["clips"]["test"] == {"clips": 6, "unreadable": 0, "without_audio": 1, "without_video": 0}
    assert result["scores"].keys() == result["random"].keys()
    for way, figure in result["scores"].items():
        low, high = figure["interval"]
        assert low <= high
        assert f"{figure['mean']:.3f} ({low:.3f} to {high:.3f})" in done.out, way
        assert way in done.out
    head = done.out.splitlines()[1]
    assert head.split("  ")[-1].strip() == "avid"
    assert head.split()[:2] == ["n", "chance"]
    assert "random init" in head
    assert "clips with video and audio" in done.out
    assert all(figure["paired"]["num"] == 5 for figure in result["scores"].values())
    assert "no groups given: every file is its own group" in done.out
    assert "1 of 6 test clips without audio: counted as wrong" in done.out
    again = call("tools/evaluate.py", run, protocol, *dataset, *SMALL, "--no-baseline", "--json")
    second = json.loads(again.out)
    assert second["scores"] == result["scores"]  # to the last digit
    assert second["random"] is None


def test_folds_skipping_and_a_picture(run: Path, clip_set: Manifest, call: Call, tmp_path: Path) -> None:
    done = call(
        *("tools/evaluate.py", run, "knn", "--dataset", clip_set.root, "--folds", "3", "--skip-unreadable"),
        *(*SMALL, "--json", tmp_path / "r.json", "--picture", tmp_path / "r.png", "--cache", tmp_path / "kept"),
    )
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["splits"] == ["fold1", "fold2", "fold3"]
    assert [len(figure["splits"]) for figure in result["scores"].values()] == [3] * 6
    assert result["scores"]["video"]["num"] == 18
    assert result["scores"]["audio"]["num"] == 16
    assert "left out" in done.out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_an_unreadable_clip_is_named_and_wrong(run: Path, clip_set: Manifest, call: Call, tmp_path: Path) -> None:
    shutil.copytree(clip_set.root, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set" / "manifest.parquet")
    lost = str(manifest.column("path")[manifest.column("split") == "test"][0])
    (tmp_path / "set" / lost).write_bytes(b"gone")
    dataset = ("--dataset", tmp_path / "set" / "manifest.parquet", "--cache", tmp_path / "kept")
    done = call("tools/evaluate.py", run, "knn", *dataset, *SMALL, "--json")
    assert done.code == 1
    assert f"not read: {lost}: " in done.err
    result = json.loads(done.out)
    assert list(result["errors"]) == [lost]
    assert result["scores"]["video"]["unanswered"] == 1
    assert sum(row[-1] for row in result["scores"]["video"]["confusion"]) == 1


def result_date(path: Path) -> str:
    return json.loads(path.read_text())["date"]


def test_results_side_by_side(run: Path, clip_set: Manifest, call: Call, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    dataset, paths = ("--dataset", clip_set.root), [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    call("tools/evaluate.py", run, "knn", *dataset, *SMALL, "--json", paths[0])
    call("tools/evaluate.py", tmp_path / "other", "knn", *dataset, *SMALL, "--no-baseline", "--json", paths[1])
    call("tools/evaluate.py", run, "knn", *dataset, *SMALL, "--k", "3", "--json", paths[2])
    done = call("tools/evaluate.py", "--table", *paths[:2], "--report", tmp_path / "page.html")
    assert done.code == 0
    heading = [word.strip() for word in done.out.splitlines()[1].split("  ") if word.strip()]
    assert heading == ["n", "chance", "random init", "avid", "other"]
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert all(word in page for word in ("random init", str(tmp_path / "other"), result_date(paths[0])))
    assert "not comparable" not in done.out
    relabeled = tmp_path / "m.parquet"
    table = pq.read_table(clip_set.root / "manifest.parquet")
    place = table.column_names.index("label")
    names = pa.array([f"class {label}" for label in table.column("label").to_pylist()])
    pq.write_table(table.set_column(place, "label", names), relabeled)
    write_manifest(relabeled, pq.read_table(relabeled), root=clip_set.root)
    call("tools/evaluate.py", run, "knn", "--dataset", relabeled, *SMALL, "--json", tmp_path / "d.json")
    found = call("tools/evaluate.py", "--table", paths[0], tmp_path / "d.json").out
    assert found.count("knn on") == 1  # the same clips
    assert "not comparable, asked_hash differ: clips, their labels or their splits" in found
    assert "not comparable, settings differ: k: 20, 3" in call("tools/evaluate.py", "--table", paths[0], paths[2]).out
    (tmp_path / "no.json").write_text("[]")
    call("tools/evaluate.py", "--table", tmp_path / "no.json").refused("no.json is no result of avssl evaluate")
    call("tools/evaluate.py", "--table", tmp_path / "nowhere.json").refused("nowhere.json cannot be read")


def test_a_figure_in_words() -> None:
    figure = {"mean": 0.5, "interval": [0.4, 0.6], "spread": 0.2}
    assert shown(figure) == "0.500 (0.400 to 0.600)"
    assert shown(figure | {"draws": [[0.4, 0.6]], "draw_spread": 0.141}) == "0.500 (0.400 to 0.600) ± 0.141"
    assert shown(figure | {"interval": None}) == "0.500 (one group)"
    assert shown(None) == ""


def test_names_of_weights_tell_them_apart() -> None:
    figure = {"mean": 0.5, "interval": [0.4, 0.6], "spread": 0.0, "chance": 0.1, "num": 9, "clips": "c", "unseen": 0}
    base = {"protocol": "knn", "manifest": "m", "manifest_hash": "h", "splits": ["split"], "random": None, "clips": {}}
    base |= {"settings": {"num_clips": 1, "num_crops": 1, "skip_unreadable": False}, "scores": {"video": figure}}
    base |= {"several_labels": 3, "asked_hash": "h", "training": None, "shared": [{"files": 2, "groups": 0}]}
    base |= {"unlabeled": 0, "own_groups": False, "similar": []}
    text = compare([base | {"weights": f"runs/{name}/avid/last.pt"} for name in ("toy", "digits")])
    assert "toy/avid" in text
    assert "digits/avid" in text
    assert "2 test clips have files that training clips have too" in text
    assert "3 clips have several classes: only the first of each counts here" in text
    other = base | {"weights": "runs/x/last.pt", "scores": {"video": figure | {"clips": "d", "num": 8}}}
    assert "not comparable, clips that count differ: video" in compare([base | {"weights": "runs/y/last.pt"}, other])


@pytest.mark.parametrize(
    "arguments, match",
    [
        (
            ("knn", "--dataset", "ucf101"),
            r"there is no data/ucf101/manifest.parquet: .*avssl datasets ucf101",
        ),
        (("knn", "--dataset", "nowhere.parquet"), "nowhere.parquet does not exist"),
        (("knn", "--dataset", "SET", "--folds", "99"), "--folds 99: expected 2 to 18, as there are no more groups"),
        (("knn", "--dataset", "SET", "--test-split", "other"), "no labeled clip has split=other"),
        (("knn", "--dataset", "SET", "--group", "^x"), "--group .x finds nothing in test/0/000.mp4"),
        (("knn", "--dataset", "SET", "--num-clips", "0"), "num_clips=0 must be at least 1"),
        (("knn", "--dataset", "SET", "--k", "0"), "--k 0"),
        (("knn", "--dataset", "SET", "--temperature", "0"), "--temperature 0"),
        (("fewlabels", "--dataset", "SET", "--draws", "0"), "--draws 0"),
        (("svm", "--dataset", "SET", "--map", "conv9"), "--map conv9 is not a map of the video encoder"),
        (("knn", "--dataset", "SET", "--json", "/proc/no/r.json"), "cannot be written"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], match: str, run: Path, clip_set: Manifest, call: Call) -> None:
    given = [str(clip_set.root / "manifest.parquet") if word == "SET" else word for word in arguments]
    call("tools/evaluate.py", run, *given, *(() if "--num-clips" in given else SMALL[:2])).refused(match)


def test_a_set_of_sounds_alone_is_asked_about_by_sound(run: Path, call: Call, tmp_path: Path) -> None:
    """As ESC-50: three official folds, no video."""
    rows = []
    for number in range(12):
        make_sound(tmp_path / "set" / f"{number}.wav", number % 2, number)
        folds = {f"split{fold}": "test" if number // 2 % 3 + 1 == fold else "train" for fold in (1, 2, 3)}
        rows.append({"path": f"{number}.wav", "label": "ab"[number % 2], "group": f"g{number // 2}"} | folds)
    rows.sort(key=lambda row: row["path"])
    write_manifest(tmp_path / "m.parquet", build_table(tmp_path / "set", rows, num_workers=1), root=tmp_path / "set")
    done = call("tools/evaluate.py", run, "svm", "--dataset", tmp_path / "m.parquet", *SMALL, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["splits"] == ["split1", "split2", "split3"]
    assert result["scores"].keys() == {"audio"}
    assert [len(result["scores"]["audio"][name]) for name in ("splits", "chosen")] == [3, 3]
    assert result["scores"]["audio"]["num"] == 12
    assert result["clips"]["train"] == {"clips": 12, "unreadable": 0, "without_audio": 0}


def test_groups_of_folders(run: Path, clip_set: Manifest, call: Call) -> None:
    asked = ("tools/evaluate.py", run, "knn", "--dataset", clip_set.root, *SMALL, "--no-baseline")
    done = call(*asked, "--group", r"(\d)\.mp4", "--folds", "2", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["settings"]["group"] == r"(\d)\.mp4"
    assert not result["own_groups"]
    assert "groups given" not in done.out
    call(*asked, "--group", "folder", "--folds", "5").refused("--folds 5: expected 2 to 4, as there are no more groups")


def relabeled(clip_set: Manifest, path: Path, names: dict[str, str], labels: list | None = None) -> Path:
    """The clips with other names of their classes, and with further classes."""
    table = pq.read_table(clip_set.root / "manifest.parquet")
    column = pa.array([names[label] for label in table.column("label").to_pylist()])
    table = table.set_column(table.column_names.index("label"), "label", column)
    if labels is not None:
        table = table.append_column("labels", pa.array(labels, pa.list_(pa.string())))
    write_manifest(path, table, root=clip_set.root)
    return path


def test_names_of_classes_are_plain_text_and_the_answer_comes_before_the_picture(
    run: Path, clip_set: Manifest, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = relabeled(clip_set, tmp_path / "m.parquet", {"0": "$1_vs_$2", "1": "$\\frac{<b>"})
    asked = ["tools/evaluate.py", run, "knn", "--dataset", odd, *SMALL, "--no-baseline", "--json", tmp_path / "r.json"]
    done = call(*asked, "--picture", tmp_path / "c.png")
    assert done.code == 0, done.err
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert call("tools/evaluate.py", "--table", tmp_path / "r.json", "--report", tmp_path / "page.html").code == 0
    (tmp_path / "r.json").unlink()

    def broken(result: object) -> bytes:
        raise ValueError("no picture today")

    monkeypatch.setattr("avssl.cli.evaluate.confusion_png", broken)
    done = call(*asked, "--picture", tmp_path / "d.png")
    done.refused("no picture today")
    assert "video" in done.out
    assert json.loads((tmp_path / "r.json").read_text())["classes"] == ["$1_vs_$2", "$\\frac{<b>"]


def test_clips_with_several_classes(run: Path, clip_set: Manifest, call: Call, tmp_path: Path) -> None:
    more = [["loud"] if row % 3 == 0 else [] for row in range(len(clip_set))]
    several = relabeled(clip_set, tmp_path / "m.parquet", {"0": "a", "1": "b"}, more)
    asked = ("--dataset", several, *SMALL, "--no-baseline")
    done = call("tools/evaluate.py", run, "linear", *asked, "--save", tmp_path / "w", "--json", tmp_path / "r.json")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["classes"] == ["a", "b", "loud"]
    assert all(name.endswith(" mAP") for name in result["scores"])
    assert "6 clips have several classes: mAP is the mean over classes" in done.out
    told = json.loads(call("tools/predict.py", tmp_path / "w", clip_set.path(0), "--num-clips", 1, "--json").out)
    assert load(tmp_path / "w").classifier.multi_label
    assert all(0 <= share <= 1 for share in told[str(clip_set.path(0))].values())
    tuned = call(
        *("tools/evaluate.py", run, "finetune", *asked, "--out", tmp_path / "out", "optim.epochs=1"),
        *("optim.milestones=[]", "data.clips_per_video=1", "data.batch_size=4", "method.warmup_epochs=0"),
    )
    assert tuned.code == 0, tuned.err
    assert "video mAP" in tuned.out
    call("tools/evaluate.py", run, "knn", *asked, "--picture", tmp_path / "c.png").refused(
        "--picture .*several classes"
    )


def test_interrupted(run: Path, clip_set: Manifest, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("avssl.cli.evaluate.measure_frozen", interrupt)
    done = call("tools/evaluate.py", run, "knn", "--dataset", clip_set.root, *SMALL)
    assert (done.code, done.out) == (130, "")
    said = "interrupted: no result was written; the same call goes on with finished vectors and runs"
    assert done.err.splitlines()[-1] == said
