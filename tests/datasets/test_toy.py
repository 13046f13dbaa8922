"""The toy sets: who looks and sounds like whom, same seed same bytes, and no way around motion and rhythm."""

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from avssl.data.manifest import read_manifest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "datasets"))  # the scripts are no package
toy = importlib.import_module("toy")

SMALL = ("--train", "20", "--test", "10", "--actions-train", "6", "--actions-test", "6")


def make(out: Path, *options: str) -> dict:
    command = [sys.executable, str(ROOT / "datasets" / "toy.py"), str(out), *SMALL, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.mp4"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("toy")
    make(out, "--workers", "1")
    return out


def test_every_look_and_every_sound_is_in_two_classes():
    classes = toy.toy_classes()
    assert len(set(classes)) == 12
    assert set(Counter(look for look, _ in classes).values()) == {2}
    assert set(Counter(sound for _, sound in classes).values()) == {2}
    assert len(set(toy.LOOKS)) == len(set(toy.SOUNDS)) == 6
    assert {motion for motion, _ in toy.LOOKS} == set(toy.MOTIONS)


@pytest.mark.parametrize("split, num_clips", [("train", 600), ("test", 200)])
def test_one_clip_in_ten_is_foreign_and_the_rest_sound_as_their_class(split, num_clips):
    clips = toy.toy_clips(split, num_clips, seed=0)
    pairs = {(toy.LOOKS[look], toy.SOUNDS[sound]) for look, sound in toy.toy_classes()}
    assert sum(clip.foreign for clip in clips) == num_clips // 10
    for clip in clips:
        assert (((clip.motion, clip.shape), clip.sound) in pairs) != clip.foreign
        if not clip.foreign:
            assert clip.label == f"{clip.motion}-{clip.shape}_{'-'.join(clip.sound)}"
    counts = Counter(clip.label for clip in clips)
    assert len(counts) == 12
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({clip.path for clip in clips}) == num_clips


def test_actions_show_the_motions_with_shapes_of_their_own():
    clips = toy.action_clips("test", 120, seed=0)
    assert Counter(clip.label for clip in clips) == dict.fromkeys(toy.MOTIONS, 20)
    assert {clip.shape for clip in clips}.isdisjoint(toy.SHAPES)
    assert all(clip.sound is None for clip in clips)


@pytest.mark.parametrize("name, num_clips, num_foreign", [("toy", 30, 3), ("toy_actions", 12, 0)])
def test_the_manifest_says_what_is_in_the_folders(made, name, num_clips, num_foreign):
    manifest = read_manifest(made / name / "manifest.parquet")
    assert len(manifest) == num_clips
    assert manifest.valid().all()
    assert manifest.has_audio.all() if name == "toy" else not manifest.has_audio.any()
    assert manifest.column("path").tolist() == list(contents(made / name))
    folders = zip(manifest.column("path"), manifest.column("split"), manifest.column("label"), strict=True)
    assert all(path.startswith(f"{split}/{label}/") for path, split, label in folders)
    if num_foreign:
        assert manifest.column("foreign").sum() == num_foreign


def test_clips_decode_with_the_promised_size_rate_and_sound(made):
    rates = set()
    for name in ("toy", "toy_actions"):
        for path in sorted((made / name).rglob("*.mp4")):
            with av.open(str(path)) as container:
                video = container.streams.video[0]
                assert (video.codec_context.name, video.width, video.height) == ("h264", 96, 96)
                rates.add(video.average_rate)
                num_frames = sum(1 for _ in container.decode(video))
                assert num_frames / video.average_rate == 3
                assert len(container.streams.audio) == (name == "toy")
                if name == "toy":
                    container.seek(0)
                    audio = container.streams.audio[0]
                    samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio)])
                    assert (audio.codec_context.name, audio.rate) == ("aac", 16_000)
                    assert len(samples) / audio.rate == pytest.approx(3, abs=0.1)  # AAC writes whole blocks
                    assert 0.05 < np.abs(samples).max() < 1.2
    assert min(rates) >= 15
    assert max(rates) <= 30
    assert len(rates) > 5


