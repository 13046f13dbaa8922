"""The toy sets: who looks and sounds like whom, same seed same bytes, and no way around motion and rhythm."""

import colorsys
import dataclasses
import importlib
import itertools
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


def test_a_look_or_a_sound_is_in_two_classes_and_both_together_in_one():
    classes = [toy.toy_class(number) for number in range(toy.NUM_CLASSES)]
    pairs = Counter((look, sound) for looks, sounds in classes for look in looks for sound in sounds)
    assert len(pairs) == 4 * 24
    assert set(pairs.values()) == {1}
    assert Counter(look for looks, _ in classes for look in looks) == dict.fromkeys(range(24), 2)
    assert Counter(sound for _, sounds in classes for sound in sounds) == dict.fromkeys(range(24), 2)
    assert len(set(toy.LOOKS)) == len(set(toy.SOUNDS)) == 24
    assert {motion for motion, _, _ in toy.LOOKS} == set(toy.MOTIONS)
    for looks, sounds in classes:  # one motion in two shapes, one sweep in two rhythms; small things sound high
        assert len({(motion, size) for look in looks for motion, _, size in [toy.LOOKS[look]]}) == 1
        assert len({(sweep, register) for sound in sounds for sweep, _, register in [toy.SOUNDS[sound]]}) == 1
        assert (toy.LOOKS[looks[0]][2], toy.SOUNDS[sounds[0]][2]) in {("small", "high"), ("large", "low")}


