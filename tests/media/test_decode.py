"""Every returned frame and the place of the sound, for every kind of clip that the toolkit promises to read."""

import pickle
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from avssl.media.decode import AudioWindow, VideoWindow, read_clip, read_frames, read_samples
from avssl.media.encode import write_clip
from avssl.media.inspect import inspect
from avssl.media.probe import probe
from avssl.media.reader import DecodeError, Reader, _count_times
from tests.support.numbered import (
    BLOCK,
    CASES,
    COLUMNS,
    ONSET,
    ROWS,
    case,
    decode_in_order,
    lag_seconds,
    make,
    move_stamps,
    numbers,
    tone,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_every_frame_is_the_right_one(tmp_path, name):
    path = case(tmp_path, name)
    times, shown = decode_in_order(path, CASES[name])
    assert shown.tolist() == list(range(len(shown)))  # the writer lost nothing, so the oracle can be believed
    generator = np.random.default_rng(3)
    starts = [times[0] - 0.5, times[0], times[17], *generator.uniform(times[0], times[-1] - 0.5, size=5)]
    windows = [VideoWindow(start, 0.5, fps) for start, fps in zip(starts, [16, 25, 60, 16, 16, 8, 30, 10], strict=True)]
    together, _ = read_clip(path, video=windows)
    for window, frames in zip(windows, together, strict=True):
        wanted = window.start + np.arange(window.num_frames) / window.fps
        expected = np.maximum(np.searchsorted(times, wanted + 1e-4, side="right") - 1, 0)
        assert frames.data.shape == (window.num_frames, ROWS * BLOCK, COLUMNS * BLOCK, 3)
        assert frames.data.dtype == np.uint8
        assert numbers(frames.data) == shown[expected].tolist()
        np.testing.assert_allclose(frames.times, times[expected], atol=1e-9)
        assert frames.start == frames.times[0]
        assert not frames.padded
        alone = read_frames(path, start=window.start, duration=window.duration, fps=window.fps)
        np.testing.assert_array_equal(alone.data, frames.data)


@pytest.mark.parametrize("name", CASES)
def test_sound_lies_within_a_millisecond(tmp_path, name):
    path = case(tmp_path, name)
    options = CASES[name]
    first_sample = options.get("audio_start", 0.0)
    if path.suffix in (".ts", ".mpg"):  # the muxer shifts the whole clip: the picture tells by how much
        first_sample += decode_in_order(path)[0][0] - options.get("video_start", 0.0)
    loudness = 1 / options.get("channels", 1)  # the plain mean of channels of which one sounds
    for rate in (24000, 16000, 48000):
        for offset in (0.9, 1.7, 2.31):
            start = first_sample + offset
            samples = read_samples(path, start=start, duration=1.5, sample_rate=rate)
            assert samples.data.shape == (round(1.5 * rate),)
            assert samples.data.dtype == np.float32
            assert not samples.padded
            expected = loudness * tone(start - first_sample + np.arange(len(samples.data)) / rate)
            lag, likeness = lag_seconds(samples.data, expected, rate)
            assert abs(lag) < 1e-3
            assert likeness > 0.98
            assert np.std(samples.data) == pytest.approx(np.std(expected), rel=0.1)
            if name.startswith("pcm") and offset < ONSET:  # codecs with loss ring before an onset
                heard_at, expected_at = np.argmax(np.abs(samples.data) > 0.1), np.argmax(np.abs(expected) > 0.1)
                assert abs(heard_at - expected_at) / rate < 1e-3


def hide_duration(path: Path) -> Path:
    """Overwrite the Duration of a Matroska file with a Void element of the same length."""
    content = path.read_bytes()
    at = content.index(b"\x44\x89\x88")
    path.write_bytes(content[:at] + b"\xec\x89" + bytes(9) + content[at + 11 :])
    with av.open(str(path)) as container:
        assert all(stream.duration is None for stream in container.streams)
    return path


def check_window(path: Path, start: float, *, fps: float = 16, duration: float = 0.5) -> None:
    """A window is right although the file is damaged: the oracle decodes without seeking."""
    times, shown = decode_in_order(path)
    frames = read_frames(path, start=start, duration=duration, fps=fps)
    wanted = start + np.arange(round(duration * fps)) / fps
    expected = np.maximum(np.searchsorted(times, wanted + 1e-4, side="right") - 1, 0)
    assert numbers(frames.data) == shown[expected].tolist()


@pytest.mark.parametrize("name", ["b_frames.mkv", "vp8_opus.webm"])
def test_container_without_duration(tmp_path, name):
    path = hide_duration(case(tmp_path, name))
    check_window(path, 2.3)
    samples = read_samples(path, start=2.0, duration=1, sample_rate=24000)
    lag, likeness = lag_seconds(samples.data, tone(2.0 + np.arange(24000) / 24000), 24000)
    assert abs(lag) < 1e-3
    assert likeness > 0.98


def test_cut_file_is_read_as_far_as_it_goes(tmp_path):
    path = case(tmp_path, "b_frames.mkv")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])  # the index at the end is lost too
    last = decode_in_order(path)[0][-1]
    assert 1 < last < 3
    check_window(path, last - 0.8)
    late = read_frames(path, start=3.5, duration=0.5, fps=16)
    assert late.padded
    assert late.start == pytest.approx(last)


