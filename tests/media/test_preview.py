"""Posters, spectrograms and previews: the right picture, band and second, and only what browsers play."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from avssl.media.audio import to_mono
from avssl.media.encode import write_clip
from avssl.media.preview import NUM_MELS, NUM_STEPS, _run_job, playable, poster, preview, spectrogram
from avssl.media.reader import DecodeError, Reader
from tests.support.clips import make_sound

pytestmark = pytest.mark.slow
FPS, RATE = 20, 48_000


def gray(levels: np.ndarray, height: int = 32, width: int = 48) -> np.ndarray:
    """(T,) -> (T, height, width, 3) uint8."""
    return np.broadcast_to(np.asarray(levels, np.uint8)[:, None, None, None], (len(levels), height, width, 3)).copy()


def tone(hertz: float, seconds: float, rate: int = RATE, loudness: float = 0.5) -> np.ndarray:
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_pictures(path: Path, codec: str, pix_fmt: str = "yuv420p") -> None:
    """Five pictures without sound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.thread_count = 1
        if "aspect" in path.name:
            stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(gray([30 * i], 48, 64)[0], format="rgb24").reformat(format=pix_fmt)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def opened(path: Path) -> np.ndarray:
    """(height, width, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# ---- posters


def test_poster_is_the_middle_frame(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", gray(np.arange(0, 210, 10), 160, 320), fps=10)
    poster(tmp_path / "clip.mp4", tmp_path / "poster.jpg")
    assert opened(tmp_path / "poster.jpg").shape == (128, 256, 3)
    assert abs(opened(tmp_path / "poster.jpg").mean() - 100) < 4
    assert (tmp_path / "poster.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    poster(tmp_path / "clip.mp4", tmp_path / "poster.jpg", (0.25, 0.75))
    assert abs(opened(tmp_path / "poster.jpg").mean() - 50) < 4


def test_a_part_behind_the_end_shows_the_last_frame(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", gray([0, 50, 200]), fps=10)
    poster(tmp_path / "clip.mp4", tmp_path / "poster.jpg", (5.0, 9.0))
    assert abs(opened(tmp_path / "poster.jpg").mean() - 200) < 4


@pytest.mark.parametrize("rotation, bright", [(90, np.s_[:, :14]), (180, np.s_[18:]), (270, np.s_[:, 18:])])
def test_poster_is_upright(tmp_path: Path, rotation: int, bright: tuple) -> None:
    frames = gray([0, 0, 0])
    frames[:, :16] = 200  # the upper half as it is stored
    write_clip(tmp_path / "clip.mp4", frames, fps=10, rotation=rotation)
    poster(tmp_path / "clip.mp4", tmp_path / "poster.jpg")
    picture = opened(tmp_path / "poster.jpg")
    assert picture.shape == ((48, 32, 3) if rotation % 180 else (32, 48, 3))
    assert picture[bright].mean() > 180
    assert picture.mean() < 110


def test_wide_pixels_are_shown_wide(tmp_path: Path) -> None:
    write_pictures(tmp_path / "aspect.mp4", "libx264")
    poster(tmp_path / "aspect.mp4", tmp_path / "poster.jpg")
    assert opened(tmp_path / "poster.jpg").shape == (48, 128, 3)
    preview(tmp_path / "aspect.mp4", tmp_path / "preview.mp4")
    with av.open(str(tmp_path / "preview.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (128, 48)


@pytest.mark.parametrize("make, what", [(poster, "video"), (spectrogram, "audio")])
def test_a_missing_track_is_an_error(tmp_path: Path, make: Callable, what: str) -> None:
    make_sound(tmp_path / "sound.mp3", 0, 0)
    write_clip(tmp_path / "silent.mp4", gray([0, 9]), fps=10)
    source = tmp_path / ("sound.mp3" if what == "video" else "silent.mp4")
    with pytest.raises(DecodeError, match=f"the clip has no {what}"):
        make(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- spectrograms


def brightest_rows(path: Path) -> np.ndarray:
    """(NUM_STEPS,) row of the brightest pixel of each column, from the top."""
    picture = opened(path).astype(int).sum(axis=2)
    assert picture.shape == (NUM_MELS, NUM_STEPS)
    return picture.argmax(axis=0)


def row_of(hertz: float) -> float:
    """Row from the top at which a tone lies: even steps on the mel scale from 0 to 8 kHz, and the outer ones are
    only corners."""
    mel, highest = (2595 * np.log10(1 + each / 700) for each in (hertz, 8000))
    return NUM_MELS - mel / highest * (NUM_MELS + 1)


def test_a_tone_is_bright_at_its_height(tmp_path: Path) -> None:
    samples = np.concatenate([tone(500, 1), tone(3000, 1, loudness=0.3)])
    write_clip(tmp_path / "clip.mp4", gray([0, 0]), fps=1, samples=samples, sample_rate=RATE)
    spectrogram(tmp_path / "clip.mp4", tmp_path / "sound.png")
    rows = brightest_rows(tmp_path / "sound.png")
    assert np.abs(rows[5:120] - row_of(500)).max() < 1
    assert np.abs(rows[136:250] - row_of(3000)).max() < 1
    colors = opened(tmp_path / "sound.png").sum(axis=2)
    assert colors[:, :120].max() > 600  # the loudest is bright
    assert np.median(colors) < 150  # nothing is dark


def test_spectrogram_of_a_part_shows_all_of_it(tmp_path: Path) -> None:
    samples = np.concatenate([tone(500, 1), tone(3000, 1)])
    write_clip(tmp_path / "clip.mp4", gray([0, 0, 0]), fps=1, samples=samples, sample_rate=RATE)
    spectrogram(tmp_path / "clip.mp4", tmp_path / "sound.png", (0.5, 2.5))  # a quarter low, half high, a quarter silent
    rows = brightest_rows(tmp_path / "sound.png")
    assert np.abs(rows[4:58] - row_of(500)).max() < 1
    assert np.abs(rows[70:186] - row_of(3000)).max() < 1
    assert opened(tmp_path / "sound.png")[:, 200:].max() < 10


def test_spectrogram_ends_after_30_seconds_and_silence_is_dark(tmp_path: Path) -> None:
    samples = np.concatenate([tone(500, 15, 8000), tone(1500, 15, 8000), np.zeros(80_000, np.float32)])
    with av.open(str(tmp_path / "long.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for part in (samples, np.zeros(0)):
            frame = av.AudioFrame.from_ndarray((part[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame if len(part) else None))
    spectrogram(tmp_path / "long.wav", tmp_path / "sound.png")
    rows = brightest_rows(tmp_path / "sound.png")
    assert np.abs(rows[:127] - row_of(500)).max() < 1
    assert np.abs(rows[129:] - row_of(1500)).max() < 1
    spectrogram(tmp_path / "long.wav", tmp_path / "sound.png", (32.0, 39.0))
    assert opened(tmp_path / "sound.png").max() < 10


# ---- what browsers play

PICTURES = gray([0, 80, 160])
SOUND = {"samples": tone(440, 0.15), "sample_rate": RATE}
PLAYED = {  # name of the file: how it is written, media type
    "h264_aac.mp4": ({}, "video/mp4"),
    "h264_aac.mov": ({}, "video/mp4"),
    "six_channels.mp4": ({"samples": np.stack([tone(440, 0.15)] * 6, axis=1)}, "video/mp4"),
    "late_sound.mp4": ({"audio_start": 2.0}, "video/mp4"),
    "vp9_opus.webm": ({"video_codec": "libvpx-vp9", "audio_codec": "libopus"}, "video/webm"),
    "vp8_opus.webm": ({"video_codec": "libvpx", "audio_codec": "libopus"}, "video/webm"),
    "h264_aac.mkv": ({}, None),
    "vp9_opus.mkv": ({"video_codec": "libvpx-vp9", "audio_codec": "libopus"}, None),
    "mpeg4.avi": ({"video_codec": "mpeg4", "audio_codec": "libmp3lame"}, None),
    "mpeg4.mp4": ({"video_codec": "mpeg4"}, None),
    "h264_pcm.mov": ({"audio_codec": "pcm_s16le"}, None),
    "h264_ac3.mp4": ({"audio_codec": "ac3"}, None),
    "h264.3gp": ({}, None),
    "h264.ts": ({}, None),
}


@pytest.mark.parametrize("name", PLAYED)
def test_playable_by_container_and_codecs(tmp_path: Path, name: str) -> None:
    settings, expected = PLAYED[name]
    fps = 25 if settings.get("video_codec") else 20
    write_clip(tmp_path / name, PICTURES, fps=fps, **SOUND | settings)
    assert playable(tmp_path / name) == expected


@pytest.mark.parametrize(
    "name, codec, pix_fmt, expected",
    [
        ("full_range.mp4", "libx264", "yuvj420p", "video/mp4"),
        ("ten_bits.mp4", "libx264", "yuv420p10le", None),
        ("all_colors.mp4", "libx264", "yuv444p", None),
        ("half_the_colors.mp4", "libx264", "yuv422p", None),
        ("all_colors.webm", "libvpx-vp9", "yuv444p", None),
        ("av1.mp4", "libsvtav1", "yuv420p", "video/mp4"),
        ("av1_ten_bits.webm", "libsvtav1", "yuv420p10le", None),
        ("mpeg2.mpg", "mpeg2video", "yuv420p", None),
        ("motion_jpeg.mov", "mjpeg", "yuvj420p", None),
    ],
)
def test_playable_by_pixels(tmp_path: Path, name: str, codec: str, pix_fmt: str, expected: str | None) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    write_pictures(tmp_path / name, codec, pix_fmt)
    assert playable(tmp_path / name) == expected


@pytest.mark.parametrize(
    "name, codec, expected",
    [
        ("sound.mp3", "libmp3lame", "audio/mpeg"),
        ("sound.wav", "pcm_s16le", "audio/wav"),
        ("deep.wav", "pcm_s24le", None),
        ("sound.flac", "flac", "audio/flac"),
        ("sound.m4a", "aac", "audio/mp4"),
        ("lossless.m4a", "alac", None),
        ("sound.ogg", "libopus", "audio/ogg"),
        ("sound.webm", "libopus", "audio/webm"),
        ("sound.mka", "libopus", None),
        ("sound.aac", "aac", None),
    ],
)
def test_playable_sound(tmp_path: Path, name: str, codec: str, expected: str | None) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((tone(440, 0.3)[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert playable(tmp_path / name) == expected


def test_the_name_does_not_count(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", PICTURES, fps=25, video_codec="libvpx-vp9")
    write_clip(tmp_path / "clip.webm", PICTURES, fps=25, video_codec="libvpx-vp9")
    (tmp_path / "clip.mkv").rename(tmp_path / "in_truth_matroska.webm")
    (tmp_path / "clip.webm").rename(tmp_path / "in_truth_webm.mkv")
    assert playable(tmp_path / "in_truth_matroska.webm") is None
    assert playable(tmp_path / "in_truth_webm.mkv") == "video/webm"


# ---- previews


def boxes(path: Path) -> list[str]:
    """Names of the outermost boxes of an MP4, in their order."""
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def test_preview_is_a_small_mp4_that_all_play(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", gray(np.full(120, 99), 360, 480), fps=60, **SOUND | {"samples": tone(440, 2)})
    assert preview(tmp_path / "clip.mkv", tmp_path / "preview.mp4") == "video/mp4"
    assert playable(tmp_path / "preview.mp4") == "video/mp4"
    names = boxes(tmp_path / "preview.mp4")
    assert names.index("moov") < names.index("mdat")
    with av.open(str(tmp_path / "preview.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 426, 320)
        assert video.codec_context.profile in ("Constrained Baseline", "Baseline")
        assert (audio.codec_context.name, audio.sample_rate, audio.channels) == ("aac", 48_000, 1)
        frames = list(container.decode(video=0))
    times = [frame.time for frame in frames]
    assert times == pytest.approx(np.arange(60) / 30, abs=2e-3)
    assert np.diff([time for time, frame in zip(times, frames, strict=True) if frame.key_frame]) == pytest.approx([1.0])


def flash_and_click(path: Path, **starts: float) -> None:
    """At second 1.5 of the container's clock, in 3 s of picture and sound."""
    times = starts.get("video_start", 0.0) + np.arange(3 * FPS) / FPS
    samples = 0.001 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    click = round((1.5 - starts.get("audio_start", 0.0)) * RATE)
    samples[click : click + 480] = tone(1000, 0.01)
    write_clip(path, gray(200 * (np.abs(times - 1.5) < 0.01)), fps=FPS, samples=samples, sample_rate=RATE, **starts)


