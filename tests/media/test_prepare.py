"""Copies show the same pictures at the same times and sound the same, and no half copy is ever left."""

import errno
import math
import os
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from avssl.media import prepare as module
from avssl.media.decode import VideoWindow, read_clip, read_frames, read_samples
from avssl.media.encode import write_clip
from avssl.media.inspect import inspect
from avssl.media.prepare import Settings, prepare_clip, read_record
from avssl.media.probe import content_key, probe
from avssl.media.reader import WOBBLE_SECONDS, Reader
from tests.support.numbered import (
    CASES,
    ONSET,
    SHARED,
    case,
    decode_in_order,
    lag_seconds,
    make,
    move_stamps,
    needs_shared,
    numbers,
    tone,
)

pytestmark = pytest.mark.slow
SIZE = 32, 48


def still(path: Path, *, samples: np.ndarray | None = None, rate: int = 24000, **options: object) -> Path:
    """A gray clip for what the sound of a copy depends on."""
    frames = np.full((20, *SIZE, 3), 90, dtype=np.uint8)
    codec = {"audio_codec": "pcm_s16le"} if samples is not None and path.suffix == ".mov" else {}
    write_clip(path, frames, fps=10, samples=samples, sample_rate=rate if samples is not None else None, **codec)
    return path


def sound_of(path: Path) -> list[tuple[float, np.ndarray]]:
    with Reader(path) as reader:
        return [(start, frame.to_ndarray()[0]) for start, frame in reader.frames_from("audio", -math.inf)]


def test_the_longest_names_of_files(tmp_path):
    name = f"{'é' * 125}x.mp4"
    assert len(name.encode()) == 255
    assert prepare_clip(still(tmp_path / name), tmp_path / "new" / name, Settings()).state == "written"


@pytest.mark.parametrize("name", CASES)
def test_every_frame_and_the_sound_keep_their_times(tmp_path, name):
    path, copy = case(tmp_path, name), tmp_path / "copy.mp4"
    options = CASES[name]
    done = prepare_clip(path, copy, Settings())
    assert (done.state, done.shift, done.facts) == ("written", 0, probe(copy))
    assert (done.facts.width, done.facts.height, done.facts.rotation) == (96, 64, 0)  # upright, never enlarged
    times, shown = decode_in_order(path, options)
    copied_times, copied = decode_in_order(copy)
    assert copied.tolist() == shown.tolist()
    np.testing.assert_allclose(copied_times, times, atol=1e-5)
    first_sample = options.get("audio_start", 0.0)
    if path.suffix in (".ts", ".mpg"):
        first_sample += times[0] - options.get("video_start", 0.0)
    start = first_sample + 0.9
    samples = read_samples(copy, start=start, duration=2.5, sample_rate=24000)
    expected = tone(start - first_sample + np.arange(60000) / 24000) / options.get("channels", 1)
    lag, likeness = lag_seconds(samples.data, expected, 24000)
    assert abs(lag) < 1e-3
    assert likeness > 0.98
    assert np.std(samples.data) == pytest.approx(np.std(expected), rel=0.1)
    assert not samples.padded


def test_a_copy_is_small_and_quick_to_decode(tmp_path):
    write_clip(tmp_path / "big.mp4", np.full((30, 200, 300, 3), 70, np.uint8), fps=30, b_frames=2, gop=250)
    prepare_clip(tmp_path / "big.mp4", tmp_path / "copy.mp4", Settings())
    with av.open(str(tmp_path / "copy.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.pix_fmt) == (192, 128, "yuv420p")
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.dts is not None]
        container.seek(0)
        kinds = {frame.pict_type for frame in container.decode(stream)}
    assert [i for i, key in enumerate(keys) if key] == [0, 12, 24]
    assert kinds == {PictureType.I, PictureType.P}


@pytest.mark.parametrize(
    "size, short_side, expected",
    [((33, 51), 128, (32, 50)), ((90, 160), 33, (32, 58)), ((256, 340), 128, (128, 170)), ((16, 400), 128, (16, 400))],
)
def test_sizes_are_even_and_never_grow(tmp_path, size, short_side, expected):
    frames = [av.VideoFrame(size[1], size[0], "rgb24") for _ in range(3)]
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=size[1], height=size[0], pix_fmt="bgr0")
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        container.mux(packets)
    facts = prepare_clip(tmp_path / "clip.mkv", tmp_path / "copy.mp4", Settings(short_side=short_side)).facts
    assert (facts.height, facts.width) == expected


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("space, full_range", [(1, False), (1, True), (6, True), (2, False)])
def test_colors_are_those_of_the_source(tmp_path, space, full_range, rotation):
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 180, 20]], dtype=np.uint8)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4, width=96, height=64, pix_fmt="yuv420p", options={"crf": "5"})
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 1 + full_range
        if rotation:
            stream.set_display_rotation(rotation)
        for color in colors:
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(color, (64, 96, 3)).copy(), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=1 if space == 1 else 5, dst_color_range=1 + full_range
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    prepare_clip(tmp_path / "clip.mp4", tmp_path / "copy.mp4", Settings())
    copy = read_frames(tmp_path / "copy.mp4", start=0, duration=1, fps=4).data[:, 32, 32].astype(int)
    source = read_frames(tmp_path / "clip.mp4", start=0, duration=1, fps=4).data[:, 32, 32].astype(int)
    np.testing.assert_allclose(copy, source, atol=6)