@pytest.mark.parametrize("lie", ["no index", "every frame called a keyframe"])
def test_broken_index(tmp_path, lie):
    path = case(tmp_path, "pcm.avi")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"idx1")
    if lie == "no index":
        content[at : at + 4] = b"JUNK"
    else:
        for entry in range(at + 8, len(content) - 15, 16):
            content[entry + 4] |= 0x10
    path.write_bytes(content)
    for start in (1.53, 3.1):
        check_window(path, start)


@pytest.mark.parametrize("lost", ["a packet", "an entry of the index"])
def test_what_an_avi_loses_moves_nothing_behind_it(tmp_path, lost):
    """It has no timestamps: FFmpeg counts packets from where it begins to read, or the entries of its index."""
    path = make(tmp_path / "mp3.avi", video_codec="mpeg4", audio_codec="libmp3lame", rate=44100, gop=10)
    times, shown = decode_in_order(path)
    assert shown.tolist() == list(range(100))
    content = bytearray(path.read_bytes())
    index = content.rindex(b"idx1") + 8
    entries = [at for at in range(index, len(content) - 15, 16) if content[at : at + 4] == b"00dc"]
    offset = int.from_bytes(content[entries[13] + 8 : entries[13] + 12], "little")
    at = content.index(b"movi") + offset if lost == "a packet" else entries[13]
    assert content[at : at + 4] == b"00dc"
    content[at : at + 4] = b"99dc"
    path.write_bytes(content)
    for start, duration in ((0.88, 1), (2.5, 0.5)):
        frames = read_frames(path, start=start, duration=duration, fps=25)
        np.testing.assert_allclose(frames.times, times[numbers(frames.data)], atol=1e-6)
    frames = read_frames(path, start=0.42, duration=1.5, fps=25)  # begins before the loss, and so counts over it
    np.testing.assert_allclose(frames.times[15:], times[numbers(frames.data[15:])], atol=1e-6)


