"""Exported weights: what a run gives, the folder gives again, in two lines; what is no such folder is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import avssl
from avssl.config import ModelConfig
from avssl.data.manifest import Manifest
from avssl.media.decode import VideoWindow, read_clip
from avssl.models import build_encoder
from avssl.models.heads import Classifier
from avssl.retrieval.store import StoreError
from avssl.retrieval.write import write_store
from avssl.training.checkpoint import ENCODERS, LAST, CheckpointError
from avssl.training.loop import train
from avssl.weights.export import CARD, MEMORY, export
from avssl.weights.features import extract
from avssl.weights.load import CONFIG, Pretrained, Run, WeightsError, load, load_run, pretrained_of, with_data
from tests.support.runs import config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "avid"
    assert not train(config(clip_set, folder, "run.max_steps=1"))
    return load_run(folder)


@pytest.fixture(scope="module")
def weights(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported. Not to be changed by tests."""
    folder = tmp_path_factory.mktemp("weights") / "mine"
    export(run, folder, facts=run.facts)
    return folder


def test_an_export_is_the_run(run: Run, weights: Path, clip_set: Manifest) -> None:
    loaded = load(weights)
    assert type(loaded) is Pretrained
    assert loaded.weights_hash == run.weights_hash == load(run.path.parent).weights_hash
    assert loaded.data == run.data.replace(manifest="", root=None)
    rows = np.flatnonzero(clip_set.valid("test"))
    of_run, of_export = (extract(pretrained, clip_set, rows, num_clips=1) for pretrained in (run, loaded))
    for name in ("video", "audio"):
        assert np.array_equal(of_run.embedding[name], of_export.embedding[name])
        assert np.array_equal(of_run.features[name], of_export.features[name])


def test_two_lines(weights: Path, run: Run, clip_set: Manifest) -> None:
    model = avssl.load(weights / ENCODERS)
    silent = int(np.flatnonzero(~clip_set.has_audio)[0])
    rows = [3, silent, 0]
    found = model.encode([clip_set.path(row) for row in rows], num_clips=2)
    expected = extract(run, clip_set, rows, num_clips=2)
    assert found.has_audio.tolist() == [True, False, True]
    assert found.has_video.all()
    for name in ("video", "audio"):
        assert found.features[name].shape == (3, 64)
        np.testing.assert_allclose(found.features[name], expected.features[name], atol=1e-5)
        np.testing.assert_allclose(found.embedding[name], expected.embedding[name], atol=1e-5)
    alone = model.encode(str(clip_set.path(0)), num_clips=2, num_workers=1)
    np.testing.assert_allclose(alone.features["video"], expected.features["video"][2:], atol=1e-5)
    with pytest.raises(ValueError, match=r"none.mp4 does not exist"):
        model.encode("none.mp4")
    with pytest.raises(ValueError, match="num_clips=0 must be at least 1"):
        model.encode(clip_set.path(0), num_clips=0)


def test_files_that_cannot_be_read_are_named(weights: Path, clip_set: Manifest, tmp_path: Path) -> None:
    model, broken = avssl.load(weights), tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    found = model.encode([broken, clip_set.path(0), broken], num_clips=1)
    assert found.ids.tolist() == [1]
    assert sorted(found.errors) == [0, 2]
    assert "broken.mp4" in found.errors[0]
    assert found.features["video"].shape == (1, 64)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        model.encode(broken)
    with pytest.raises(ValueError, match="no file was given"):
        model.encode([])