def test_constant_rate_shows_the_frame_of_each_moment(tmp_path):
    path = case(tmp_path, "variable.mp4")
    times, shown = decode_in_order(path)
    prepare_clip(path, tmp_path / "copy.mp4", Settings(fps=12.5))
    copied_times, copied = decode_in_order(tmp_path / "copy.mp4")
    np.testing.assert_allclose(copied_times, times[0] + np.arange(len(copied)) / 12.5, atol=1e-5)
    expected = shown[np.searchsorted(times, copied_times + 1e-4, side="right") - 1]
    assert copied.tolist() == expected.tolist()
    assert probe(path).video_end - 1 / 12.5 <= copied_times[-1] + 1e-3 <= probe(path).video_end
    assert probe(tmp_path / "copy.mp4").fps == pytest.approx(12.5)


@pytest.mark.parametrize("start", [3600.0 * 30, 0.2501])
def test_clips_that_begin_late_keep_their_clock(tmp_path, start):
    path = make(tmp_path / "late.nut", video_start=start + 0.5, audio_start=start, audio_codec="pcm_s16le", fps=30)
    facts = prepare_clip(path, tmp_path / "copy.mp4", Settings()).facts
    assert (facts.audio_start, facts.video_start) == pytest.approx((start, start + 0.5), abs=1e-4)


def test_a_clip_that_begins_before_zero_moves_as_one(tmp_path):
    make(tmp_path / "clip.ts", fps=20, seconds=3, video_start=1, audio_start=1.25, rate=48000)
    path = tmp_path / "early.ts"
    start = probe(tmp_path / "clip.ts").video_start
    options = {"avoid_negative_ts": "disabled"}  # or the muxer would move it
    with av.open(str(tmp_path / "clip.ts")) as source, av.open(str(path), "w", options=options) as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.pts = packet.dts = packet.dts - round((start + 0.4) / packet.time_base)
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    found = probe(path)
    assert found.video_start == pytest.approx(-0.4, abs=1e-3)
    done = prepare_clip(path, tmp_path / "copy.mp4", Settings())
    assert done.shift == pytest.approx(0.4, abs=1e-3)
    times, shown = decode_in_order(tmp_path / "copy.mp4")
    assert shown.tolist() == list(range(60))
    np.testing.assert_allclose(times, np.arange(60) / 20, atol=1e-3)
    assert done.facts.audio_start == pytest.approx(found.audio_start + done.shift, abs=1e-4)
    assert read_record(tmp_path / "copy.mp4").shift == done.shift


@pytest.mark.parametrize("extra", [0, 1, 15, 5999])
def test_sound_of_the_same_rate_is_kept_sample_by_sample(tmp_path, extra):
    samples = (0.5 * np.sin(np.arange(24000 + extra) / 7)).astype(np.float32)
    prepare_clip(still(tmp_path / "clip.mov", samples=samples), tmp_path / "copy.mp4", Settings())
    heard = sound_of(tmp_path / "copy.mp4")
    assert heard[0][0] == 0
    np.testing.assert_array_equal(np.concatenate([values for _, values in heard]), np.rint(samples * 32768))


