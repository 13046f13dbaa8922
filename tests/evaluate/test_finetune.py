"""Fine-tuning over splits: recipes, folders that are continued, what the tuned network says, and the tool."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from avssl.config import ConfigError, loads
from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.finetune import train_classifier
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.weights.load import load, load_run
from tests.support.runs import Call, config

pytestmark = pytest.mark.slow
QUICK = (
    *("optim.epochs=2", "optim.milestones=[]", "method.warmup_epochs=1", "data.clips_per_video=2", "data.batch_size=4"),
    *("data.num_workers=0", "optim.lr=3e-3", "run.num_threads=1"),
)


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "avid"
    assert not train(config(clip_set, folder, "run.max_steps=1"))
    return folder


def settings(folder: Path) -> dict:
    return loads(load_checkpoint(folder / "last.pt")["config"]).model_dump(mode="json")


def test_the_encoder_starts_from_the_pretrained_one_or_from_random_weights(
    run: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    pretrained = load_run(run)
    still = (*QUICK, "optim.lr=0")
    tuned = train_classifier(pretrained, clip_set, out=tmp_path / "tuned", overrides=(*still, "method.warmup_epochs=2"))
    for name, value in pretrained.encoders["video"].state_dict().items():
        assert torch.equal(tuned.encoders["video"].state_dict()[name], value), name
    random = train_classifier(pretrained, clip_set, out=tmp_path / "random", trained=False, overrides=still)
    weights = [each.encoders["video"].conv1[0].weight for each in (pretrained, random)]
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)
    assert set(random.encoders) == {"video"}
    assert not list((tmp_path / "random").glob("start-*"))


def test_the_recipe_is_avids_and_gives_way_to_a_file_and_to_overrides(
    run: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("optim: {lr: 5e-3, epochs: 3}\ndata: {num_frames: 3}\n")
    pretrained = load_run(run)
    stop = ("run.max_steps=1", "data.batch_size=4", "data.num_workers=0")
    assert train_classifier(pretrained, clip_set, out=tmp_path / "plain", overrides=stop) is None
    found = settings(tmp_path / "plain")
    assert (found["optim"]["lr"], found["optim"]["weight_decay"], found["optim"]["epochs"]) == (1e-4, 0, 5 + 16)
    assert (found["optim"]["milestones"], found["optim"]["gamma"]) == ([5 + 6, 5 + 10, 5 + 14], 0.3)
    assert found["data"]["num_frames"] == pretrained.data.num_frames
    assert found["data"]["clips_per_video"] == 5
    recipe = {"recipe": tmp_path / "recipe.yaml", "overrides": (*stop, "optim.lr=7e-3")}
    assert train_classifier(pretrained, clip_set, out=tmp_path / "given", **recipe) is None
    found = settings(tmp_path / "given")
    assert (found["optim"]["lr"], found["optim"]["epochs"], found["data"]["num_frames"]) == (7e-3, 3, 3)


def test_a_folder_is_continued_by_the_same_call_only(run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    pretrained = load_run(run)
    call = {"out": tmp_path / "out", "overrides": QUICK}
    assert train_classifier(pretrained, clip_set, out=tmp_path / "out", overrides=(*QUICK, "run.max_steps=3")) is None
    other = dataclasses.replace(pretrained, weights_hash="0" * 64)
    with pytest.raises(ConfigError, match=r"model.video_weights=.*but the run in .* was started with"):
        train_classifier(other, clip_set, **call)
    for column, word in (("split", "train"), ("label", "walk")):  # ids are the same, what is learned is not
        place = clip_set.table.column_names.index(column)
        table = clip_set.table.set_column(place, column, pa.array([word] * len(clip_set)))
        with pytest.raises(ConfigError, match="out holds a run on other clips, labels or splits: choose another"):
            train_classifier(pretrained, Manifest(table, clip_set.root), **call)
    call["out"] = (tmp_path / "out").rename(tmp_path / "moved")
    assert train_classifier(pretrained, clip_set, **call).classifier.classes == ("0", "1")


def test_sound_is_tuned_on_clips_with_sound(run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    tuned = train_classifier(load_run(run), clip_set, out=tmp_path / "a", overrides=(*QUICK, "method.modality=audio"))
    assert set(tuned.encoders) == {"audio"}
    valid = load_checkpoint(tmp_path / "a" / "last.pt")["instances"]["valid"].numpy()
    assert np.array_equal(valid, clip_set.valid("train") & clip_set.has_audio)


@pytest.mark.parametrize(
    "overrides, match",
    [
        (("optim.epoch=3",), "unknown key optim.epoch .*did you mean epochs"),
        (("optimizer.lr=3",), "unknown key optimizer in the recipe of fine-tuning: did you mean optim"),
        (("method.modality=both",), "modality=both in method finetune: expected one of video, audio"),
        (("method.name=finetune", "method.tracks=x"), "unknown key tracks"),
        (("nonsense",), "override 'nonsense' is not of the form section.key=value"),
        (("data.split=null",), "data.split=null: fine-tuning learns from the training clips of the evaluated split"),
        (("data.split=test",), "data.split=test: fine-tuning learns"),
        (("method=finetune",), "method=finetune in .*: expected a mapping with a name"),
        (("data.policy=skip", "method.modality=audio"), "data.policy in .* must be a mapping of keys, not skip"),
        (("method.name=avid",), "method.name=avid learns no labels: fine-tuning is method.name=finetune"),
    ],
)
def test_wrong_settings(overrides: tuple[str, ...], match: str, run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        train_classifier(load_run(run), clip_set, out=tmp_path / "x", overrides=overrides)
    with pytest.raises(ConfigError, match=r"config .*nowhere.yaml does not exist: give the path of a YAML file"):
        train_classifier(load_run(run), clip_set, out=tmp_path / "x", recipe=tmp_path / "nowhere.yaml")
    assert not (tmp_path / "x").exists()


def test_the_tool_tunes_over_splits_and_its_runs_predict(
    run: Path, clip_set: Manifest, call: Call, tmp_path: Path
) -> None:
    asked = ["tools/evaluate.py", run, "finetune", "--dataset", clip_set.root, "--folds", 2, "--out", tmp_path / "out"]
    asked += ["--num-clips", 2, "--num-crops", 1, "--workers", 0, "--picture", tmp_path / "c.png", *QUICK]
    stopped = call(*asked, "run.max_steps=1")
    assert (stopped.code, stopped.out) == (1, "")
    assert "stopped: the same call continues the runs" in stopped.err
    done = call(*asked, "--json", tmp_path / "r.json")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["scores"].keys() == result["random"].keys() == {"video"}
    figure = result["scores"]["video"]
    assert (figure["num"], figure["unanswered"], len(figure["splits"])) == (18, 0, 2)
    assert result["clips"]["test"]["clips"] == 18
    assert (tmp_path / "c.png").exists()
    assert (result["training"]["optim"]["lr"], result["training"]["method"]["warmup_epochs"]) == (3e-3, 1)
    assert result["data"]["num_frames"] == result["training"]["data"]["num_frames"]
    seconds = result["seconds"]["training"]
    assert seconds[0] is None  # stopped in between
    assert seconds[1] > 0
    again = json.loads(call(*asked, "--json").out)  # nothing is trained again
    assert again["scores"] == result["scores"]
    assert again["random"] == result["random"]

    tuned, clip = tmp_path / "out" / "fold1" / "trained", clip_set.path(0)
    told = call("tools/predict.py", tuned, clip, "--num-clips", 2)
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0] == str(clip)
    assert sum(float(line.split()[0]) for line in lines[1:]) == pytest.approx(1, abs=2e-3)
    assert {line.split()[1] for line in lines[1:]} == {"0", "1"}
    as_json = json.loads(call("tools/predict.py", tuned, clip, "--num-clips", 2, "--top", 1, "--json").out)
    assert list(as_json) == [str(clip)]
    assert list(as_json[str(clip)]) == [lines[1].split()[1]]


def test_a_saved_linear_classifier_predicts(
    run: Path, clip_set: Manifest, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avssl.evaluate.heads.RATES", (1e-2,))
    asked = ["tools/evaluate.py", run, "linear", "--dataset", clip_set.root, "--num-clips", 1, "--num-crops", 1]
    asked += ["--workers", 0, "--no-baseline", "--save", tmp_path / "w"]
    done = call(*asked)
    assert done.code == 0, done.err
    assert f"saved {tmp_path / 'w'}: the classifier of " in done.err
    kept = load(tmp_path / "w")
    assert kept.classifier.classes == ("0", "1")
    loud = np.flatnonzero(clip_set.has_audio & clip_set.valid("train"))[:6]
    files = {str(clip_set.path(row)): clip_set.column("label")[row] for row in loud}
    told = json.loads(call("tools/predict.py", tmp_path / "w", *files, "--num-clips", 1, "--json").out)
    assert sum(next(iter(told[path])) == label for path, label in files.items()) >= 5
    done = call(*asked, "--folds", 2)  # a classifier of all clips
    assert done.code == 0, done.err
    again = json.loads(call("tools/predict.py", tmp_path / "w", *files, "--num-clips", 1, "--json").out)
    assert again != told
    assert json.loads((tmp_path / "w" / "config.json").read_text())["facts"]["classifier"]["splits"] == 2
    call(*asked[:-1], run).refused("--save .* is the folder of a run: give another one")


def test_what_cannot_be_told(run: Path, clip_set: Manifest, call: Call, tmp_path: Path) -> None:
    call("tools/predict.py", run, clip_set.path(0)).refused("has no classifier: fine-tune with")
    call("tools/predict.py", tmp_path, clip_set.path(0)).refused("does not exist")
    heard = train_classifier(load_run(run), clip_set, out=tmp_path / "a", overrides=(*QUICK, "method.modality=audio"))
    assert heard is not None
    silent = clip_set.path(int(np.flatnonzero(~clip_set.has_audio)[0]))
    (tmp_path / "text.mp4").write_text("no clip")
    done = call("tools/predict.py", tmp_path / "a", silent, tmp_path / "text.mp4", clip_set.path(0), "--num-clips", 1)
    assert done.code == 1
    assert f"not read: {silent}: the classifier needs audio, which this file lacks" in done.err
    assert "not read: " + str(tmp_path / "text.mp4") in done.err
    assert done.out.startswith(str(clip_set.path(0)))
    call("tools/predict.py", tmp_path / "a", silent, "--top", 0).refused("--top 0 must be at least 1")


def test_a_share_of_the_training_videos_of_each_class_is_drawn(
    run: Path, clip_set: Manifest, call: Call, tmp_path: Path
) -> None:
    asked = ["tools/evaluate.py", run, "finetune", "--dataset", clip_set.root, "--out", tmp_path / "out"]
    asked += ["--num-clips", 1, "--num-crops", 1, "--workers", 0, "--no-baseline", *QUICK]
    call(*asked, "--share", 0).refused("--share 0: expected a fraction above 0, at most 1")
    done = call(*asked, "--share", 0.34, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["settings"]["share"] == 0.34
    assert result["scores"]["video"]["num"] == 6  # every test video
    used = read_manifest(tmp_path / "out" / "split" / "trained" / "manifest.parquet", root=clip_set.root)
    labels = used.targets()[used.column("split") == "train"].tolist()
    assert sorted(labels) == [0, 0, 1, 1]  # of six each
    call(*asked).refused("holds a run on other clips, labels or splits")