def test_lost_packet_of_mp3_in_avi_is_a_gap(tmp_path):
    """One tick is a packet there: the gap is no rounding of the timestamps."""
    path = make(tmp_path / "mp3.avi", video_codec="mpeg4", audio_codec="libmp3lame", rate=44100, gop=10)
    whole = read_samples(path, start=1.5, duration=1.5, sample_rate=24000)
    content = bytearray(path.read_bytes())
    index = content.rindex(b"idx1") + 8
    entries = [at for at in range(index, len(content) - 15, 16) if content[at : at + 4] == b"01wb"]
    packet = content.index(b"movi") + int.from_bytes(content[entries[90] + 8 : entries[90] + 12], "little")
    assert content[packet : packet + 4] == b"01wb"
    content[packet : packet + 4] = b"99wb"  # at 2.35 s
    path.write_bytes(content)
    holed = read_samples(path, start=1.5, duration=1.5, sample_rate=24000)
    assert holed.padded
    for part in (slice(0, 19000), slice(23000, None)):
        lag, likeness = lag_seconds(holed.data[part], whole.data[part], 24000)
        assert abs(lag) < 1e-4
        assert likeness > 0.9  # the packets beside it miss some of their bits


def test_damaged_middle_is_stepped_over(tmp_path):
    path = case(tmp_path, "b_frames.ts")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    for start in (0.4, 3.2):
        frames = read_frames(path, start=start, duration=0.48, fps=25)
        assert np.diff(numbers(frames.data)).tolist() == [1] * 11
        assert not frames.padded


