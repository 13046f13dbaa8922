"""Damaged, lying and foreign files: each is read with right times or refused by name, and the judge of that can see."""

import dataclasses
import os
import re
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from avssl.media.decode import read_frames, read_samples
from avssl.media.encode import write_clip
from avssl.media.probe import probe
from avssl.media.reader import DecodeError
from tests.rigs import judge
from tests.rigs.damage import WAYS, Clip, damaged_copies, make_clips, picture, read_numbers
from tests.rigs.hostile import VERDICTS, describe, is_good, reason_class, run_hostile, sum_up
from tests.rigs.judge import examine, truth_of

pytestmark = pytest.mark.slow


def test_damaged_copies_are_read_rightly_or_refused(tmp_path: Path) -> None:
    awkward = tmp_path / "awkward"
    awkward.mkdir()
    (awkward / "empty.mp4").touch()
    (awkward / "text.mp4").write_text("words " * 99)
    write_clip(awkward / "fine.mp4", np.stack([picture(i) for i in range(30)]), fps=10)
    (tmp_path / "work").mkdir()
    summary = run_hostile(tmp_path / "work", number=30, seed=1, awkward=awkward, timeout_seconds=60)
    assert is_good(summary), describe(summary)
    assert summary["kinds"].keys() == {"awkward", "mp4", "mkv", "avi", "webm", "ts", "mpg"}
    assert summary["kinds"]["awkward"] == dict.fromkeys(VERDICTS, 0) | {"files": 3, "read": 1, "refused": 2}
    assert sum(row["files"] for row in summary["kinds"].values()) == 33
    assert sum(row["read"] for row in summary["kinds"].values()) > 18
    assert summary["reasons"]["empty"] == 1
    assert summary["pieces"]["right"] > 1500
    assert 0 < summary["peak_bytes"] < summary["memory_bytes"]


def test_copies_follow_from_their_seed(tmp_path: Path) -> None:
    clips = {"mp4": make_clips(tmp_path, seconds=1.0)["mp4"]}
    found = []
    for seed in (3, 3, 4):
        folder = tmp_path / f"{len(found)}"
        folder.mkdir()
        copies = list(damaged_copies(clips, folder, number=12, seed=seed))
        assert {copy.way for copy in copies} == {*WAYS, "lying header"}
        found.append([copy.path.read_bytes() for copy in copies])
        assert all(copy.path.read_bytes() != copy.clip.path.read_bytes() for copy in copies)
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return make_clips(tmp_path_factory.mktemp("clips"), seconds=2.5)["mkv"][0]


def job(clip: Clip, path: Path | None = None) -> dict:
    return {"path": str(path or clip.path), "seed": 0, "truths": [asdict(truth_of(clip))]}


def test_an_undamaged_clip_is_right_throughout(clip: Clip) -> None:
    for truths in (job(clip)["truths"], []):
        answer = examine(job(clip) | {"truths": truths})
        assert answer["verdict"] == "read", answer
        assert answer["counts"]["right"] > 100
        assert answer["counts"]["as_in_file"] == answer["counts"]["concealed"] == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "error, found", [("pictures", "number|picture"), ("sound", "sound"), ("exception", "KeyError: 'lost'")]
)
def test_errors_of_the_reader_are_seen(
    monkeypatch: pytest.MonkeyPatch, clip: Clip, error: str, known: bool, found: str
):
    read_clip = judge.read_clip

    def wrong(*given, **named):
        frames, samples = read_clip(*given, **named)
        match error:
            case "pictures":  # one frame too early
                frames = [dataclasses.replace(each, times=each.times - 0.04) for each in frames]
            case "sound":
                samples = [dataclasses.replace(each, data=np.roll(each.data, 240)) for each in samples]  # 10 ms
            case "exception":
                raise KeyError("lost")
        return frames, samples

    monkeypatch.setattr(judge, "read_clip", wrong)
    answer = examine(job(clip) | ({} if known else {"truths": []}))
    assert answer["verdict"] == ("other" if error == "exception" else "wrong")
    assert re.search(found, answer["reason"])


def test_a_picture_tells_its_number() -> None:
    frames = np.stack([picture(number) for number in (0, 1, 2047, 4095)])
    assert read_numbers(frames) == [0, 1, 2047, 4095]
    frames[1, :16, :16] = 220
    frames[1, 32:48, :16] = 220
    assert read_numbers(frames)[1] == -1


def test_table_and_what_fails() -> None:
    fine = {"verdict": "read", "reason": "", "peak_bytes": 1 << 20, "seconds": 0.5, "counts": {"right": 3}}
    answers = [fine, fine | {"verdict": "refused", "reason": "the file is empty"}]
    summary = sum_up(["a.mp4", "b.mkv"], ["mp4", "mkv"], answers) | {"seed": 0, "seconds": 1.0}
    assert is_good(summary)
    assert summary["reasons"] == {"empty": 1}
    assert summary["pieces"] == {"right": 6}
    for verdict in ("hang", "crash", "other", "wrong"):
        bad = {"verdict": verdict, "reason": "why"}
        summary = sum_up(["a.mp4", "b.mkv"], ["mp4", "mkv"], [fine, bad]) | {"seed": 0, "seconds": 1.0}
        assert not is_good(summary)
        assert f"{verdict.upper()} b.mkv: why" in describe(summary)
    assert not is_good(sum_up(["a.mp4"], ["mp4"], [fine | {"peak_bytes": 1 << 40}]))
    assert reason_class("something new") == "something new"