def seconds_of_flash_and_click(path: Path) -> tuple[float, float]:
    with Reader(path) as reader:
        pictures = [(frame.to_ndarray(format="gray").mean(), time) for time, frame in reader.frames_from("video", 0)]
    with Reader(path) as reader:
        sounds = list(reader.frames_from("audio", -np.inf))
    heard = np.concatenate([to_mono(frame) for _, frame in sounds])
    return max(pictures)[1], sounds[0][0] + np.argmax(np.abs(heard) > 0.2) / sounds[0][1].sample_rate


@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts"])
@pytest.mark.parametrize(
    "starts", [{}, {"video_start": 0.5}, {"audio_start": 0.7}, {"video_start": 1, "audio_start": 1}]
)
@pytest.mark.parametrize("part", [None, (1.2, 2.0)])
def test_flash_and_click_stay_together(tmp_path: Path, name: str, starts: dict, part: tuple | None) -> None:
    flash_and_click(tmp_path / name, **starts)
    before = seconds_of_flash_and_click(tmp_path / name)
    begin = 1.2 if part else min(starts.get("video_start", 0), starts.get("audio_start", 0))
    if name.endswith(".ts"):  # its clock begins at 1.4
        begin += before[0] - 1.5
        part = part and (part[0] + before[0] - 1.5, part[1] + before[0] - 1.5)
    preview(tmp_path / name, tmp_path / "preview.mp4", part)
    flash, click = seconds_of_flash_and_click(tmp_path / "preview.mp4")
    assert flash == pytest.approx(before[0] - begin, abs=0.03)
    assert click == pytest.approx(before[1] - begin, abs=0.03)
    assert abs(flash - click) < 0.03
    with av.open(str(tmp_path / "preview.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(0.8 if part else 3, abs=1.1 if starts else 0.1)


def test_preview_ends_after_a_minute(tmp_path: Path) -> None:
    samples = tone(440, 70, 8000)
    write_clip(tmp_path / "clip.mkv", gray(np.arange(140)), fps=2, samples=samples, sample_rate=8000)
    preview(tmp_path / "clip.mkv", tmp_path / "preview.mp4")
    with av.open(str(tmp_path / "preview.mp4")) as container:
        for stream in container.streams:
            assert float(stream.duration * stream.time_base) == pytest.approx(60, abs=0.03)


def test_preview_of_sound_alone_and_of_pictures_alone(tmp_path: Path) -> None:
    make_sound(tmp_path / "sound.wav", 0, 0)
    write_clip(tmp_path / "silent.avi", gray(np.arange(20)), fps=10, video_codec="mpeg4")
    assert preview(tmp_path / "sound.wav", tmp_path / "sound.m4a") == "audio/mp4"
    assert preview(tmp_path / "silent.avi", tmp_path / "silent.mp4") == "video/mp4"
    assert playable(tmp_path / "sound.m4a") == "audio/mp4"
    assert playable(tmp_path / "silent.mp4") == "video/mp4"
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(2.0, abs=0.01)


def test_preview_is_upright(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", gray([0, 9, 18]), fps=10, rotation=90)
    preview(tmp_path / "clip.mp4", tmp_path / "preview.mp4")
    with av.open(str(tmp_path / "preview.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.height, frame.width, frame.rotation) == (48, 32, 0)


@pytest.mark.parametrize("broken, media_type", [("video", "audio/mp4"), ("audio", "video/mp4")])
def test_a_broken_track_is_left_out(tmp_path: Path, broken: str, media_type: str) -> None:
    write_clip(tmp_path / "good.mkv", PICTURES, fps=20, **SOUND)
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "good.mkv")) as source, av.open(str(tmp_path / "bad.mkv"), "w") as target:
        streams = {stream.type: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                if packet.stream.type == broken:
                    packet.update(rng.integers(0, 256, packet.size, dtype=np.uint8).tobytes())
                packet.stream = streams[packet.stream.type]
                target.mux(packet)
    assert preview(tmp_path / "bad.mkv", tmp_path / "preview.mp4") == media_type


def test_nothing_to_play(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "empty.mp4").touch()
    for make in (poster, spectrogram, preview):
        with pytest.raises(DecodeError, match="no media file that can be opened"):
            make(tmp_path / "text.mp4", tmp_path / "out")
        with pytest.raises(DecodeError, match="the file is empty"):
            make(tmp_path / "empty.mp4", tmp_path / "out")
    write_clip(tmp_path / "clip.mkv", PICTURES, fps=20)
    with pytest.raises(DecodeError, match="neither video nor audio"):
        preview(tmp_path / "clip.mkv", tmp_path / "out", (-9.0, -8.0))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["clip.mkv", "empty.mp4", "text.mp4"]


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = np.array([0, 0.1, 0.15, 0.5, 0.9])
    write_clip(tmp_path / "clip.mkv", gray(np.arange(5)), fps=10, times=times)
    preview(tmp_path / "clip.mkv", tmp_path / "preview.mp4")
    with Reader(tmp_path / "preview.mp4") as reader:
        assert [seconds for seconds, _ in reader.frames_from("video", 0)] == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize("kind", ["poster", "spectrogram", "preview"])
def test_a_target_that_cannot_be_written_is_no_fault_of_the_file(tmp_path: Path, kind: str) -> None:
    write_clip(tmp_path / "clip.mkv", PICTURES, fps=20, **SOUND)
    (tmp_path / "file").touch()
    job = {"kind": kind, "source": str(tmp_path / "clip.mkv"), "part": None, "target": str(tmp_path / "file" / "out")}
    answer = _run_job(job)
    assert answer["again"]
    assert answer["reason"].startswith("the result cannot be written (")
    assert str(tmp_path) not in answer["reason"]