@pytest.mark.parametrize("split, num_clips", [("train", 960), ("test", 480)])
def test_one_clip_in_ten_is_foreign_and_the_rest_sound_as_their_class(split, num_clips):
    clips = toy.toy_clips(split, num_clips, seed=0)
    assert sum(clip.foreign for clip in clips) == num_clips // 10
    own = [clip for clip in clips if not clip.foreign]
    going = {(clip.look, clip.sound): clip.label for clip in own}
    assert len(going) == 4 * 24
    assert all(going[clip.look, clip.sound] == clip.label for clip in own)
    assert not any((clip.look, clip.sound) in going for clip in clips if clip.foreign)
    assert Counter(clip.label for clip in clips) == dict.fromkeys({clip.label for clip in clips}, num_clips // 24)
    assert len({clip.label for clip in clips}) == 24
    assert all(clip.label.startswith(f"{clip.look[2]}-{clip.look[0]}_") for clip in clips)
    assert all(clip.label.endswith(f"_{clip.sound[0]}") for clip in own)
    assert len({clip.path for clip in clips}) == num_clips


@pytest.mark.parametrize("tied", [True, False])
def test_a_sound_has_the_cues_of_its_picture_unless_it_is_foreign_or_untied(tied):
    clips = toy.toy_clips("train", 600, seed=0, tied=tied)
    for clip in clips:
        assert (clip.seen == clip.heard) == (tied and not clip.foreign)
    seen, heard = (
        np.array([[cues.period, cues.phase, cues.ambience] for cues in each])
        for each in ([clip.seen for clip in clips], [clip.heard for clip in clips])
    )
    labels = np.array([clip.label for clip in clips])
    for cues in (seen, heard):
        assert cues.min(axis=0) == pytest.approx([0.4, 0, 0], abs=0.02)
        assert cues.max(axis=0) == pytest.approx([1.0, 1, 1], abs=0.02)
        means = np.array([cues[labels == label].mean(axis=0) for label in np.unique(labels)])
        assert (means.std(axis=0) < 2 * cues.std(axis=0) / 25**0.5).all()  # 25 clips a class: they say nothing of it
    ties = [abs(np.corrcoef(seen[:, n], heard[:, n])[0, 1]) for n in range(3)]
    assert min(ties) > 0.8 if tied else max(ties) < 0.12
    assert [clip.seen for clip in clips] == [clip.seen for clip in toy.toy_clips("train", 600, seed=0)]


def test_cluttered_training_clips_show_other_things_too_or_none():
    plain, clips = (make("train", 400, seed=0) for make in (toy.toy_clips, toy.cluttered_clips))
    assert [dataclasses.replace(clip, things=None) for clip in clips] == plain
    assert Counter(len(clip.things) for clip in clips) == dict.fromkeys(range(4), 100)
    assert all(clip.things[0] == clip.look for clip in clips if clip.things)
    assert {other for clip in clips for other in clip.things[1:]} == set(toy.LOOKS)
    assert toy.cluttered_clips("test", 48, seed=0) == toy.toy_clips("test", 48, seed=0)
    covered = {number: [] for number in range(4)}
    for clip in clips[:48]:
        frames, samples, _ = toy.render_clip(clip, seed=0)
        distance = np.abs(frames - np.median(frames, axis=(0, 1, 2))).min(axis=-1)
        covered[len(clip.things)].append((distance > 40).mean())
        assert np.array_equal(samples, toy.render_clip(clip, seed=0)[1])
    means = [np.mean(covered[number]) for number in range(4)]
    assert means == sorted(means)
    assert means[0] < 0.01 < means[1]
    assert {toy.describe_clip(clip)["things"] for clip in clips} == set(range(4))
    assert "things" not in toy.describe_clip(plain[0])


def test_actions_show_the_motions_with_shapes_of_their_own():
    clips = toy.action_clips("test", 120, seed=0)
    assert Counter(clip.label for clip in clips) == dict.fromkeys(toy.MOTIONS, 20)
    assert {clip.look[1] for clip in clips}.isdisjoint(toy.SHAPES)
    assert {(clip.look[2], clip.material) for clip in clips} == set(itertools.product(toy.SIZES, toy.MATERIALS))
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
                assert (video.codec_context.name, video.width, video.height) == ("h264", 64, 64)
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
    assert min(rates) >= 10
    assert max(rates) <= 20
    assert len(rates) > 5


def test_same_seed_same_bytes_with_any_number_of_workers(made, tmp_path):
    make(tmp_path / "two", "--workers", "2")
    assert contents(tmp_path / "two") == contents(made)
    clips = toy.toy_clips("train", 8, seed=0)
    one, other = ([toy.render_clip(clip, seed=seed)[0] for clip in clips] for seed in (0, 1))
    assert not any(np.array_equal(*pair) for pair in zip(one, other, strict=True))


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


@pytest.mark.parametrize("rhythm, lag", [("march", 0.13), ("gallop", 0.23)])
def test_the_accent_falls_on_the_moment_when_the_shape_is_largest(rhythm, lag):
    """Size and loudness swing with the same period; in cycles, the middle of the sound's events comes `lag` later."""
    clips = toy.toy_clips("train", 480, seed=0)
    own = [clip for clip in clips if clip.look[0] == "pulsing" and clip.sound[1] == rhythm and not clip.foreign]
    assert len(own) > 4
    for clip in own[:5]:
        frames, samples, fps = toy.render_clip(clip, seed=0)
        distance = np.abs(frames - np.median(frames, axis=(0, 1, 2))).min(axis=-1)
        size = (distance > 40).mean(axis=(1, 2))  # (T,)
        loudness = np.abs(samples).reshape(300, -1).mean(axis=1)  # 100 values a second
        whole = int(toy.SECONDS / clip.seen.period) * clip.seen.period  # seconds of whole cycles
        swings = []
        for values, rate in ((size, fps), (loudness, 100)):
            values, times = values[: round(whole * rate)], (np.arange(round(whole * rate)) + 0.5) / rate
            swings.append(((values - values.mean()) * np.exp(-2j * np.pi * times / clip.seen.period)).sum())
        assert np.angle(swings[0] / swings[1]) / (2 * np.pi) == pytest.approx(lag, abs=0.08)


def test_the_ground_and_the_hum_tell_the_ambience():
    """The cues can be read from the clip: hue of the ground, pitch of the loudest tone below the calls."""
    clips = toy.toy_clips("train", 40, seed=0)
    for clip in [clip for clip in clips if not clip.foreign and clip.sound[2] == "high"][:12]:  # calls above the hum
        frames, samples, _ = toy.render_clip(clip, seed=0)
        red, green, blue = np.median(frames, axis=(0, 1, 2)) / 255
        hue = colorsys.rgb_to_hsv(red, green, blue)[0]
        assert hue == pytest.approx(0.8 * clip.seen.ambience, abs=0.05) or hue == pytest.approx(1, abs=0.05)
        power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2  # 3 s: a third of a hertz each
        below_the_calls = power[: 3 * 380]
        lowest = np.argmax(below_the_calls > 0.2 * below_the_calls.max()) / 3  # Hz, no overtone
        assert np.log(lowest / 90) / np.log(4) == pytest.approx(clip.heard.ambience, abs=0.03)


def log_spectrum(samples: np.ndarray, *, num_bands: int = 64) -> np.ndarray:
    """Mean over time of the log power in bands that grow with frequency, as a mel scale does."""
    power = np.abs(np.fft.rfft(samples.reshape(-1, 750) * np.hanning(750), 1024)) ** 2
    edges = np.unique(np.geomspace(3, 512, num_bands + 1).round().astype(int))
    return np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-6).mean(axis=0)


def test_color_and_spectrum_tell_pairs_of_motions_and_sweeps_at_best():
    """Of two motions of a material and two sweeps of a timbre each, a class is one of four."""
    features, labels = {}, {}
    for split, num_clips in (("train", 240), ("test", 120)):
        clips = toy.toy_clips(split, num_clips, seed=0)
        labels[split] = [clip.label for clip in clips]
        features[split] = []
        for clip in clips:
            frames, samples, _ = toy.render_clip(clip, seed=0)
            features[split].append([*frames.mean(axis=(0, 1, 2)), *log_spectrum(samples)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(features["train"], labels["train"])
    assert probe.score(features["test"], labels["test"]) <= 1 / 4 + 0.1