def test_same_seed_same_bytes_with_any_number_of_workers(made, tmp_path):
    make(tmp_path / "two", "--workers", "2")
    assert contents(tmp_path / "two") == contents(made)
    other = make(tmp_path / "other", "--seed", "1")
    assert other["toy"]["made"] == 30
    assert not set(contents(tmp_path / "other").values()) & set(contents(made).values())


def test_a_half_made_set_is_continued_and_a_different_one_remade(tmp_path):
    clips = toy.toy_clips("train", 3, seed=0)

    def make_set(**changes: int) -> int:
        return toy.make_set(clips, root=tmp_path / "toy", parameters={"seed": 0} | changes, num_workers=1)

    assert make_set() == 3
    whole = contents(tmp_path)
    assert make_set() == 0
    (tmp_path / "toy" / clips[1].path).unlink()
    assert make_set() == 1
    assert contents(tmp_path) == whole
    assert make_set(seed=1) == 3
    assert contents(tmp_path) != whole


def test_files_that_it_did_not_make_are_left_alone(tmp_path):
    (tmp_path / "mine.mp4").touch()
    with pytest.raises(ValueError, match="holds files that toy"):
        toy.make_set(toy.toy_clips("train", 3, seed=0), root=tmp_path, parameters={"seed": 0}, num_workers=1)
    assert (tmp_path / "mine.mp4").exists()


@pytest.mark.parametrize("sound, lag", [(("rising", "march"), 0.13), (("wavering", "gallop"), 0.23)])
def test_the_accent_falls_on_the_moment_when_the_shape_is_largest(sound, lag):
    """Size and loudness swing with the same period; in cycles, the middle of the sound's events comes `lag` later."""
    clips = [clip for clip in toy.toy_clips("train", 120, seed=0) if clip.motion == "pulsing" and clip.sound == sound]
    for clip in [clip for clip in clips if not clip.foreign][:4]:
        frames, samples, fps = toy.render_clip(clip, seed=0)
        distance = np.abs(frames - np.median(frames, axis=(0, 1, 2))).min(axis=-1)
        size = (distance > 50).mean(axis=(1, 2))  # (T,)
        loudness = np.abs(samples).reshape(300, -1).mean(axis=1)  # 100 values a second
        periods = np.linspace(*toy.PERIODS, 200)[:, None]
        swing = (size - size.mean()) * np.exp(-2j * np.pi * np.arange(len(size)) / fps / periods)
        best = np.abs(swing.sum(axis=1)).argmax()
        sound_swing = (loudness * np.exp(-2j * np.pi * (np.arange(300) + 0.5) / 100 / periods[best])).sum()
        measured = np.angle(swing[best].sum() / sound_swing) / (2 * np.pi)
        assert measured == pytest.approx(lag, abs=0.08)


def log_spectrum(samples: np.ndarray, *, num_bands: int = 64) -> np.ndarray:
    """Mean over time of the log power in bands that grow with frequency, as a mel scale does."""
    power = np.abs(np.fft.rfft(samples.reshape(-1, 750) * np.hanning(750), 1024)) ** 2
    edges = np.unique(np.geomspace(3, 512, num_bands + 1).round().astype(int))
    return np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-6).mean(axis=0)


def test_color_and_spectrum_do_not_tell_the_class():
    features, labels = {}, {}
    for split, num_clips in (("train", 144), ("test", 72)):
        clips = toy.toy_clips(split, num_clips, seed=0)
        labels[split] = [clip.label for clip in clips]
        features[split] = []
        for clip in clips:
            frames, samples, _ = toy.render_clip(clip, seed=0)
            features[split].append([*frames.mean(axis=(0, 1, 2)), *log_spectrum(samples)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(features["train"], labels["train"])
    assert probe.score(features["test"], labels["test"]) <= 1 / 12 + 0.15
