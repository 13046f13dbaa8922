"""What a file holds is found out truly, and a bad file is told apart with a reason."""

import subprocess
import sys

import av
import numpy as np
import pytest

from avssl.data.check import probe_files
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.encode import write_clip
from avssl.media.probe import Probe, content_key, probe
from avssl.media.reader import DecodeError
from tests.support.numbered import SHARED, needs_shared

FRAMES = np.full((30, 32, 48, 3), 90, dtype=np.uint8)
TONE = (0.3 * np.sin(np.arange(2 * 16000) / 8)).astype(np.float32)


def test_facts_of_a_good_clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, FRAMES, fps=15, samples=TONE, sample_rate=16000, rotation=90, video_start=0.5)
    found = probe(path)
    assert (found.status, found.reason, found.has_audio) == ("ok", "", True)
    assert (found.width, found.height, found.rotation) == (32, 48, 90)  # upright
    assert found.fps == pytest.approx(15, rel=1e-3)
    assert (found.video_start, found.video_end) == pytest.approx((0.5, 2.5), abs=2e-3)
    assert (found.audio_start, found.audio_end) == pytest.approx((0, 2), abs=2e-3)
    assert found.duration == pytest.approx(2, abs=2e-3)
    assert found.sample_rate == 16000
    assert found.size == path.stat().st_size
    assert found.content_key == content_key(path)


@pytest.mark.parametrize(
    "samples, reason",
    [
        (None, "no audio track"),
        (np.zeros(32000, np.float32), "silent"),
        (np.full(32000, 0.9 / 32768, np.float32), "silent"),
    ],
)
def test_clip_without_audio_is_usable_and_says_so(tmp_path, samples, reason):
    path = tmp_path / "clip.mov"
    write_clip(path, FRAMES, fps=15, samples=samples, sample_rate=16000, audio_codec="pcm_s16le")
    found = probe(path)
    assert (found.status, found.has_audio) == ("ok", False)
    assert reason in found.reason


@pytest.mark.parametrize("other", [-1.0, -0.9])
@pytest.mark.parametrize(
    "name, codec", [("a.mov", "pcm_s16le"), ("a.avi", "pcm_u8"), ("a.mp4", "aac"), ("a.mkv", "flac")]
)
def test_channels_of_opposite_phase_are_heard(tmp_path, name, codec, other):
    both = np.stack([TONE, other * TONE], axis=1)
    video = "mpeg4" if name == "a.avi" else "libx264"
    write_clip(tmp_path / name, FRAMES, fps=15, samples=both, sample_rate=16000, audio_codec=codec, video_codec=video)
    assert probe(tmp_path / name).has_audio
    _, (heard,) = read_clip(tmp_path / name, audio=[AudioWindow(0.5, 1.0, 16000)])
    assert np.std(heard.data) == pytest.approx(np.std(TONE), rel=0.1)


def test_one_late_sample_is_sound(tmp_path):
    samples = np.zeros(32000, np.float32)
    samples[-5] = 3 / 32768
    write_clip(tmp_path / "a.mov", FRAMES, fps=15, samples=samples, sample_rate=16000, audio_codec="pcm_s16le")
    assert probe(tmp_path / "a.mov").has_audio


def test_end_is_measured_when_the_file_is_cut_or_does_not_say(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, size=(60, 32, 48, 3), dtype=np.uint8)
    write_clip(tmp_path / "clip.mkv", frames, fps=15, samples=np.tile(TONE, 2), sample_rate=16000)
    content = (tmp_path / "clip.mkv").read_bytes()
    at = content.index(b"\x44\x89\x88")  # the element Duration: made void
    (tmp_path / "unsaid.mkv").write_bytes(content[:at] + b"\xec\x89" + bytes(9) + content[at + 11 :])
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    whole, unsaid, cut = (probe(tmp_path / f"{name}.mkv") for name in ("clip", "unsaid", "cut"))
    assert (unsaid.video_end, unsaid.audio_end) == pytest.approx((whole.video_end, whole.audio_end), abs=0.1)
    assert whole.video_end == pytest.approx(4, abs=0.02)
    with av.open(str(tmp_path / "cut.mkv")) as container:
        last = max(frame.time for frame in container.decode(video=0))
    assert cut.status == "ok"
    assert cut.video_end == pytest.approx(last + 1 / 15, abs=0.1)


@pytest.mark.parametrize(
    "name, content, status",
    [("missing.mp4", None, "missing"), ("empty.mp4", b"", "empty"), ("text.mp4", b"words " * 99, "unreadable")],
)
def test_bad_file_has_a_status_and_a_reason(tmp_path, name, content, status):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = probe(tmp_path / name)
    assert found.status == status
    assert found.reason


def test_content_key_tells_clips_apart(tmp_path):
    for name, content in (("a", b"x" * 500_000), ("b", b"x" * 500_001), ("c", b"x" * 499_999 + b"y")):
        (tmp_path / name).write_bytes(content)
    keys = {content_key(tmp_path / name) for name in "abc"}
    assert len(keys) == 3


def test_worker_imports_av_and_numpy_only():
    code = (
        "import sys, avssl.media.probe; heavy = {'torch', 'cv2', 'pyarrow', 'sklearn', 'pydantic', 'tqdm'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_shared
def test_every_awkward_file_is_read_or_refused_with_a_reason():
    paths = sorted(path for path in (SHARED / "awkward").iterdir() if path.suffix != ".csv")
    found = dict(probe_files(paths, num_workers=2, timeout_seconds=60))
    assert len(found) == len(paths) > 90
    num_read = 0
    for i, facts in found.items():
        assert facts.status in ("ok", "empty", "unreadable", "no_video"), (paths[i].name, facts)
        assert facts.reason or (facts.status == "ok" and facts.has_audio), paths[i].name
        if facts.status != "ok":
            with pytest.raises(DecodeError, match=paths[i].name[:10]):
                read_clip(paths[i], video=[VideoWindow(0, 0.5, 8, size=(32, 32))])
        elif facts.width * facts.height < 4_000_000:  # the biggest take seconds
            middle = (facts.video_start + facts.video_end) / 2
            frames, samples = read_clip(
                paths[i],
                video=[VideoWindow(middle - 0.5, 1, 8, size=(32, 32))],
                audio=[AudioWindow(middle - 0.5, 1, 16000)],
            )
            assert frames[0].data.shape == (8, 32, 32, 3)
            assert samples[0].data.shape == (16000,)
            num_read += 1
    assert num_read > 50


@needs_shared
def test_real_clips_are_usable():
    paths = sorted((SHARED / "clips").rglob("*.*"))
    paths = [path for path in paths if path.suffix != ".csv"] + sorted((SHARED / "digits").rglob("*.mp4"))[::60]
    for i, facts in probe_files(paths, num_workers=2, timeout_seconds=60):
        assert isinstance(facts, Probe)
        assert facts.status == "ok", (paths[i], facts)