def test_gap_in_the_sound_moves_nothing_behind_it(tmp_path):
    whole, holed = case(tmp_path, "constant.mp4"), tmp_path / "holed.mkv"
    with av.open(str(whole)) as source, av.open(str(holed), "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None or (packet.stream.type == "audio" and 1.6 < packet.pts * packet.time_base < 2.1):
                continue
            packet.stream = copies[packet.stream.index]
            target.mux(packet)
    shift = decode_in_order(holed)[0][0]  # the muxer moves picture and sound, or the first packet would be negative
    samples = read_samples(holed, start=shift + 1.3, duration=2, sample_rate=24000)
    assert samples.padded
    assert not samples.data[round(0.4 * 24000) : round(0.7 * 24000)].any()  # 1.7 to 2.0 s
    behind = samples.data[round(0.95 * 24000) :]
    lag, likeness = lag_seconds(behind, tone(2.25 + np.arange(len(behind)) / 24000), 24000)
    assert abs(lag) < 1e-3
    assert likeness > 0.95


def test_short_clip_repeats_its_frames_from_the_first_of_the_window(tmp_path):
    path = make(tmp_path / "short.mp4", fps=8, seconds=1.0, sound_seconds=1.0)
    frames = read_frames(path, start=0.5, duration=1.5, fps=8)
    assert numbers(frames.data) == [4, 5, 6, 7] * 3
    assert frames.padded
    np.testing.assert_allclose(frames.times[:5], [0.5, 0.625, 0.75, 0.875, 0.5])
    whole = read_frames(path, start=0, duration=1, fps=16)  # the last frame lasts until 1.0
    assert numbers(whole.data) == [i // 2 for i in range(16)]
    assert not whole.padded
    behind = read_frames(path, start=5, duration=0.5, fps=8)
    assert numbers(behind.data) == [7] * 4
    assert behind.padded


def test_frame_before_the_first_is_the_first(tmp_path):
    frames = read_frames(case(tmp_path, "picture_later.mp4"), start=0, duration=1, fps=10)
    assert numbers(frames.data) == [0] * 8 + [2, 5]  # first frame at 0.7
    assert frames.start == pytest.approx(0.7)


def test_sound_shorter_than_the_picture_ends_in_zeros(tmp_path):
    path = make(tmp_path / "clip.mp4", sound_seconds=2.0)
    samples = read_samples(path, start=1.5, duration=1, sample_rate=24000)
    assert samples.padded
    assert np.abs(samples.data[:11000]).max() > 0.4
    assert not samples.data[13100:].any()  # 0.5 s, and the filling of the last packet of AAC
    before = read_samples(path, start=-0.5, duration=2, sample_rate=24000)
    assert before.padded
    assert abs(np.argmax(np.abs(before.data) > 0.1) / 24000 - (0.5 + ONSET)) < 2e-3


def test_no_sound_is_zeros_that_say_so(tmp_path):
    path = make(tmp_path / "silent.mp4", sound_seconds=0)
    frames, samples = read_clip(path, video=[VideoWindow(1, 0.5, 16)], audio=[AudioWindow(1, 0.5, 16000)])
    assert not frames[0].padded
    assert samples[0].padded
    assert samples[0].data.shape == (8000,)
    assert not samples[0].data.any()


def test_sound_follows_the_true_start_of_the_picture(tmp_path):
    path = make(tmp_path / "clip.mp4", fps=8)
    video = [VideoWindow(2.1, 0.5, 8), VideoWindow(1.3, 0.5, 8)]
    audio = [AudioWindow(1.8, 1, 24000, follows=0), AudioWindow(1.8, 1, 24000, follows=1), AudioWindow(1.8, 1, 24000)]
    frames, samples = read_clip(path, video=video, audio=audio)
    assert [each.start for each in frames] == pytest.approx([2.0, 1.25])
    assert [each.start for each in samples] == pytest.approx([1.7, 1.75, 1.8])
    for each in samples:
        lag, _ = lag_seconds(each.data, tone(each.start + np.arange(24000) / 24000), 24000)
        assert abs(lag) < 1e-3


def test_metadata_that_is_not_utf8(tmp_path):
    path = case(tmp_path, "constant.mp4")
    content = path.read_bytes()
    assert b"VideoHandler" in content
    path.write_bytes(content.replace(b"VideoHandler", b"Vid\xe9oHandl\xff\xd3"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    check_window(path, 1.1)


@pytest.mark.parametrize("rotation", [0, 90])
def test_crop_is_a_part_of_the_upright_picture(tmp_path, rotation):
    path = make(tmp_path / "clip.mp4", rotation=rotation)
    whole = read_frames(path, start=1, duration=0.5, fps=16)
    crop = (1 / 4, 1 / 3, 1 / 2, 1 / 2)
    part = read_frames(path, start=1, duration=0.5, fps=16, crop=crop)
    np.testing.assert_array_equal(part.data, whole.data[:, 16:48, 32:80])
    sized = read_frames(path, start=1, duration=0.5, fps=16, crop=crop, size=(64, 96))
    centers = sized.data[:, 16::32, 16::32].astype(int)  # of the blocks, twice as large
    np.testing.assert_allclose(centers, whole.data[:, 24:48:16, 40:80:16], atol=4)


def test_colors_keep_their_places(tmp_path):
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
    write_clip(tmp_path / "colors.mp4", np.broadcast_to(colors[:, None, None], (4, 32, 32, 3)), fps=4, crf=1)
    frames = read_frames(tmp_path / "colors.mp4", start=0, duration=1, fps=4)
    np.testing.assert_allclose(frames.data[:, 16, 16].astype(int), colors, atol=8)


def test_shrinking_does_not_alias(tmp_path):
    board = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_clip(tmp_path / "board.mp4", np.repeat(board[None, ..., None], 3, axis=-1).repeat(8, axis=0), fps=8, crf=0)
    frames = read_frames(tmp_path / "board.mp4", start=0, duration=0.5, fps=8, size=(32, 32))
    inner = frames.data[:, 2:-2, 2:-2].astype(float)
    assert inner.std() < 12  # picking pixels would leave 127
    assert inner.mean() == pytest.approx(127, abs=8)


@pytest.mark.parametrize(
    "content, reason",
    [(None, "does not exist"), (b"", "is empty"), (b"no media at all\n" * 100, "no media file that can be opened")],
)
def test_unreadable_file_is_named_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError, match=f"broken.mp4: .*{reason}"):
        read_frames(path, start=0, duration=1, fps=8)


def test_a_file_without_its_index_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    write_clip(path, np.zeros((8, 32, 32, 3), dtype=np.uint8), fps=8)
    content = path.read_bytes()
    assert content.index(b"mdat") < content.index(b"moov")
    path.write_bytes(content[: content.index(b"moov") - 4])
    for _ in range(2):  # FFmpeg leaves messages out that it has just logged
        with pytest.raises(DecodeError, match="moov atom not found: the file was cut off or is still being written"):
            read_frames(path, start=0, duration=1, fps=8)


def test_sound_alone_has_no_frames(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ones((1, 16000), dtype=np.float32) * 0.1, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="no video track"):
        read_frames(tmp_path / "sound.mp4", start=0, duration=1, fps=8)
    assert read_samples(tmp_path / "sound.mp4", start=0, duration=0.5, sample_rate=16000).data.any()


def test_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "the file is empty")))
    assert (str(error), error.path, error.reason) == ("a.mp4: the file is empty", "a.mp4", "the file is empty")