def test_arrays_are_encoded_as_files_are(weights: Path, clip_set: Manifest) -> None:
    model, path = avssl.load(weights), clip_set.path(0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate, parts = stream.rate, [frame.to_ndarray().mean(axis=0) for frame in container.decode(stream)]
    samples = np.concatenate(parts).astype(np.float32)
    of_file, of_frames = model.encode(path, num_clips=2), model.encode_frames(frames, fps, num_clips=2)
    of_samples = model.encode_samples(samples, rate, num_clips=2)
    for name, found in (("video", of_frames), ("audio", of_samples)):
        assert found.has(name).all()
        for kind in ("features", "embedding"):
            a, b = getattr(found, kind)[name][0], getattr(of_file, kind)[name][0]
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999, (name, kind)
    short = model.encode_frames(frames[:1], fps)  # shorter than a clip: repeated
    assert np.isfinite(short.features["video"]).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model.encode_frames(np.zeros((4, 8, 8), np.uint8), 25), "expected uint8"),
        (lambda model: model.encode_frames(np.zeros((4, 8, 8, 3), np.float32), 25), "expected uint8"),
        (lambda model: model.encode_frames(np.zeros((0, 8, 8, 3), np.uint8), 25), "must be above 0"),
        (lambda model: model.encode_frames(np.zeros((4, 8, 8, 3), np.uint8), 0), "must be above 0"),
        (lambda model: model.encode_samples(np.zeros(900, np.int16), 8000), "expected float32"),
        (lambda model: model.encode_samples(np.zeros((900, 2), np.float32), 8000), "expected float32"),
        (lambda model: model.encode_samples(np.zeros(900, np.float32), 8000.5), "at a whole rate"),
    ],
)
def test_arrays_of_another_form_are_refused(weights: Path, call: Callable[[Pretrained], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(avssl.load(weights))


def test_in_another_program_only_a_device_is_chosen(
    weights: Path, run: Run, clip_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread of a web server that torchrun has started."""
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (torchrun | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)

    def use(path: Path) -> list[str]:
        model = avssl.load(path, device="cpu")
        assert model.device == avssl.load(path, device=torch.device("cpu")).device == torch.device("cpu")
        avssl.load(path)
        extract(with_data(model, num_workers=0), clip_set, [0, 1], num_clips=1)
        return list(model.encode(clip_set.path(0), num_clips=1).features)

    with ThreadPoolExecutor(1) as threads:
        assert [threads.submit(use, path).result() for path in (weights, run.path.parent)] == [["video", "audio"]] * 2
    assert not torch.distributed.is_initialized()


def test_transforms_give_what_encoders_take(weights: Path, clip_set: Manifest) -> None:
    model = load(weights)
    window = VideoWindow(start=0, duration=0.4, fps=5, crop=(0, 0, 1, 1), size=(48, 48))
    frames = torch.from_numpy(read_clip(clip_set.path(0), video=[window], audio=[])[0][0].data)[None]  # whole frames
    clips = model.transform("video", frames)
    assert clips.shape == (1, 3, 2, 32, 32)
    cut = VideoWindow(start=0, duration=0.4, fps=5, crop=(3 / 48, 3 / 48, 42 / 48, 42 / 48), size=(32, 32))
    decoded = torch.from_numpy(read_clip(clip_set.path(0), video=[cut], audio=[])[0][0].data)[None]
    expected = (decoded.float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert (clips - expected.permute(0, 4, 1, 2, 3)).abs().mean() < 0.1  # interpolated by another library
    sound = model.transform("audio", torch.zeros(3, 4000))
    assert sound.shape == (3, 1, 50, 24)
    with torch.no_grad():
        assert model.encoders["audio"](sound).shape == (3, 64)
    with pytest.raises(ValueError, match="expected"):
        model.transform("video", frames[0])


def test_embeddings_on_disk_know_the_weights(tmp_path: Path, weights: Path, clip_set: Manifest) -> None:
    model = load(weights)
    clips = {"manifest_path": clip_set.root / "manifest.parquet", "split": "test", "num_clips": 1}
    store = write_store(tmp_path / "e", with_data(model, num_workers=0), clip_set, **clips)
    assert load(store.meta.run).weights_hash == store.meta.weights_hash
    without = dataclasses.replace(model, heads=torch.nn.ModuleDict())
    with pytest.raises(StoreError, match="have no heads, which make embeddings: give --features"):
        write_store(tmp_path / "n", without, clip_set, **clips)


def test_no_path_of_the_machine_is_exported(weights: Path, run: Run, clip_set: Manifest) -> None:
    text = (weights / CONFIG).read_text() + (weights / CARD).read_text()
    assert str(clip_set.root) not in text
    assert str(run.path.parent) not in text
    facts = load(weights).facts
    assert (facts["method"]["name"], facts["steps"], facts["manifest_hash"]) == ("avid", 1, clip_set.hash)
    card = (weights / CARD).read_text()
    assert 'model = avssl.load("mine")' in card
    assert "from random weights; steps: 1" in card
    assert "dimensions of their embeddings: video 128, audio 128." in card
    assert "2 frames at 5 a second, the center crop as 32 x 32" in card


def test_one_encoder_with_a_classifier(tmp_path: Path, run: Run) -> None:
    """Heads, the other encoder and memory banks are left out where there are none."""
    model = ModelConfig(video_depth=10, video_width=0.125)
    encoders = torch.nn.ModuleDict({"video": build_encoder("video", model)})
    classifier = Classifier(64, ["run", "jump"], modality="video", batch_norm=True)
    pretrained = pretrained_of(
        encoders, torch.nn.ModuleDict(), path=tmp_path, data=run.data, model=model, classifier=classifier
    )
    for memory in ({"log_z": torch.zeros(())}, None):
        export(pretrained, tmp_path / "w", facts={"note": "made here"}, memory=memory)
        assert (tmp_path / "w" / MEMORY).exists() == bool(memory)
    loaded = load(tmp_path / "w")
    assert (list(loaded.encoders), len(loaded.heads), loaded.classifier.classes) == (["video"], 0, ("run", "jump"))
    assert torch.equal(loaded.classifier.linear.weight, classifier.linear.weight.cpu())
    assert "note: made here" in (tmp_path / "w" / CARD).read_text()
    again = build_encoder("video", ModelConfig(video_depth=10, video_width=0.125, video_weights=str(loaded.path)))
    assert torch.equal(again.conv1[0].weight, encoders["video"].conv1[0].weight.cpu())


@pytest.mark.parametrize(
    "change, match",
    [
        ({"format": 3, "avssl": "9.0"}, r"written by avssl 9.0, in format 3; this is avssl .*: update it"),
        ({"format": None}, "is not of avssl: give a folder that avssl convert wrote"),
        ({"sha256": "0"}, r"is damaged, or not the one that config.json beside it was written for"),
        ({"heads": {}}, r"do not belong together .*heads"),
        ({"data": {"framse": 3}}, "unknown key framse"),
        ({"data": [1]}, "config.json: data is no mapping of keys"),
        ({"model": "x"}, "config.json: model is no mapping of keys"),
        ({"model": {"video_width": 1e6}}, "do not belong together"),
        ({"heads": {"video": {"dims": [10**9, 10**9]}}}, "do not belong together"),  # 4 * 10^18 bytes
        ({"heads": {"video": 3}}, "do not belong together"),
        ({"heads": {"video": {"dims": ["a"]}}}, "do not belong together"),
        ({"classifier": {"in_dim": 10**12, "classes": ["a"], "modality": "video"}}, "do not belong together"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, weights: Path, change: dict[str, object], match: str) -> None:
    shutil.copytree(weights, tmp_path / "w")
    path = tmp_path / "w" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "w")


@pytest.mark.parametrize(
    "entry, values",
    [
        ("config", [None, 3, "x", "a: [", "[" * 5000]),
        ("manifest_hash", [None, 3]),
        ("model", [None, {}, {"x": 3}, {"encoders.video.x": torch.zeros(1)}]),
        ("heads", [None, 3, {"video": 3}, {"video": {"arguments": {}, "prefix": ""}}]),
        ("step", [None, "7", 1.5]),
        ("decoder", [None, "pyav"]),
        ("instances", [None, {}, {"valid": 3}, {"valid": torch.ones(1, dtype=torch.bool).expand(10**12)}]),
        ("format", [None, "2", [2]]),
    ],
)
def test_odd_checkpoints_are_one_sentence(run: Run, tmp_path: Path, entry: str, values: list) -> None:
    state = torch.load(run.path, weights_only=True)
    if entry == "heads":  # looked at for a foreign method alone
        state["config"] = state["config"].replace("name: avid", "name: /none.py:Foreign")
    for value in values:
        torch.save(state | {entry: value}, tmp_path / LAST)
        with pytest.raises(ValueError, match=r"^[^\n]{20,}$"):
            load(tmp_path)


def test_folders_without_weights(tmp_path: Path, weights: Path, run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"none/last.pt does not exist"):
        load(tmp_path / "none")
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(WeightsError, match=r"config.json cannot be read"):
        load(tmp_path)
    shutil.copy(weights / CONFIG, tmp_path / CONFIG)
    with pytest.raises(WeightsError, match=r"encoders.safetensors cannot be read \(No such file"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="is the folder of a run"):
        export(run, run.path.parent, facts={})
    assert (run.path.parent / LAST).exists()
