"""tools/track.py, called as a user calls it: what it finds, what a stopped call leaves, what it refuses."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from avssl.cli.track import LINE, SHEET_HEIGHT
from avssl.data import find_tracks
from avssl.data.check import build_table
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.data.tracks import read_tracks
from avssl.evaluate.scenes import make_scene
from avssl.media.encode import write_clip
from avssl.mining.tracking import Options
from avssl.workers import run_jobs
from tests.support.clips import make_sound

pytestmark = pytest.mark.slow
Call = Callable[..., int]
NAMES = ("a_moves.mp4", "b_pans.mp4", "c_still.mp4", "d_moves.mp4", "e_sound.mp3", "f_text.mp4", "g_moves.mp4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips and its manifest; not to be changed by tests."""
    folder = tmp_path_factory.mktemp("track") / "set"
    folder.mkdir()
    scenes = {
        "a_moves.mp4": make_scene(3, num_frames=16, num_objects=1),
        "b_pans.mp4": make_scene(1, num_frames=16, num_objects=0),
        "c_still.mp4": make_scene(2, num_frames=16, num_objects=0, shake=0, pan=0),
        "d_moves.mp4": make_scene(4, num_frames=16, num_objects=1),
        "g_moves.mp4": make_scene(6, num_frames=16, num_objects=1),
    }
    for name, scene in scenes.items():
        write_clip(folder / name, scene.frames, fps=15)
    make_sound(folder / "e_sound.mp3", 0, 0)
    (folder / "f_text.mp4").write_text("words")
    rows = [{"path": name, "split": "test" if name.startswith("g") else "train"} for name in NAMES]
    write_manifest(folder / "manifest.parquet", build_table(folder, rows, num_workers=1), root=folder)
    return folder


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("called_track", repository / "tools" / "track.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tool: ModuleType) -> Call:
    def call(manifest: Path, out: Path, *arguments: object) -> int:
        options = ["--out", out, "--max-frames", 12, "--max-tracks", 1, "--workers", 1, *arguments]
        try:
            return tool.main([str(manifest), *map(str, options)])
        except SystemExit as stop:  # argparse
            return stop.code

    return call


def watch_jobs(monkeypatch: pytest.MonkeyPatch, module: str = find_tracks.MODULE) -> list[str]:
    """Names of the files that workers are asked for, from now on."""
    asked: list[str] = []

    def watched(_: str, jobs: list[dict], **options: object) -> object:
        asked.extend(Path(job["path"]).name for job in jobs)
        return run_jobs(module, jobs, **options)

    monkeypatch.setattr(find_tracks, "run_jobs", watched)
    return asked


def test_what_is_found_and_shown(made: Path, tmp_path: Path, call: Call, capsys) -> None:
    out = tmp_path / "new" / "tracks.parquet"
    manifest = read_manifest(made / "manifest.parquet")
    assert call(made / "manifest.parquet", out, "--show", 2, "--json", tmp_path / "summary.json") == 1  # f_text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["clips"], summary["with_track"], summary["tracks"], summary["kept"]) == (7, 3, 3, 0)
    assert summary["without"] == {"no motion": 2, "no video": 1}
    assert [entry["path"] for entry in summary["not_read"]] == ["f_text.mp4"]
    words = capsys.readouterr().out
    assert "3 tracks in 3 of 7 clips" in words
    assert re.search(r"1 could not be read:\n  f_text\.mp4: unreadable: ", words)

    tracks = read_tracks(out, manifest_hash=manifest.hash)
    assert {id for id in range(7) if tracks.of(id)} == {0, 3, 6}
    assert tracks.reasons[1] == tracks.reasons[2] == "no motion"
    assert tracks.reasons[5].startswith("not read: unreadable")
    assert tracks.options["max_frames"] == 12
    (sheet,) = summary["sheets"]
    assert Path(sheet) == out.with_name("tracks_sheet_0.png")
    picture = cv2.imread(sheet)
    assert picture.shape[0] == 2 * (SHEET_HEIGHT + 2 * LINE + 4)
    assert (picture == [0, 255, 255]).all(axis=2).sum() > 500  # boxes, yellow
    assert sorted(path.name for path in out.parent.iterdir()) == ["tracks.parquet", "tracks_sheet_0.png"]


def test_a_finished_table_is_kept_and_other_splits_join_it(
    made: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, manifest = tmp_path / "tracks.parquet", read_manifest(made / "manifest.parquet")
    asked = watch_jobs(monkeypatch)
    assert call(made / "manifest.parquet", out, "--split", "test") == 0
    assert asked == ["g_moves.mp4"]
    first = read_tracks(out, manifest_hash=manifest.hash)
    assert call(made / "manifest.parquet", out, "--split", "test") == 0
    assert asked == ["g_moves.mp4"]
    assert call(made / "manifest.parquet", out, "--split", "train") == 1
    assert asked[1:] == ["a_moves.mp4", "b_pans.mp4", "c_still.mp4", "d_moves.mp4"]
    both = read_tracks(out, manifest_hash=manifest.hash)
    assert np.unique(both.ids).tolist() == [0, 3, 6]
    np.testing.assert_array_equal(both.of(6)[0].boxes, first.of(6)[0].boxes)
    asked.clear()
    assert call(made / "manifest.parquet", out, "--split", "test", "--max-frames", 10) == 0  # other options: anew
    assert asked == ["g_moves.mp4"]
    assert np.unique(read_tracks(out, manifest_hash=manifest.hash).ids).tolist() == [6]


def test_a_killed_call_is_continued(
    made: Path, tmp_path: Path, call: Call, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tracks.parquet"
    command = [sys.executable, "tools/track.py", made / "manifest.parquet", "--out", out]
    options = ["--max-frames", "12", "--max-tracks", "1", "--workers", "1"]
    process = subprocess.Popen([*command, *options], cwd=repository, stderr=subprocess.DEVNULL)
    try:
        journals: list[Path] = []
        while process.poll() is None and not (journals and journals[0].read_text().count("\n") >= 1):
            time.sleep(0.01)
            journals = list(tmp_path.glob(".tracks.parquet.*.jsonl"))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists()
    (journal,) = journals
    known = {json.loads(line)[0] for line in journal.read_text().splitlines()}
    with open(journal, "a") as file:
        file.write('[3, {"tra')  # the line that a kill may cut off
    asked = watch_jobs(monkeypatch)
    assert call(made / "manifest.parquet", out) == 1
    assert asked == [name for id, name in enumerate(NAMES) if id not in known and id not in (4, 5)]
    tracks = read_tracks(out, manifest_hash=read_manifest(made / "manifest.parquet").hash)
    assert np.unique(tracks.ids).tolist() == [0, 3, 6]
    assert not journal.exists()


def test_a_file_that_hangs_or_kills_is_named_and_tried_again(
    made: Path, tmp_path: Path, repository: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "hostile_track.py").write_text(
        "import os, time\n"
        "from avssl.mining.tracking import _run_job\n"
        "from avssl.workers import serve\n"
        "def worse(job):\n"
        "    if 'a_moves' in job['path']: os._exit(9)\n"
        "    if 'b_pans' in job['path']: time.sleep(60)\n"
        "    return _run_job(job)\n"
        "serve(worse)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    out = tmp_path / "tracks.parquet"
    with monkeypatch.context() as patch:
        watch_jobs(patch, "hostile_track")
        assert call(made / "manifest.parquet", out, "--timeout", 4) == 1
    words = capsys.readouterr().out
    assert re.search(r"a_moves\.mp4: crashed: the worker that had it died", words)
    assert re.search(r"b_pans\.mp4: timeout: not done within 4 seconds", words)
    assert "2 tracks in 2 of 7 clips" in words
    asked = watch_jobs(monkeypatch)
    assert call(made / "manifest.parquet", out) == 1
    assert asked == ["a_moves.mp4", "b_pans.mp4"]
    assert "3 tracks in 3 of 7 clips (4 known before)" in capsys.readouterr().out


def test_wrong_calls_give_2(made: Path, tmp_path: Path, call: Call, capsys) -> None:
    def refused(*arguments: object, manifest: Path = made / "manifest.parquet", out: str = "t.parquet") -> str:
        assert call(manifest, tmp_path / out, *arguments) == 2
        return capsys.readouterr().err

    assert "none.parquet does not exist" in refused(manifest=tmp_path / "none.parquet")
    assert "no clips of split=dev" in refused("--split", "dev")
    assert "max_frames=1 must be at least 2" in refused("--max-frames", 1)
    assert "--workers 0 must be at least 1" in refused("--workers", 0)
    (tmp_path / "text.parquet").write_text("words")
    assert "text.parquet are no parquet file" in refused(out="text.parquet")
    assert (tmp_path / "text.parquet").read_text() == "words"
    (tmp_path / "folder").mkdir()
    assert "folder cannot be written" in refused(out="folder")


def test_a_table_of_another_manifest_is_left_alone(made: Path, tmp_path: Path, call: Call, capsys) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "set"))
    manifest: Manifest = read_manifest(folder / "manifest.parquet")
    out = tmp_path / "tracks.parquet"
    assert call(folder / "manifest.parquet", out, "--split", "test") == 0
    before = out.read_bytes()
    write_manifest(folder / "manifest.parquet", manifest.table.slice(1), root=folder)
    assert call(folder / "manifest.parquet", out, "--split", "test") == 2
    assert f"belong to another manifest (hash {manifest.hash}" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_interrupted_and_alone(made: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out, manifest = tmp_path / "tracks.parquet", read_manifest(made / "manifest.parquet")
    options = asdict(Options(max_frames=12, max_tracks=1))
    with find_tracks._journal(out, manifest.hash, options):
        assert call(made / "manifest.parquet", out) == 2
    assert "tracks.parquet: wait for it or end it" in capsys.readouterr().err

    def interrupted(module: str, jobs: list[dict], **settings: object) -> Iterator:
        yield 0, {"tracks": [], "reason": "no motion"}
        raise KeyboardInterrupt

    monkeypatch.setattr(find_tracks, "run_jobs", interrupted)
    assert call(made / "manifest.parquet", out) == 130
    assert "the same command continues" in capsys.readouterr().err
    with find_tracks._journal(out, manifest.hash, options) as journal:
        assert find_tracks._read_journal(journal)[0]["reason"] == "no motion"