@pytest.mark.parametrize(
    "window, message",
    [
        (lambda: VideoWindow(0, 0, 16), "duration=0"),
        (lambda: VideoWindow(0, 0.5, 0.1), "at least one"),
        (lambda: VideoWindow(float("nan"), 1, 16), "start=nan"),
        (lambda: VideoWindow(0, 1, 16, crop=(0.5, 0, 0.6, 1)), "crop="),
        (lambda: VideoWindow(0, 1, 16, size=(0, 8)), "size="),
        (lambda: AudioWindow(0, 1, 0), "sample_rate=0"),
    ],
)
def test_impossible_windows_are_refused(window, message):
    with pytest.raises(ValueError, match=message):
        window()


def test_following_no_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match="follows=0 must be the index of one of the 0 video windows"):
        read_clip(tmp_path / "any.mp4", audio=[AudioWindow(0, 1, 16000, follows=0)])


# ---- AVI: an index in chunks or bytes


@pytest.mark.parametrize(
    "codec, channels",
    [
        *[("pcm_u8", 1), ("pcm_s16le", 1), ("pcm_s16le", 2), ("pcm_s24le", 2), ("pcm_f32le", 6), ("pcm_f64le", 1)],
        *[("pcm_alaw", 1), ("pcm_mulaw", 2), ("adpcm_ms", 2), ("adpcm_ima_wav", 1)],
    ],
)
@pytest.mark.parametrize("lost", [False, True])
def test_sound_of_avi_lies_where_its_index_says(tmp_path, codec, channels, lost):
    options = {"video_codec": "mpeg4", "audio_codec": codec, "rate": 16000, "channels": channels, "gop": 12}
    path = make(tmp_path / "clip.avi", **options)
    if lost:  # a chunk at about 1 s, of up to 0.13 s: FFmpeg counts on behind it
        content = bytearray(path.read_bytes())
        index = content.rindex(b"idx1") + 8
        entries = [at for at in range(index, len(content) - 15, 16) if content[at : at + 4] == b"01wb"]
        entry = entries[len(entries) // 4]
        at = content.index(b"movi") + int.from_bytes(content[entry + 8 : entry + 12], "little")
        assert content[at : at + 4] == b"01wb"
        content[at : at + 4] = b"99wb"
        path.write_bytes(content)
    for start in (0.9, 1.7, 2.31):
        samples = read_samples(path, start=start, duration=1.5, sample_rate=16000)
        assert samples.padded == (lost and start == 0.9)
        expected = tone(start + np.arange(len(samples.data)) / 16000) / channels
        lag, likeness = lag_seconds(samples.data, expected, 16000)
        assert abs(lag) < 1e-3
        assert likeness > 0.95


@pytest.mark.parametrize("codec, rate", [("adpcm_yamaha", 16000), ("g722", 16000), ("g726", 8000)])
def test_sound_that_is_decoded_from_its_beginning_only(tmp_path, codec, rate):
    path = make(tmp_path / "clip.avi", video_codec="mpeg4", audio_codec=codec, rate=rate, gop=12)
    for facts in (probe(path), inspect(path)):
        assert facts.audio_end == pytest.approx(4, abs=0.2)
        assert not facts.holes
    for start in (0.9, 1.7, 2.31):
        samples = read_samples(path, start=start, duration=1.5, sample_rate=16000)
        lag, likeness = lag_seconds(samples.data, tone(start + np.arange(len(samples.data)) / 16000), 16000)
        assert abs(lag) < 2e-3
        assert likeness > 0.95


def test_mp3_of_constant_rate_in_avi_counts_bytes(tmp_path):
    """As VirtualDub writes it: a tick is a byte, several packets to a chunk."""
    path = make(tmp_path / "clip.avi", video_codec="mpeg4", audio_codec="libmp3lame", rate=44100, gop=12)
    before = [read_samples(path, start=start, duration=1.5, sample_rate=24000).data for start in (1.1, 2.2)]
    content = bytearray(path.read_bytes())
    header = content.index(b"auds")
    layout = content.index(b"strf", header) + 8
    index = content.rindex(b"idx1") + 8
    entries = [at for at in range(index, len(content) - 15, 16) if content[at : at + 4] == b"01wb"]
    sizes = [int.from_bytes(content[at + 12 : at + 16], "little") for at in entries]
    num_bytes = round(np.mean(sizes) * 44100 / 1152)  # per second
    for at, value in ((header + 20, 1), (header + 24, num_bytes), (header + 44, 1)):
        content[at : at + 4] = value.to_bytes(4, "little")
    content[layout + 12 : layout + 14] = (1).to_bytes(2, "little")
    path.write_bytes(content)
    after = [read_samples(path, start=start, duration=1.5, sample_rate=24000).data for start in (1.1, 2.2)]
    (lag, likeness), (other, _) = (lag_seconds(*pair, 24000) for pair in zip(after, before, strict=True))
    assert lag == pytest.approx(other, abs=2e-3)
    assert abs(lag) < 0.06  # what the encoder puts before the sound
    assert likeness > 0.95


# ---- timestamps that wobble around the line of contiguous sound


def purity(data: np.ndarray, rate: int) -> float:
    """Decibels of 440 Hz over everything else."""
    t, window = np.arange(len(data)) / rate, np.hanning(len(data))
    waves = np.stack([np.cos(2 * np.pi * 440 * t), np.sin(2 * np.pi * 440 * t)], axis=1) * window[:, None]
    fitted = waves @ np.linalg.lstsq(waves, data * window, rcond=None)[0]
    return 10 * np.log10(np.square(fitted).sum() / np.square(data * window - fitted).sum())


WOBBLES = {
    "random": lambda number, seconds: np.random.default_rng(number).uniform(-1, 1),
    "in turn": lambda number, seconds: (-1) ** number,
    "slow": lambda number, seconds: np.sin(2 * np.pi * seconds),
    "slower": lambda number, seconds: np.sin(2 * np.pi * seconds / 3),
}


@pytest.mark.parametrize("wobble", WOBBLES)
@pytest.mark.parametrize("milliseconds", [1, 8, 40])
@pytest.mark.parametrize("name", ["pcm.mkv", "opus.webm", "aac.flv", "aac.mp4"])
def test_wobbling_timestamps_leave_sound_whole(tmp_path, name, milliseconds, wobble):
    rate = 48000
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * rate) / rate)).astype(np.float32)
    codec = {"pcm": "pcm_s16le", "opus": "libopus", "aac": "aac"}[name.split(".")[0]]
    still = tmp_path / "still.mkv"
    sound = {"samples": samples, "sample_rate": rate, "audio_codec": codec}
    video = "libvpx" if name.endswith("webm") else "libx264"
    write_clip(still, np.zeros((40, 16, 16, 3), np.uint8), fps=10, video_codec=video, **sound)

    def moved(kind: str, number: int, seconds: float) -> float:
        return seconds + 0.1 + (WOBBLES[wobble](number, seconds) * milliseconds / 1000 if kind == "audio" else 0)

    path = move_stamps(still, tmp_path / name, moved)
    expected = purity(read_samples(still, start=1.3, duration=1.8, sample_rate=24000).data, 24000)
    heard = read_samples(path, start=1.4, duration=1.8, sample_rate=24000)
    assert purity(heard.data, 24000) > min(expected - 3, 60)
    assert not heard.padded


