"""Of several tracks those are read that players show, both of one program, and the doctor names the rest."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from avssl.media.decode import read_clip
from avssl.media.inspect import inspect
from avssl.media.prepare import Settings, prepare_clip
from avssl.media.preview import playable
from avssl.media.probe import probe
from avssl.media.reader import Reader
from avssl.windows import AudioWindow, VideoWindow
from tests.support.numbered import numbers
from tests.support.tracks import write_tracks

VIDEO, AUDIO = {"first": 100}, {"hz": 500}
STILL = {"first": 7, "frames": 1}
OTHER = {"hz": 3000}
DEFAULT = {"disposition": Disposition.default}


def added(name: str, *, default: bool = False) -> dict:
    return OTHER | {"disposition": Disposition[name] | (Disposition.default if default else Disposition(0))}


CASES = {  # name of the file: its tracks; VIDEO and AUDIO are right
    "description.mkv": [VIDEO, added("visual_impaired"), AUDIO],
    "description_default.mp4": [VIDEO, added("visual_impaired", default=True), AUDIO],
    "commentary.mkv": [VIDEO, added("comment", default=True), AUDIO],
    "three.mp4": [VIDEO, added("comment"), added("hearing_impaired"), AUDIO],
    "default.mkv": [VIDEO, OTHER, AUDIO | DEFAULT],
    "default.mov": [VIDEO, OTHER, AUDIO | DEFAULT],
    "silent.mkv": [VIDEO, {"hz": 0}, AUDIO],
    "silent.mp4": [VIDEO, {"hz": 0, **DEFAULT}, {"hz": 0}, AUDIO],
    "silent_pcm.mov": [VIDEO, {"hz": 0, "codec": "pcm_s16le"}, AUDIO | {"codec": "pcm_s24le"}],
    "audio_first.mkv": [AUDIO, VIDEO, added("comment")],
    "still.mkv": [STILL | {"codec": "mjpeg"}, VIDEO, AUDIO],
    "still_default.mkv": [STILL | DEFAULT, VIDEO, AUDIO],
    "still.mp4": [STILL | DEFAULT, VIDEO, AUDIO],
    "still.ts": [STILL, VIDEO, AUDIO],
    "cover.mkv": [STILL | {"codec": "mjpeg", "disposition": Disposition.attached_pic}, VIDEO, AUDIO],
    "cover.mp4": [STILL | {"codec": "mjpeg", "disposition": Disposition.attached_pic}, VIDEO, AUDIO],
}


def found(path: Path) -> tuple[int, int]:
    """Number of the first frame and pitch in Hz of what is read of a file."""
    facts = probe(path)
    assert facts.status == "ok", facts
    video, audio = VideoWindow(facts.video_start, 0.5, 10), AudioWindow(facts.video_start + 0.5, 1, 16000)
    (frames,), (samples,) = read_clip(path, video=[video], audio=[audio])
    assert numbers(frames.data) == list(range(numbers(frames.data)[0], numbers(frames.data)[0] + 5))
    return numbers(frames.data)[0], int(np.abs(np.fft.rfft(samples.data)).argmax()) if facts.has_audio else 0


@pytest.mark.parametrize("name", CASES)
def test_the_main_tracks_are_read_and_copied(tmp_path: Path, name: str) -> None:
    path = write_tracks(tmp_path / name, CASES[name])
    assert found(path) == (100, 500)
    assert prepare_clip(path, tmp_path / "copy.mp4", Settings()).state == "written"
    assert found(tmp_path / "copy.mp4") == (100, 500)


def test_further_tracks_are_named(tmp_path: Path) -> None:
    path = write_tracks(tmp_path / "a.mkv", [STILL, VIDEO, added("comment"), AUDIO | DEFAULT])
    inspected = inspect(path)
    assert inspected.further_tracks == "video track 0 (h264), audio track 2 (aac, comment)"
    assert inspected.digest == inspect(write_tracks(tmp_path / "b.mkv", [VIDEO, AUDIO])).digest
    assert inspect(tmp_path / "b.mkv").further_tracks is None
    assert inspect(write_tracks(tmp_path / "c.mp4", CASES["cover.mp4"])).further_tracks is None
    assert playable(write_tracks(tmp_path / "d.mp4", [VIDEO, AUDIO])) == "video/mp4"
    assert playable(write_tracks(tmp_path / "e.mp4", CASES["three.mp4"])) is None  # a browser takes another track


def test_only_silent_tracks(tmp_path: Path) -> None:
    facts = probe(write_tracks(tmp_path / "a.mkv", [VIDEO, {"hz": 0}, {"hz": 0}]))
    assert (facts.has_audio, facts.reason) == (False, "the audio track is silent")


# ---- programs of a transport stream


def test_sound_is_of_the_program_of_the_picture(tmp_path: Path) -> None:
    radio = {"number": 1, "tracks": [OTHER, {"hz": 2000}]}
    tv = {"number": 2, "tracks": [VIDEO, AUDIO]}
    for name, programs in (("a.ts", [radio, tv]), ("b.ts", [tv, radio])):
        path = write_programs(tmp_path / name, programs)
        assert found(path) == (100, 500)
        assert inspect(path).further_tracks.count("audio track") == 2


def test_a_silent_program_does_not_take_the_sound_of_another(tmp_path: Path) -> None:
    programs = [{"number": 1, "tracks": [OTHER]}, {"number": 2, "tracks": [VIDEO]}]
    facts = probe(write_programs(tmp_path / "a.ts", programs))
    assert (facts.status, facts.has_audio) == ("ok", False)
    assert facts.reason == "the audio tracks belong to another program than the video"


def test_a_track_that_begins_in_the_middle_stops_nothing(tmp_path: Path) -> None:
    first = write_tracks(tmp_path / "a.ts", [VIDEO, AUDIO], seconds=12)  # longer than FFmpeg looks ahead
    options = {"mpegts_start_pid": "768", "mpegts_pmt_start_pid": "4099"}
    second = write_tracks(tmp_path / "b.ts", [VIDEO, AUDIO], start=12, options=options)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    with av.open(str(tmp_path / "both.ts")) as container, pytest.raises(IndexError):
        list(container.demux())
    assert found(tmp_path / "both.ts") == (100, 500)
    assert inspect(tmp_path / "both.ts").status == "ok"


def write_programs(path: Path, programs: list[dict]) -> Path:
    """A transport stream of several programs, woven of one file for each."""
    parts, table = [], b""
    for program in programs:
        number = program["number"]
        options = {"mpegts_service_id": f"{number}", "mpegts_pmt_start_pid": f"{0x1000 + number}"}
        options["mpegts_start_pid"] = f"{0x100 * number}"
        content = write_tracks(path.with_suffix(f".{number}.ts"), program["tracks"], options=options).read_bytes()
        packets = [content[i : i + 188] for i in range(0, len(content), 188)]
        parts.append([packet for packet in packets if pid(packet) not in (0, 17)])  # of all but PAT and SDT
        table += number.to_bytes(2) + (0xE000 | 0x1000 + number).to_bytes(2)
    section = b"\x00" + (0xB000 | len(table) + 9).to_bytes(2) + b"\x00\x01\xc1\x00\x00" + table
    section += crc(section).to_bytes(4)
    pat = b"\x47\x40\x00\x10\x00" + section
    woven = sorted((i / len(part), k, packet) for k, part in enumerate(parts) for i, packet in enumerate(part))
    path.write_bytes(pat.ljust(188, b"\xff") + b"".join(packet for _, _, packet in woven))
    return path


def pid(packet: bytes) -> int:
    return int.from_bytes(packet[1:3]) & 0x1FFF


def crc(content: bytes) -> int:
    """CRC-32/MPEG-2, bit by bit."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 1 << 31 else 0)) & 0xFFFFFFFF
    return value


def test_tracks_are_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "two.mkv"
    write_tracks(path, [VIDEO, AUDIO, AUDIO], seconds=1)
    with Reader(path) as reader:
        expected = reader.audio.index
    opened, open_file = [], av.open
    monkeypatch.setattr(av, "open", lambda *given, **named: opened.append(given) or open_file(*given, **named))
    for _ in range(3):
        with Reader(path) as reader:
            assert reader.audio.index == expected
    assert len(opened) == 3