def test_wrong_calls(repository: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "tests.rigs.hostile", "--awkward", str(tmp_path / "none")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 2
    assert "is no folder" in done.stderr


# ---- what is not a local media file


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:%s\n#EXT-X-ENDLIST\n"
SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile %s\n",
        HLS,
        HLS.replace(b"file:%s", b"http://127.0.0.1:9/a.ts"),
        SDP,
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>%s</BaseURL></MPD>',
        b";FFMETADATA1\ntitle=%s\n",
    ],
)
def test_a_playlist_called_mp4_reads_nothing(tmp_path: Path, clip: Clip, content: bytes) -> None:
    path = tmp_path / "list.mp4"
    path.write_bytes(content.replace(b"%s", str(clip.path).encode()))
    check_refused(path, "no media file that can be opened")


@pytest.mark.parametrize(
    "name",
    ["http://127.0.0.1:9/a.mp4", "concat:{clip}|{clip}", "file:{clip}", "img%03d.mkv", "crypto:{clip}", "-", "a\0b"],
)
def test_a_path_is_nothing_but_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Clip, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img001.mkv").write_bytes(clip.path.read_bytes())
    check_refused(Path(name.format(clip=clip.path)), "does not exist|cannot be opened")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing.mp4")
    check_refused(tmp_path / "pipe.mp4", "no file")
    check_refused(tmp_path / "folder.mp4", "no file")
    check_refused(Path("/dev/zero"), "no file")
    check_refused(tmp_path / "loop.mp4", "cannot be opened .*symbolic links")
    check_refused(tmp_path / "dangling.mp4", "does not exist")
    check_refused(tmp_path / ("long" * 100 + ".mp4"), "cannot be opened .*name too long")


@pytest.mark.parametrize("forbidden", ["the file", "its folder"])
def test_no_permission(tmp_path: Path, clip: Clip, forbidden: str) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "closed").mkdir()
    path = tmp_path / "closed" / "clip.mkv"
    path.write_bytes(clip.path.read_bytes())
    closed = path if forbidden == "the file" else path.parent
    closed.chmod(0)
    try:
        check_refused(path, "Permission denied")
    finally:
        closed.chmod(0o700)


def test_a_file_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for those who run the tests as root."""

    def stat(*given, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("avssl.media.shards.os.stat", stat)
    with pytest.raises(DecodeError, match=r"clip\.mp4: the file cannot be opened \(Permission denied\)"):
        read_frames("clip.mp4", start=0, duration=1, fps=8)
    assert probe("clip.mp4").status == "unreadable"


def check_refused(path: Path, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"(?s)^{re.escape(str(path))}: .*({reason})"):
        read_frames(path, start=0, duration=1, fps=8)
    with pytest.raises(DecodeError, match=f"({reason})"):
        read_samples(path, start=0, duration=1, sample_rate=8000)
    facts = probe(path)
    assert facts.status in ("missing", "unreadable")
    assert re.search(reason, facts.reason)


# ---- numbers in headers that ask for too much memory


def lying(path: Path, target: Path, signature: bytes, offset: int, number: bytes) -> Path:
    content = bytearray(path.read_bytes())
    at = content.index(signature) + offset
    content[at : at + len(number)] = number
    target.write_bytes(content)
    return target


@pytest.fixture
def bounded() -> None:
    """Fails when memory grows by more than 100 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    "side, reason",
    [
        (12_000, r"12000x12000 pixels is larger than data\.max_pixels="),
        (30_000, "no frame of the video track can be decoded"),  # FFmpeg itself takes no memory for as many
    ],
)
def test_a_picture_that_is_too_large(tmp_path: Path, bounded: None, side: int, reason: str) -> None:
    raw = tmp_path / "raw.avi"
    write_clip(raw, np.zeros((4, 32, 32, 3), dtype=np.uint8), fps=4, video_codec="rawvideo")
    path = lying(raw, tmp_path / "large.avi", b"strf", 12, side.to_bytes(4, "little") * 2)
    with pytest.raises(DecodeError, match=f"large.avi: .*{reason}"):
        read_frames(path, start=0, duration=1, fps=8)
    assert re.search(reason, probe(path).reason)


def test_a_billion_seconds(tmp_path: Path, clip: Clip, bounded: None) -> None:
    path = lying(clip.path, tmp_path / "long.mkv", b"\x44\x89\x88", 3, np.array(1e12, dtype=">f8").tobytes())
    check_refused(path, r"claims to last 1000000000 seconds, more than data\.max_seconds=")


def test_two_billion_samples_a_second(tmp_path: Path, bounded: None) -> None:
    """The audio is left out, with its reason; the frames are fine."""
    frames = np.stack([picture(i) for i in range(8)])
    tone = {"samples": np.full(16_000, 0.5, dtype=np.float32), "sample_rate": 8000}
    write_clip(tmp_path / "fine.avi", frames, fps=4, video_codec="mpeg4", audio_codec="pcm_s16le", **tone)
    rate = (2**31 - 1).to_bytes(4, "little")
    path = lying(tmp_path / "fine.avi", tmp_path / "fast.avi", b"strf\x10\0\0\0", 12, rate)
    facts = probe(path)
    assert (facts.status, facts.has_audio, facts.reason) == ("ok", False, "the audio track cannot be decoded")
    assert not read_samples(path, start=0, duration=1, sample_rate=8000).data.any()
    assert read_numbers(read_frames(path, start=0, duration=1, fps=4).data) == [0, 1, 2, 3]