def test_channels_are_mixed_by_their_mean(tmp_path):
    left = (0.5 * np.sin(np.arange(24000) / 7)).astype(np.float32)
    samples = np.stack([left, np.full_like(left, 0.25)], axis=1)
    prepare_clip(still(tmp_path / "clip.mov", samples=samples), tmp_path / "copy.mp4", Settings())
    heard = np.concatenate([values for _, values in sound_of(tmp_path / "copy.mp4")]) / 32768
    np.testing.assert_allclose(heard, samples.mean(axis=1), atol=1 / 32768)


def write_sound(path: Path, parts: list[tuple[float, np.ndarray]], rate: int) -> Path:
    """Only sound: 20 ms to a packet, each part at its second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start, samples in parts:
            for i in range(0, len(samples), rate // 50):
                frame = av.AudioFrame.from_ndarray(samples[None, i : i + rate // 50], format="flt", layout="mono")
                frame.sample_rate, frame.pts = rate, round(start * rate) + i
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("gap", [0.4, 30.0])
@pytest.mark.parametrize("rate", [24000, 44100])
def test_sound_after_a_gap_is_where_it_was(tmp_path, gap, rate):
    heard = tone(np.arange(2 * rate) / rate + ONSET)
    path = write_sound(tmp_path / "holed.nut", [(0, heard), (2 + gap, heard)], rate)
    assert prepare_clip(path, tmp_path / "copy.mp4", Settings()).state == "written"
    expected = tone(np.arange(45600) / 24000 + ONSET)
    for start in (0, 2 + gap):
        samples = read_samples(tmp_path / "copy.mp4", start=start, duration=1.9, sample_rate=24000).data
        assert abs(lag_seconds(samples, expected, 24000)[0]) < 1e-4
    assert not read_samples(tmp_path / "copy.mp4", start=2.05, duration=0.3, sample_rate=24000).data.any()


def test_a_clock_that_drifts_is_followed(tmp_path):
    """A recorder whose second has 24,024 samples: after 140 s of sound the timestamps are 140 ms from the count. That
    far they could not have wobbled.
    """
    rate, length = 24000, 480
    seconds = np.arange(0, 140 * 1.001, length / rate * 1.001)
    with av.open(str(tmp_path / "drift.nut"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for number, second in enumerate(seconds):
            values = np.full((1, length), 0.5 if number % 100 == 0 else 0.0, dtype=np.float32)  # a beat every 2.002 s
            frame = av.AudioFrame.from_ndarray(values, format="flt", layout="mono")
            frame.sample_rate, frame.pts = rate, round(second * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    prepare_clip(tmp_path / "drift.nut", tmp_path / "copy.mp4", Settings())
    for beat in range(1, 70, 4):
        heard = read_samples(tmp_path / "copy.mp4", start=beat * 2.002 - 0.2, duration=0.4, sample_rate=rate).data
        assert abs(np.argmax(heard > 0.25) / rate - 0.2) < WOBBLE_SECONDS + 2e-3


def test_long_sound_is_not_held_in_memory(tmp_path):
    path = write_sound(tmp_path / "long.nut", [(0, np.full(120 * 4000, 0.1, dtype=np.float32))], 4000)
    tracemalloc.start()
    try:
        prepare_clip(path, tmp_path / "copy.mp4", Settings())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert probe(tmp_path / "copy.mp4").audio_end == pytest.approx(120, abs=1e-3)
    assert peak < 2e6  # 2 minutes at 24 kHz are 12 MB of float32


def test_a_clip_without_audio_gets_none_and_says_why(tmp_path):
    still(tmp_path / "clip.mp4")
    done = prepare_clip(tmp_path / "clip.mp4", tmp_path / "copy.mp4", Settings())
    assert (done.facts.status, done.facts.audio_start) == ("ok", None)
    assert done.facts.reason == "the file has no audio track"
    assert prepare_clip(tmp_path / "clip.mp4", tmp_path / "copy.mp4", Settings()) == replace(done, state="kept")


def test_a_file_of_sound_becomes_a_copy_of_sound(tmp_path):
    path = write_sound(tmp_path / "sound.wav", [(0, tone(np.arange(2 * 16000) / 16000))], 16000)
    done = prepare_clip(path, tmp_path / "copy.mp4", Settings())
    assert (done.state, done.facts.status, done.facts.has_audio) == ("written", "no_video", True)
    heard = read_samples(tmp_path / "copy.mp4", start=0, duration=2, sample_rate=24000)
    assert abs(lag_seconds(heard.data, tone(np.arange(48000) / 24000), 24000)[0]) < 1e-4


def test_a_copy_is_made_once_and_anew_when_source_or_settings_change(tmp_path):
    path, copy = still(tmp_path / "clip.mp4"), tmp_path / "copy.mp4"
    done = prepare_clip(path, copy, Settings())
    first = copy.read_bytes(), copy.stat().st_mtime_ns, copy.stat().st_ino
    assert prepare_clip(path, copy, Settings()) == replace(done, state="kept")
    assert (copy.read_bytes(), copy.stat().st_mtime_ns, copy.stat().st_ino) == first
    assert read_record(copy).source_key == done.source_key == content_key(path)
    assert prepare_clip(path, copy, Settings(gop=8)).state == "written"
    assert read_record(copy).settings["gop"] == 8
    make(path)
    assert prepare_clip(path, copy, Settings(gop=8)).facts.width == 96
    again = tmp_path / "again.mp4"
    prepare_clip(path, again, Settings(gop=8))
    assert again.read_bytes() == copy.read_bytes()  # the same source gives the same bytes
    assert sorted(os.listdir(tmp_path)) == ["again.mp4", "clip.mp4", "copy.mp4"]


def test_a_source_that_broke_or_is_away_costs_no_copy(tmp_path):
    path, copy = still(tmp_path / "clip.mp4"), tmp_path / "copy.mp4"
    prepare_clip(path, copy, Settings())
    content = copy.read_bytes()
    for status, reason in (("empty", "the file is empty"), ("missing", "the file does not exist")):
        path.write_bytes(b"") if status == "empty" else path.unlink()
        done = prepare_clip(path, copy, Settings())  # failed: its row is not used, whatever lies there
        assert (done.state, done.facts.status, done.facts.reason) == ("failed", status, reason)
        assert copy.read_bytes() == content


def test_a_gap_of_hours_is_no_sound_to_be_filled(tmp_path):
    heard = tone(np.arange(48000) / 24000 + ONSET)
    path = write_sound(tmp_path / "holed.nut", [(0, heard), (7200, heard)], 24000)
    done = prepare_clip(path, tmp_path / "copy.mp4", Settings())
    assert (done.state, done.facts.reason) == ("failed", "its audio has a gap of 7198 seconds")
    assert os.listdir(tmp_path) == ["holed.nut"]


def test_files_of_others_are_never_replaced(tmp_path):
    path, other = still(tmp_path / "clip.mp4"), still(tmp_path / "other.mp4")
    content = other.read_bytes()
    done = prepare_clip(path, other, Settings())
    assert done.state == "failed"
    assert "is no copy made by this tool" in done.facts.reason
    assert other.read_bytes() == content


@pytest.mark.parametrize("number, state", [(errno.ENOSPC, "stopped"), (errno.ENAMETOOLONG, "failed")])
def test_a_disk_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, number, state):
    def refuse(source: object, target: Path, *rest: object) -> None:
        target.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "_write", refuse)
    path = still(tmp_path / "clip.mp4")
    done = prepare_clip(path, tmp_path / "copy.mp4", Settings())
    assert done.state == state
    assert os.strerror(number) in done.facts.reason
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"short_side": 8}, "short_side=8 must be at least 16"),
        ({"gop": 0}, "gop=0 must be at least 1"),
        ({"fps": 0}, "fps=0 must be above 0"),
        ({"fps": 1000}, "fps=1000 .* at most 120"),
        ({"sample_rate": 100}, "sample_rate=100 must be 4000 to 192000"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


@needs_shared
@pytest.mark.media
@pytest.mark.parametrize(
    "name",
    [
        "sample_h264_mpeg_audio.ts",
        "sample.flv",
        "var_fps_video.mp4",
        "timecode_side_data.mkv",
        "damaged_cut95_pancake.mkv",
    ],
)
def test_awkward_files_keep_their_times(tmp_path, name):
    path = SHARED / "awkward" / name
    done = prepare_clip(path, tmp_path / "copy.mp4", Settings())
    assert done.state == "written", done
    for kind in ("video", "audio"):
        with Reader(path) as source, Reader(tmp_path / "copy.mp4") as copy:
            if getattr(source, kind) is None:
                continue
            before = [start + done.shift for start, _ in source.frames_from(kind, -math.inf)]
            after = [start for start, _ in copy.frames_from(kind, -math.inf)]
        if kind == "video":
            np.testing.assert_allclose(after, before, atol=1e-4)
        else:
            assert after[0] == pytest.approx(before[0], abs=1e-3)


def test_worker_answers_as_the_function(tmp_path):
    still(tmp_path / "clip.mp4")
    job = {"source": str(tmp_path / "clip.mp4"), "target": str(tmp_path / "copy.mp4"), "settings": asdict(Settings())}
    assert module._run_job(job | {"dry_run": True}) == {"done": False, "seconds": pytest.approx(2, abs=0.1)}
    assert module._run_job(job | {"dry_run": False})["state"] == "written"
    assert module._run_job(job | {"dry_run": True})["done"]
    assert not module._run_job(job | {"dry_run": True, "source": str(tmp_path / "lost.mp4")})["done"]


def test_a_window_of_the_copy_shows_the_frames_of_the_source(tmp_path):
    path = case(tmp_path, "23.976.mp4")
    prepare_clip(path, tmp_path / "copy.mp4", Settings())
    windows = [VideoWindow(start, 0.5, 16) for start in (0.0, 0.71, 2.002, 3.3)]
    for before, after in zip(
        *(read_clip(each, video=windows)[0] for each in (path, tmp_path / "copy.mp4")), strict=True
    ):
        assert numbers(after.data) == numbers(before.data)


@pytest.mark.parametrize("codec, channels", [("adpcm_ima_wav", 1), ("pcm_s16le", 2), ("pcm_s24le", 1)])
def test_a_copy_of_avi_is_as_long_as_the_clip(tmp_path, codec, channels):
    options = {"video_codec": "mpeg4", "audio_codec": codec, "rate": 16000, "channels": channels}
    done = prepare_clip(make(tmp_path / "clip.avi", **options), tmp_path / "copy.mp4", Settings())
    assert done.facts.audio_end == pytest.approx(4, abs=0.15)
    assert done.facts.size < 300_000
    heard = read_samples(tmp_path / "copy.mp4", start=1.7, duration=1.5, sample_rate=24000).data
    assert abs(lag_seconds(heard, tone(1.7 + np.arange(36000) / 24000), 24000)[0]) < 1e-3


@pytest.mark.parametrize("milliseconds", [2, 15])
def test_sound_whose_timestamps_wobble_stays_in_one_piece(tmp_path, milliseconds):
    whole = make(tmp_path / "whole.mkv", audio_codec="pcm_s16le")

    def moved(kind: str, number: int, seconds: float) -> float:
        wobble = np.random.default_rng(number).uniform(-1, 1) * milliseconds / 1000
        return seconds + 0.1 + (wobble if kind == "audio" else 0)

    prepare_clip(move_stamps(whole, tmp_path / "clip.mkv", moved), tmp_path / "copy.mp4", Settings())
    source = np.concatenate([values for _, values in sound_of(whole)])
    copy = np.concatenate([values for _, values in sound_of(tmp_path / "copy.mp4")])
    shift = round((sound_of(tmp_path / "copy.mp4")[0][0] - 0.1) * 24000)
    assert abs(shift) < milliseconds * 24
    assert len(copy) == len(source)
    np.testing.assert_array_equal(copy, source)


def test_holes_of_the_source_are_those_of_the_copy(tmp_path):
    whole = make(tmp_path / "whole.mkv")
    path = move_stamps(whole, tmp_path / "paused.mkv", lambda kind, number, seconds: seconds + 60 * (seconds > 2))
    for state in ("written", "kept"):
        done = prepare_clip(path, tmp_path / "copy.mp4", Settings())
        assert done.state == state
        assert np.array(done.facts.holes) == pytest.approx(np.array([[2.0, 62.0]]), abs=0.1)
    assert inspect(tmp_path / "copy.mp4").holes == done.facts.holes  # it is full of silence itself
    assert np.array(probe(path).holes) == pytest.approx(np.array([[2.0, 62.0]]), abs=0.1)
    assert probe(whole).holes == []
