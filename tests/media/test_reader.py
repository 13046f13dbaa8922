"""The reader: one opening for all windows, pictures that are left out, plain sound, limits, and local files only."""

import socket
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media import quirks
from avssl.media.audio import to_mono
from avssl.media.decode import AudioWindow, VideoWindow, read_clip, read_frames
from avssl.media.encode import write_clip
from avssl.media.reader import DecodeError, Limits, Reader
from tests.support.numbered import CASES, decode_in_order, make

pytestmark = pytest.mark.slow


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are opened while a test runs."""
    opened, open_file = [], av.open
    monkeypatch.setattr(av, "open", lambda path, *rest, **named: opened.append(path) or open_file(path, *rest, **named))
    return opened


@pytest.mark.parametrize("name", ["constant.mp4", "b_frames.mkv", "pcm.avi", "vp8_opus.webm", "b_frames.ts", "pcm.mov"])
@pytest.mark.parametrize("start", [0.0, 0.4, 2.2])
def test_one_opening_serves_all_windows(tmp_path: Path, openings: list[str], name: str, start: float) -> None:
    path = make(tmp_path / name, **CASES[name])
    start += decode_in_order(path)[0][0]  # MPEG-TS begins later
    expected_frames = read_frames(path, start=start, duration=0.5, fps=16)
    openings.clear()
    video = [VideoWindow(start, 0.5, 16), VideoWindow(start + 0.1, 0.25, 8, crop=(0, 0, 0.5, 0.5))]
    frames, samples = read_clip(path, video=video, audio=[AudioWindow(start + 0.1, 1.0, 16000)] * 2)
    # a window of sound that begins with the file cannot be read twice from one opening
    assert len(openings) == 1 or (start < 1 and len(openings) == 2)
    np.testing.assert_array_equal(frames[0].data, expected_frames.data)
    np.testing.assert_allclose(samples[0].data, samples[1].data, atol=1e-6)


@pytest.mark.parametrize("start", [0.0, 0.4, 2.2])
def test_one_opening_for_the_pair_of_a_sample(tmp_path: Path, openings: list[str], start: float) -> None:
    path = make(tmp_path / "clip.mp4")
    openings.clear()
    read_clip(path, video=[VideoWindow(start, 0.5, 16)], audio=[AudioWindow(start, 1.0, 16000, follows=0)])
    assert len(openings) == 1


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "one_keyframe.mp4", "variable.mp4"])
def test_what_nobody_looks_at_is_left_out_and_what_is_wanted_is_not(tmp_path: Path, name: str) -> None:
    options = CASES[name] | ({"b_frames": 3} if name == "variable.mp4" else {})
    path = make(tmp_path / name, **options)
    times, _ = decode_in_order(path)
    generator = np.random.default_rng(5)
    left_out = 0
    for _ in range(5):
        wanted = np.sort(generator.uniform(times[0] - 0.2, times[-1] + 0.2, size=3)).tolist()
        with Reader(path) as reader:
            found = dict(reader.frames_from("video", wanted[0], wanted))
        for seconds in wanted:
            shown = times[max(np.searchsorted(times, seconds + 1e-4, side="right") - 1, 0)]
            assert shown in found
            with Reader(path) as reader:
                whole = dict(reader.frames_from("video", wanted[0]))
            pixels = found[shown].to_ndarray(format="rgb24")
            np.testing.assert_array_equal(pixels, whole[shown].to_ndarray(format="rgb24"))
        left_out += len(whole) - len(found)
    assert left_out > 5


def heard(
    path: Path, seconds: float, *, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[float, np.ndarray]]:
    """Sound from some second on, by the index or by demuxer and decoder; pieces joined where they follow each other."""
    with monkeypatch.context() as patched, Reader(path) as reader:
        if not plain:
            patched.setattr(quirks, "is_plain_pcm", lambda container, stream: False)
        assert plain == bool(quirks.is_plain_pcm(reader.container, reader.audio))
        rate, pieces = reader.audio.codec_context.sample_rate, []
        for start, frame in reader.frames_from("audio", seconds):
            values = to_mono(frame)
            if pieces and round((start - pieces[-1][0]) * rate) == len(pieces[-1][1]):
                pieces[-1] = (pieces[-1][0], np.concatenate([pieces[-1][1], values]))
            else:
                pieces.append((start, values))
    return pieces


@pytest.mark.parametrize("name, options", [("a.mov", {}), ("b.mp4", {"audio_start": 0.8}), ("c.mov", {"channels": 2})])
def test_plain_sound_is_what_the_decoder_gives(
    tmp_path: Path, name: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / name, audio_codec="pcm_s16le", rate=16000, **options)
    for seconds in (-np.inf, 0.9, 2.7, 3.99, 9.0):
        ((start, fast),) = heard(path, seconds, plain=True, monkeypatch=monkeypatch)
        ((other_start, slow),) = heard(path, seconds, plain=False, monkeypatch=monkeypatch)
        assert max(start, other_start) <= max(seconds, options.get("audio_start", 0))
        begin = max(start, other_start)  # the one may begin earlier than the other, neither too late
        np.testing.assert_array_equal(
            fast[round((begin - start) * 16000) :], slow[round((begin - other_start) * 16000) :]
        )


def test_limits_are_told_before_memory_is_taken(tmp_path: Path) -> None:
    path = make(tmp_path / "clip.mp4")
    with pytest.raises(DecodeError, match=r"clip.mp4: a frame of 96x64 pixels is larger than data.max_pixels=6000"):
        Reader(path, limits=Limits(max_pixels=6000))
    with pytest.raises(DecodeError, match=r"claims to last 4 seconds, more than data.max_seconds=3"):
        Reader(path, limits=Limits(max_seconds=3))
    with pytest.raises(DecodeError, match=r"8 frames of 96x64 pixels are more than max_bytes=100000"):
        read_clip(path, video=[VideoWindow(0, 0.5, 16)], limits=Limits(max_bytes=100_000))


def test_pictures_that_grow_inside_a_file_stay_within_the_limit(tmp_path: Path) -> None:
    """MPEG-2 pictures of 64x48, then of 512x384, in one stream."""
    parts = []
    for width, height in ((64, 48), (512, 384)):
        write_clip(tmp_path / "part.mpg", np.zeros((5, height, width, 3), np.uint8), fps=25, video_codec="mpeg2video")
        parts.append((tmp_path / "part.mpg").read_bytes())
    path = tmp_path / "grows.mpg"
    path.write_bytes(b"".join(parts))
    with Reader(path, limits=Limits(max_pixels=10_000)) as reader:
        assert {(frame.width, frame.height) for _, frame in reader.frames_from("video", 0)} == {(64, 48)}
    with Reader(path) as reader:
        assert {frame.width for _, frame in reader.frames_from("video", 0)} == {64, 512}


@pytest.mark.parametrize("name", ["http://127.0.0.1:{}/a.mp4", "concat:{}|b.mp4", "http:{}.mp4", "data:,x"])
def test_names_are_names_of_files_only(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        name = name.format(server.getsockname()[1])
        with pytest.raises(DecodeError, match="the file does not exist"):
            Reader(name)
        local = Path(name.replace("/", "_"))
        local.write_bytes(make(tmp_path / "clip.mp4").read_bytes())
        with Reader(local) as reader:  # a file may be called so
            assert reader.video is not None
        with pytest.raises(TimeoutError):
            server.accept()
