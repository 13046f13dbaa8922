"""Decoding a file wholly finds what was done to it, at the right second, and nothing in files that are whole."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest

from avssl.media.inspect import inspect
from avssl.media.probe import probe
from tests.support.noise import FPS, FRAMES, SECONDS, clip, remux, tone
from tests.support.numbered import CASES, SHARED, WEBM, make, needs_shared

pytestmark = pytest.mark.slow
FACTS = ("video_start", "video_end", "audio_start", "audio_end", "duration", "fps")


def pictures(path: Path) -> list[bytes]:
    """All pictures that decode, by PyAV alone."""
    found = []
    with av.open(str(path)) as container:
        try:
            for packet in container.demux(video=0):
                try:
                    found += [frame.to_ndarray(format="gray").tobytes() for frame in packet.decode()]
                except av.error.FFmpegError:
                    continue
        except av.error.FFmpegError:
            pass  # what a cut file ends with
    return found


def packet_at(path: Path, seconds: float, kind: str) -> tuple[float, int, int]:
    """(second, position, bytes) of the first packet of a track at or after a second."""
    with av.open(str(path)) as container:
        for packet in container.demux(**{kind: 0}):
            if packet.pts is not None and packet.pts * packet.time_base >= seconds:
                return float(packet.pts * packet.time_base), packet.pos, packet.size
    raise AssertionError(f"no packet at {seconds}")


def destroy(path: Path, position: int, size: int) -> Path:
    content = bytearray(path.read_bytes())
    content[position : position + size] = bytes(255 - value for value in content[position : position + size])
    path.write_bytes(content)
    return path


FURTHER = {
    "mpeg1.mpg": {"video_codec": "mpeg1video", "audio_codec": "mp2", "rate": 48000},
    "sorenson.flv": {"video_codec": "flv1", "audio_codec": "libmp3lame", "rate": 44100},
    "opus.mkv": {"audio_codec": "libopus", "rate": 48000},
}


@pytest.mark.parametrize("name", [*CASES, *FURTHER])
def test_a_whole_clip_is_whole(tmp_path, name):
    path = make(tmp_path / name, **(CASES | FURTHER)[name])
    found, probed = inspect(path), probe(path)
    assert (found.status, found.reason, found.has_audio) == ("ok", "", True)
    assert (found.cut_off_at, found.damaged_at, found.variable_rate) == (None, None, "variable" in name)
    assert (found.width, found.height, found.rotation) == (probed.width, probed.height, probed.rotation)
    assert found.rotation == CASES.get(name, {}).get("rotation", 0)
    assert (found.size, found.content_key, found.sample_rate) == (probed.size, probed.content_key, probed.sample_rate)
    for fact in FACTS:
        assert getattr(found, fact) == pytest.approx(getattr(probed, fact), abs=0.1), fact


@pytest.mark.parametrize(
    "name, options",
    [
        ("cut.mkv", {"b_frames": 2}),
        ("cut.webm", {"video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000}),
        ("cut.avi", {"video_codec": "mpeg4", "samples": None}),
        ("cut.mp4", {"b_frames": 2}),
        ("cut.mov", {"audio_codec": "pcm_s16le"}),
    ],
)
def test_a_cut_file_is_told_with_the_second(tmp_path, name, options):
    whole = clip(tmp_path / name, **options)
    if whole.suffix in (".mp4", ".mov"):  # the table of contents at the beginning, or nothing could be read
        whole = remux(whole, tmp_path / f"fast_{name}", movflags="faststart")
    assert inspect(whole).cut_off_at is None
    expected = pictures(whole)
    content = whole.read_bytes()
    whole.write_bytes(content[: round(0.6 * len(content))])
    left = pictures(whole)
    same = next((i for i, picture in enumerate(left) if picture != expected[i]), len(left))  # the last may be damaged
    found = inspect(whole)
    assert 1.5 < same / FPS < 3
    assert found.cut_off_at == pytest.approx(same / FPS, abs=0.1)
    assert found.claimed_end == pytest.approx(SECONDS, abs=0.1)
    assert (found.status, found.damaged_at) == ("ok", None)


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_destroyed_packet_is_told_with_its_second(tmp_path, name, kind):
    path = clip(tmp_path / name)
    seconds, position, size = packet_at(path, 2.2, kind)
    found = inspect(destroy(path, position, size))
    assert found.damaged_at == pytest.approx(seconds, abs=0.05)
    assert (found.status, found.cut_off_at, found.variable_rate) == ("ok", None, False)


@pytest.mark.parametrize(
    "name, options",
    [
        ("clip.mp4", {}),
        ("clip.mkv", {}),
        ("clip.flv", FURTHER["sorenson.flv"]),
        ("clip.ts", {"rate": 48000}),
        ("clip.mpg", FURTHER["mpeg1.mpg"]),
    ],
)
def test_zeros_in_the_middle_are_damage(tmp_path, name, options):
    path = clip(tmp_path / name, **options)
    first = inspect(path).video_start
    seconds, position, size = packet_at(path, first + 2.0, "video")
    content = bytearray(path.read_bytes())
    content[position : position + 3 * size] = bytes(3 * size)
    path.write_bytes(content)
    found = inspect(path)
    assert found.damaged_at == pytest.approx(seconds, abs=0.25)
    assert found.cut_off_at is None


def test_a_tail_of_zeros_is_damage_where_it_begins(tmp_path):
    path = clip(tmp_path / "clip.mkv", samples=None)
    seconds, position, _ = packet_at(path, 3.0, "video")
    content = path.read_bytes()
    path.write_bytes(content[:position] + bytes(len(content) - position))
    found = inspect(path)
    assert found.cut_off_at == pytest.approx(seconds, abs=0.1)
    assert found.damaged_at is None


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"samples": None}, "no audio track"),
        ({"gain": 0.0}, "silent"),
        ({"gain": 0.9 / 32768 / 0.3}, "silent"),
    ],
)
def test_a_clip_without_audio_says_so(tmp_path, options, reason):
    found = inspect(clip(tmp_path / "clip.mov", audio_codec="pcm_s16le", **options))
    assert (found.status, found.has_audio, found.damaged_at) == ("ok", False, None)
    assert reason in found.reason
    assert (found.audio_start is None) == (options == {"samples": None})


def test_sound_hidden_by_the_container_is_not_heard(tmp_path):
    samples = tone(16000)
    samples[16000:] = 0  # one loud second, then silence
    whole = clip(tmp_path / "whole.mp4", samples=samples, frames=FRAMES)
    with av.open(str(whole)) as old, av.open(str(tmp_path / "later.mp4"), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:  # two seconds earlier: an edit list hides what lies before 0
                ticks = round(2 / packet.time_base)
                packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    found, probed = inspect(tmp_path / "later.mp4"), probe(tmp_path / "later.mp4")
    assert (found.has_audio, probed.has_audio, found.reason) == (False, False, "the audio track is silent")
    for fact in FACTS:
        assert getattr(found, fact) == pytest.approx(getattr(probed, fact), abs=0.1), fact


def test_a_file_of_sound_only(tmp_path):
    path = tmp_path / "sound.m4a"
    with av.open(str(clip(tmp_path / "clip.mp4"))) as old, av.open(str(path), "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    found = inspect(path)
    assert (found.status, found.has_audio, found.variable_rate, found.video_start) == ("no_video", True, None, None)
    assert (found.audio_start, found.audio_end) == pytest.approx((0, SECONDS), abs=0.05)


@pytest.mark.parametrize(
    "name, content, status",
    [("missing.mp4", None, "missing"), ("empty.mp4", b"", "empty"), ("text.mp4", b"words " * 99, "unreadable")],
)
def test_a_bad_file_has_a_status_and_a_reason(tmp_path, name, content, status):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = inspect(tmp_path / name)
    assert found.status == status
    assert found.reason
    assert found.digest == ""


def test_frames_that_an_avi_shows_again_are_no_damage(tmp_path):
    path = tmp_path / "again.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i, pixels in enumerate(FRAMES[:50]):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i + 9 * (i // 10), Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = inspect(path)
    assert (found.status, found.cut_off_at, found.damaged_at, found.variable_rate) == ("ok", None, None, True)
    assert found.video_end == pytest.approx((50 + 9 * 4) / FPS, abs=0.01)


def test_the_digest_is_of_the_content_and_not_of_the_container(tmp_path):
    original = clip(tmp_path / "a.mp4", b_frames=2)
    digest = inspect(original).digest
    for name in ("a.mkv", "a.mov", "a.flv", "a.ts"):
        assert inspect(remux(original, tmp_path / name)).digest == digest, name
    pcm = clip(tmp_path / "pcm.mov", audio_codec="pcm_s16le")
    assert inspect(remux(pcm, tmp_path / "pcm.mkv")).digest == inspect(pcm).digest
    opus = clip(tmp_path / "opus.webm", **WEBM)
    assert inspect(remux(opus, tmp_path / "opus.mkv")).digest == inspect(opus).digest
    other = FRAMES.copy()
    other[70] = 0
    assert inspect(clip(tmp_path / "picture.mp4", frames=other, b_frames=2)).digest != digest
    assert inspect(clip(tmp_path / "sound.mp4", gain=0.99, b_frames=2)).digest != digest
    assert inspect(clip(tmp_path / "silent.mp4", samples=None, b_frames=2)).digest != digest


def test_worker_imports_av_and_numpy_only():
    code = (
        "import sys, avssl.media.inspect; heavy = {'torch', 'cv2', 'pyarrow', 'sklearn', 'pydantic', 'tqdm'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_shared
def test_real_clips_are_whole():
    paths = [path for path in sorted((SHARED / "clips").rglob("*.*")) if path.suffix != ".csv"][::4]
    for path in [*paths, *sorted((SHARED / "digits").rglob("*.mp4"))[::60]]:
        found = inspect(path)
        assert (found.status, found.cut_off_at, found.damaged_at, found.variable_rate) == ("ok", None, None, False), (
            path
        )


@needs_shared
def test_awkward_files_are_told_for_what_they_are():
    found = {path.name: inspect(path) for path in (SHARED / "awkward").iterdir() if path.stat().st_size < 600_000}
    cut = {name for name, each in found.items() if each.cut_off_at is not None}
    damaged = {name for name, each in found.items() if each.damaged_at is not None}
    assert cut >= {"damaged_cut10_ucf.avi", "damaged_cut50_ucf.avi", "damaged_cut95_pancake.mkv"}
    assert cut - {"timecode_side_data.mkv"} <= {name for name in found if name.startswith("damaged_")}
    assert damaged >= {name for name in found if "flip" in name}
    assert {name for name in damaged if not name.startswith(("damaged_", "sample_ac3", "sample_nb"))} == set()
    assert [name for name, each in found.items() if each.variable_rate] == ["var_fps_video.mp4"]