@pytest.mark.parametrize("milliseconds", [0, 5])
def test_a_gap_in_wobbling_sound_stays_where_it_is(tmp_path, milliseconds):
    whole = make(tmp_path / "whole.mkv", audio_codec="pcm_s16le")

    def moved(kind: str, number: int, seconds: float) -> float:
        wobble = np.random.default_rng(number).uniform(-1, 1) * milliseconds / 1000
        return seconds + (0.1 * (seconds > 2) + wobble if kind == "audio" else 0)

    path = move_stamps(whole, tmp_path / "holed.mkv", moved)
    samples = read_samples(path, start=1.4, duration=2, sample_rate=24000)
    assert samples.padded
    for first, last, shift in ((0, 14000, 0), (18000, 48000, 0.1)):
        expected = tone(1.4 + np.arange(first, last) / 24000 - shift)
        lag, likeness = lag_seconds(samples.data[first:last], expected, 24000)
        assert abs(lag) < 3e-3
        assert likeness > 0.99


# ---- files of which several are joined


@pytest.mark.parametrize("name", ["clip.ts", "clip.mpg", "clip.ogv"])
def test_joined_files_are_read_one_behind_the_other(tmp_path, name):
    options = {
        "ts": {"rate": 48000, "b_frames": 2, "gop": 12},
        "mpg": CASES["mpeg1.mpg"],
        "ogv": {"video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000},
    }[name.split(".")[1]]
    parts = [
        make(tmp_path / f"{seconds}_{name}", seconds=seconds, sound_seconds=seconds, **options)
        for seconds in (2.0, 4.0, 3.0)
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with Reader(path) as reader:
        found = [(seconds, frame.to_ndarray(format="rgb24")) for seconds, frame in reader.frames_from("video", -np.inf)]
    assert numbers(np.stack([pixels for _, pixels in found])) == [*range(50), *range(100), *range(75)]
    distances = np.diff([seconds for seconds, _ in found])
    assert distances.min() > 0.02
    assert distances.max() < 0.15
    facts, inspection = probe(path), inspect(path)
    for each in (facts, inspection):
        assert each.duration == pytest.approx(9, abs=0.2)
    assert inspection.num_lost == 0
    assert inspection.damaged_at is None
    assert inspection.jump_at == pytest.approx(facts.video_start + 2, abs=0.1)
    for first in (50, 150):  # the sound of a part follows its pictures
        begin = found[first][0]
        frames, samples = read_clip(
            path, video=[VideoWindow(begin + 1, 0.4, 25)], audio=[AudioWindow(begin + 1, 1, 24000)]
        )
        assert numbers(frames[0].data) == list(range(25, 35))
        lag, likeness = lag_seconds(samples[0].data, tone(1 + np.arange(24000) / 24000), 24000)
        assert abs(lag) < 1e-3
        assert likeness > 0.95


@pytest.mark.parametrize("rates", [(48000, 32000), (32000, 44100)])
def test_sound_across_joined_files_of_two_rates(tmp_path, rates):
    parts = [make(tmp_path / f"{rate}.ts", seconds=3.0, sound_seconds=3.0, rate=rate) for rate in rates]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    samples = read_samples(path, start=1.5, duration=3.5, sample_rate=24000)
    for first, begin, rate in ((2000, 0.0, rates[0]), (50000, probe(parts[0]).audio_end, rates[1])):
        begin += 1024 / rate  # of silence, by which the encoder begins
        expected = tone(1.5 - begin + np.arange(first, first + 30000) / 24000)
        lag, likeness = lag_seconds(samples.data[first : first + 30000], expected, 24000)
        assert abs(lag) < 1e-3
        assert likeness > 0.95
    assert not samples.padded


@pytest.mark.parametrize("first, second", [(1000.0, 10.0), (50_000.0, 100.0), (10.0, 90_000.0)])
def test_joined_broadcasts_of_far_apart_clocks(tmp_path, first, second):
    whole = make(tmp_path / "whole.ts", seconds=3.0, sound_seconds=3.0, rate=48000)
    parts = [
        move_stamps(whole, tmp_path / f"{begin}.ts", lambda kind, number, seconds, begin=begin: seconds + begin)
        for begin in (first, second)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    facts = probe(path)
    assert facts.duration == pytest.approx(6, abs=0.2)
    assert not facts.holes
    frames = read_frames(path, start=facts.video_start + 4, duration=0.4, fps=25)
    np.testing.assert_allclose(numbers(frames.data), np.arange(25, 35), atol=2)


def test_broadcast_over_the_wrap_of_its_clock(tmp_path):
    whole = make(tmp_path / "whole.ts", seconds=4.0, sound_seconds=4.0, rate=48000)
    path = move_stamps(whole, tmp_path / "late.ts", lambda kind, number, seconds: seconds + 2**33 / 90_000 - 3)
    found = inspect(path)
    assert found.jump_at is None
    assert found.duration == pytest.approx(4, abs=0.1)


OTHER_CODECS = {"video_codec": "mpeg2video", "audio_codec": "mp2", "rate": 48000}


@pytest.mark.parametrize("first, second", [({"rate": 48000}, OTHER_CODECS), (OTHER_CODECS, {"rate": 48000})])
def test_joined_broadcasts_of_other_codecs_end_with_the_first(tmp_path, first, second):
    parts = [
        make(tmp_path / f"{i}.ts", seconds=3.0, sound_seconds=3.0, **options)
        for i, options in enumerate((first, second))
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    facts, found = probe(path), inspect(path)
    for each in (facts, found):
        assert each.video_end == pytest.approx(3, abs=0.1)
        assert each.audio_end == pytest.approx(3, abs=0.1)
    assert found.jump_at == pytest.approx(3, abs=0.1)
    assert found.num_lost > 150


@pytest.mark.parametrize("name", ["clip.mp4", "clip.flv"])
def test_what_lies_behind_the_end_of_a_file_is_said(tmp_path, name):
    part = make(tmp_path / name, seconds=2.0, sound_seconds=2.0, rate=44100)
    path = tmp_path / f"joined_{name}"
    path.write_bytes(part.read_bytes() * 3)
    assert inspect(part).jump_at is None
    found = inspect(path)
    assert found.jump_at == pytest.approx(2, abs=0.1)
    assert found.num_lost >= 50


def test_what_a_joined_matroska_loses_is_said(tmp_path):
    part = make(tmp_path / "part.mkv", seconds=2.0, sound_seconds=2.0).read_bytes()
    (tmp_path / "joined.mkv").write_bytes(part + part)
    found = inspect(tmp_path / "joined.mkv")
    assert found.jump_at == pytest.approx(2, abs=0.1)
    assert found.num_lost >= 50


@pytest.mark.parametrize("times, expected", [
    ([None, None, 5.0, 5.1], [4.8, 4.9, 5.0, 5.1]),
    ([5.0, None, 5.2], [5.0, 5.1, 5.2]),
    ([None, None], [0.0, 0.1]),
    ([None] * 40 + [9.0], [*np.arange(40) / 10, 9.0]),
])  # fmt: skip
def test_first_pictures_without_a_time_are_counted_back(times, expected):
    frame = SimpleNamespace(duration=1, time_base=Fraction(1, 10))
    found = [seconds for seconds, _ in _count_times([(seconds, frame) for seconds in times], None)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
