"""Tracks: what moves by itself is found and followed, and what does not is told with its reason."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avssl.evaluate.scenes import Scene, draw_texture, make_scene
from avssl.media.encode import write_clip
from avssl.media.reader import DecodeError
from avssl.mining import tracking
from avssl.mining.tracking import Found, Options, find_tracks, overlap, track_clip

FPS = 15
OPTIONS = Options(max_frames=16, max_tracks=1)


def find(scene: Scene, options: Options = OPTIONS) -> Found:
    return find_tracks(scene.frames, np.arange(len(scene.frames)) / FPS, options=options)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(3, num_frames=20, num_objects=1)


@pytest.mark.parametrize("tracker", tracking.TRACKERS)
def test_a_moving_thing_is_followed(scene: Scene, tracker: tracking.Tracker) -> None:
    found = find(scene, Options(max_frames=16, max_tracks=1, tracker=tracker))
    assert found.reason == ""
    (track,) = found.tracks
    assert track.boxes.shape == (len(track.times), 4)
    assert 8 <= len(track.times) <= 16
    assert (np.diff(track.times) > 0).all()
    assert (track.boxes[:, :2] >= 0).all()
    assert (track.boxes[:, :2] + track.boxes[:, 2:] <= 1 + 1e-9).all()
    begin = round(track.times[0] * FPS)
    overlaps = [overlap(box, scene.boxes[begin + i, 0]) for i, box in enumerate(track.boxes)]
    assert np.mean(overlaps) > 0.6
    assert track.confidence[0] == pytest.approx(1)
    assert ((track.confidence >= 0) & (track.confidence <= 1)).all()


def test_the_same_clip_gives_the_same_tracks(scene: Scene) -> None:
    first, again = find(scene), find(scene)
    assert first.tracks[0].boxes.tobytes() == again.tracks[0].boxes.tobytes()


def test_several_tracks_are_of_several_things_or_times() -> None:
    scene = make_scene(1, num_frames=20)
    found = find(scene, Options(max_frames=16, max_tracks=2))
    assert len(found.tracks) == 2
    first, second = found.tracks
    common = np.intersect1d(first.times, second.times)
    places = [track.boxes[np.searchsorted(track.times, common[0])] for track in (first, second)]
    assert overlap(*places) < tracking.DISTINCT_OVERLAP


@pytest.mark.parametrize("shake, pan", [(0, 0), (1.5, 0), (0, 60), (2, 40)])
def test_a_camera_alone_gives_no_track(shake: float, pan: float) -> None:
    for seed in range(2):
        found = find(make_scene(seed, num_frames=18, num_objects=0, shake=shake, pan=pan))
        assert (found.tracks, found.reason) == ([], "no motion")


def test_reasons() -> None:
    still = np.full((20, 60, 80, 3), 90, np.uint8)
    assert find_tracks(still[:7], np.arange(7.0), options=OPTIONS).reason == "too short"
    assert find_tracks(still, np.arange(20) / FPS, options=OPTIONS).reason == "no motion"
    cuts = np.stack([draw_texture(np.random.default_rng(i), 120, 160) for i in range(20)])
    assert find_tracks(cuts, np.arange(20) / FPS, options=OPTIONS).reason == "too much motion"


def test_no_track_crosses_a_cut() -> None:
    scenes = [make_scene(seed, num_frames=12, num_objects=1) for seed in (0, 1)]
    frames = np.concatenate([scene.frames for scene in scenes])
    found = find_tracks(frames, np.arange(24) / FPS, options=OPTIONS)
    for track in found.tracks:
        assert track.times[-1] < 11.5 / FPS or track.times[0] > 11.5 / FPS


def test_a_thing_that_comes_to_rest_ends_its_track(scene: Scene) -> None:
    """12 frames of motion, then the last of them again and again: the box must not stay for 30."""
    frames = np.concatenate([scene.frames[:12], np.repeat(scene.frames[11:12], 20, axis=0)])
    (track,) = find_tracks(frames, np.arange(32) / FPS, options=Options(max_frames=20, max_tracks=1)).tracks
    assert track.times[-1] == pytest.approx(11 / FPS)


def test_each_check_drops_what_it_is_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def follow_badly(boxes: np.ndarray, reason: str) -> Found:
        monkeypatch.setattr(tracking, "_follow", lambda frames, box, name: (boxes[: len(frames)], reason))
        return find(scene)

    there = np.tile([40, 40, 60, 60], (20, 1))
    away = there + 6 * np.arange(20)[:, None] * [1, 0, 0, 0]
    assert follow_badly(there[:3], "lost").reason == "lost"
    assert follow_badly(there[:3], "left the frame").reason == "left the frame"
    monkeypatch.setattr(tracking, "STILL", -1.0)
    assert follow_badly(there, "").reason == "hardly moves"
    assert follow_badly(away, "").reason == "not found backwards"  # back it goes away again


def test_a_file_is_read_with_its_own_times(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, scene.frames, fps=10, video_start=0.5)
    found = track_clip(str(path), start=0.5, end=2.5, size=(240, 320), options=OPTIONS)
    (track,) = found.tracks
    np.testing.assert_allclose((track.times - 0.5) * 10, np.rint((track.times - 0.5) * 10), atol=0.02)
    assert track.times[0] >= 0.5
    assert (np.diff(track.times) > 0.09).all()  # 15 frames per second are asked for, 10 exist
    overlaps = [
        overlap(box, scene.boxes[round((second - 0.5) * 10), 0])
        for second, box in zip(track.times, track.boxes, strict=True)
    ]
    assert np.mean(overlaps) > 0.6
    with pytest.raises(DecodeError):
        track_clip(str(tmp_path / "none.mp4"), start=0, end=1, size=(240, 320), options=OPTIONS)


def test_the_worker_answers_for_files_that_cannot_be_read(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "text.mp4").write_text("words")
    job = {
        "path": str(tmp_path / "text.mp4"),
        "start": 0.0,
        "end": 1.0,
        "size": [48, 64],
        "options": {"max_frames": 8},
    }
    worker = subprocess.run(
        [sys.executable, "-m", "avssl.mining.tracking"],
        input=json.dumps(job) + "\n",
        capture_output=True,
        text=True,
        cwd=repository,
        check=True,
    )
    assert "unread" in json.loads(worker.stdout)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_frames": 1}, "max_frames=1 must be at least 2"),
        ({"max_tracks": 0}, "max_tracks=0 at least 1"),
        ({"tracker": "mil"}, "tracker='mil' must be one of kcf, csrt"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)
