"""Rows with start and end: seconds from the beginning of the file, whatever its clock, and what lies outside of it."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from avssl.config import DataConfig
from avssl.data.check import _is_cut, build_table, fix_manifest, inspect_manifest, join_facts, report
from avssl.data.dataset import ClipDataset
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.data.policy import cases
from avssl.data.prepare import list_clips, prepare
from avssl.data.sampling import Key
from avssl.media.decode import read_frames
from avssl.media.prepare import Settings
from avssl.media.preview import _run_job
from avssl.media.probe import Probe
from avssl.transforms.views import View
from tests.support.numbered import numbers
from tests.support.tracks import write_tracks

VIDEO, AUDIO = {"first": 0}, {"hz": 500}
CLOCKS = {"zero.mp4": 0, "usual.ts": 1.4, "tv.ts": 36_000, "date.mkv": 1.7e9, "late.mp4": 5}


def listed(folder: Path, rows: list[dict]) -> Manifest:
    write_manifest(folder / "manifest.parquet", build_table(folder, rows, num_workers=1), root=folder)
    return read_manifest(folder / "manifest.parquet")


def shown(manifest: Manifest, id: int) -> list[int]:
    """Numbers of all frames of a row, which has 10 a second."""
    start, end = manifest.bounds("video")[id]
    return numbers(read_frames(manifest.path(id), start=start, duration=end - start, fps=10).data)


def test_seconds_count_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    clips, copies = tmp_path / "clips", tmp_path / "copies"
    clips.mkdir()
    for name, start in CLOCKS.items():
        write_tracks(clips / name, [VIDEO, AUDIO], start=start, seconds=4)
    rows = [{"path": name, "start": 1.0, "end": 3.0} for name in CLOCKS]
    manifest = listed(clips, rows)
    settings = Settings(short_side=64)
    prepare(clips, copies, list_clips(clips), settings, num_workers=1, timeout_seconds=60)
    prepared = read_manifest(copies / "manifest.parquet")
    for each in (manifest, prepared):
        assert set(each.column("status")) == {"ok"}
        assert each.column("start").tolist() == [1.0] * len(rows)
        for id, name in enumerate(CLOCKS):
            assert shown(each, id) == list(range(10, 30)), name
            assert each.bounds("audio")[id] == pytest.approx(each.bounds("video")[id])
        assert not cases(each, 1.0)["short"].any()
    assert manifest.bounds("video")[2] == pytest.approx([36_001, 36_003])
    job = {"kind": "preview", "source": str(clips / "tv.ts"), "part": [1.0, 3.0], "target": str(tmp_path / "part.mp4")}
    assert not _run_job(job)["reason"]
    preview = read_frames(tmp_path / "part.mp4", start=0, duration=2, fps=10, size=(64, 96))
    assert numbers(preview.data) == list(range(10, 30))


def test_rows_inside_a_hole_are_outside() -> None:
    times = {"video_start": 1.4, "video_end": 120.0, "audio_start": 1.4, "audio_end": 120.0}
    facts = asdict(Probe(status="ok", reason="", has_audio=True, holes=[[7.4, 107.4]], **times))
    rows = [{"path": "a.ts", "start": start, "end": end} for start, end in [(6.0, 106.0), (5.9, 20.0), (50.0, 107.0)]]
    assert join_facts(rows, {"a.ts": facts}).column("status").to_pylist() == ["outside", "ok", "ok"]


def test_rows_outside_of_their_file_are_named(tmp_path: Path) -> None:
    write_tracks(tmp_path / "a.ts", [VIDEO, AUDIO], seconds=2)
    parts = [(1.0, 3.0), (2.5, 4.0), (100.0, 110.0), (5.0, None), (None, 1.0)]
    manifest = listed(tmp_path, [{"path": "a.ts", "start": start, "end": end} for start, end in parts])
    assert manifest.column("status").tolist() == ["ok", "outside", "outside", "outside", "ok"]
    assert manifest.column("reason")[2] == "its part, 100 to 110 s, lies outside of the file, which lasts 2.0 s"
    assert manifest.column("reason")[3].startswith("its part, from 5 s on, lies")
    assert manifest.usable().tolist() == [True, False, False, False, True]
    assert shown(manifest, 0) == list(range(10, 20))
    assert shown(manifest, 4) == list(range(10))
    found = inspect_manifest(manifest, num_workers=1, timeout_seconds=60)
    fix_manifest(tmp_path / "manifest.parquet", manifest, found)
    checked = read_manifest(tmp_path / "manifest.parquet")
    assert checked.column("status").tolist() == manifest.column("status").tolist()
    assert report(checked, found, clip_seconds=0.5)["cases"] == {"unreadable": 1}
    data = DataConfig(manifest="", num_frames=4, fps=8, size=32)
    sample = ClipDataset(manifest, data, (View("video"),))[Key(0, 2, 0)]
    assert sample.id == -1
    assert "lies outside of the file" in sample.error


TIMES = {"video_start": 1.4, "video_end": 11.4, "audio_start": 1.38, "audio_end": 6.4}
FACTS = asdict(Probe(status="ok", has_audio=True, **TIMES))


@pytest.mark.parametrize(
    "ends, status, has_audio, reason",
    [
        ((6.4, 11.4), "ok", False, "the audio ends at 5.0 s, before this part"),
        ((11.4, 6.4), "no_video", True, "the video ends at 5.0 s, before this part"),
        ((6.4, 6.4), "outside", False, "its part, 6 to 9 s, lies outside of the file, which lasts 5.0 s"),
        ((11.4, 11.4), "ok", True, ""),
    ],
)
def test_a_part_has_the_tracks_that_reach_into_it(
    tmp_path: Path, ends: tuple[float, float], status: str, has_audio: bool, reason: str
) -> None:
    facts = FACTS | {"audio_end": ends[0], "video_end": ends[1]}
    manifest = Manifest(join_facts([{"path": "a", "start": 6.0, "end": 9.0}], {"a": facts}), tmp_path)
    assert manifest.column("status").tolist() == [status]
    assert manifest.column("has_audio").tolist() == [has_audio]
    assert manifest.column("reason").tolist() == [reason]
    assert np.isfinite(manifest.bounds("audio")).all() == has_audio
    assert cases(manifest, 1.0)["no_audio"].tolist() == [status == "ok" and not has_audio]
    assert not cases(manifest, 1.0)["silent"].any()


def test_audio_long_before_the_video_is_the_beginning(tmp_path: Path) -> None:
    facts = FACTS | {"audio_start": 0.0, "audio_end": 11.4}
    rows = [{"path": "a", "start": 2.0, "end": 3.0}, {"path": "a", "start": None, "end": None}]
    bounds = Manifest(join_facts(rows, {"a": facts}), tmp_path).bounds("video")
    assert bounds.tolist() == [[2.0, 3.0], [1.4, 11.4]]


@pytest.mark.parametrize(
    "start, end, video_end, audio_end, is_cut",
    [
        (30, 40, 200, 200, False),  # the whole video
        (30, 40, 35, 35, False),  # which ends too early
        (0, 10, 10, 10, False),  # or is no longer than the clip
        (30, 40, 10.1, 10.2, True),
        (30, 40, None, 10, True),
        (3, 13, 9.8, None, True),
        (30, 40, None, None, False),  # unreadable
        (None, None, 10, 10, False),
    ],
)
@pytest.mark.parametrize("zero", [0.0, 1.4, 36_000.0])
def test_the_part_stays_only_where_the_file_can_be_the_whole_video(
    start: float | None, end: float | None, video_end: float | None, audio_end: float | None, is_cut: bool, zero: float
) -> None:
    tracks = {"video": video_end, "audio": audio_end}
    facts = FACTS | {f"{kind}_start": None if last is None else zero for kind, last in tracks.items()}
    facts |= {f"{kind}_end": None if last is None else last + zero for kind, last in tracks.items()}
    facts |= {"status": "ok" if video_end else "no_video" if audio_end else "unreadable"}
    assert _is_cut({"start": start, "end": end}, facts) == is_cut
