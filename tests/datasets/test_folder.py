"""Layouts, lists, and the command as a user calls it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avssl.data.manifest import ManifestError, read_manifest
from avssl.media.encode import write_clip
from tests.support.clips import make_sound

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "folder.py"


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.spec_from_file_location("folder_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    write_clip(path, np.full((8, 32, 32, 3), 99, dtype=np.uint8), fps=8, samples=tone, sample_rate=8000)
    return path.read_bytes()


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--workers", "2"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "paths, expected",
    [
        (["a.mp4", "b.mp4"], [(None, None), (None, None)]),
        (["cat/a.mp4", "dog/a.mp4"], [("cat", None), ("dog", None)]),
        (["test/cat/a.mp4", "train/dog/a.mp4"], [("cat", "test"), ("dog", "train")]),
        (["train/a.mp4", "val/b.mp4"], [(None, "train"), (None, "val")]),
        (["test/a.mp4", "walk/a.mp4"], [("test", None), ("walk", None)]),  # a class may be called test
        (["a.mp4", "train/cat/b.mp4"], [(None, None), ("cat", None)]),
        (["a.mp4", "cat/b.mp4", "x/y/dog/c.mp4"], [(None, None), ("cat", None), ("dog", None)]),
        (["train/x/cat/a.mp4", "validation/dog/b.mp4"], [("cat", "train"), ("dog", "validation")]),
    ],
)
def test_layouts(folder, paths, expected):
    rows = folder.label_clips(paths)
    assert [row["path"] for row in rows] == paths
    assert [(row["label"], row["split"]) for row in rows] == expected


def test_clips_are_found_sorted_without_hidden_and_other_files(folder, tmp_path):
    for name in ("b/2.MP4", "b/10.mkv", "a/1.avi", ".cache/x.mp4", "a/.hidden.mp4", "a/notes.txt", "list.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    clips, others = folder.find_clips(tmp_path)
    assert clips == ["a/1.avi", "b/10.mkv", "b/2.MP4"]
    assert others == ["a/notes.txt", "list.csv"]


def test_folder_becomes_a_manifest(tmp_path, clip):
    root = tmp_path / "clips"
    for name in ("train/cat/2.mp4", "train/cat/1.mp4", "test/dog/1.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(clip)
    (root / "test/dog/broken.mp4").write_bytes(clip[:200])
    (root / "readme.txt").touch()
    done = run(root, "--out", tmp_path / "m.parquet")
    assert done.returncode == 0, done.stderr
    assert "4 clips: 3 ok, 1 unreadable; 2 labels; 2 test, 2 train" in done.stdout
    assert "test/dog/broken.mp4: " in done.stdout
    assert "1 other files ignored" in done.stdout
    assert "next: " in done.stderr
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.column("path").tolist() == [
        "test/dog/1.mp4",
        "test/dog/broken.mp4",
        "train/cat/1.mp4",
        "train/cat/2.mp4",
    ]
    assert manifest.column("group").tolist() == manifest.column("path").tolist()
    assert manifest.column("split").tolist() == ["test", "test", "train", "train"]
    assert manifest.targets().tolist() == [1, 1, 0, 0]
    assert manifest.valid().tolist() == [True, False, True, True]
    assert manifest.has_audio.tolist() == [True, False, True, True]
    assert all(manifest.path(i).is_file() for i in range(4))


def test_list_becomes_a_manifest(tmp_path, clip):
    (tmp_path / "b.mp4").write_bytes(clip)
    (tmp_path / "not_listed.mp4").write_bytes(clip)
    (tmp_path / "list.csv").write_text(
        "path,label,split,group,start,end,speaker\n"
        "b.mp4,cat,train,g1,0.5,,ann\n"
        f"{tmp_path}/b.mp4,dog,train,g1,0,0.5,\n"
        "gone.mp4,cat,,,,,\n"
    )
    done = run(tmp_path, "--list", tmp_path / "list.csv", "--out", tmp_path / "m.parquet", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["status"] == {"missing": 1, "ok": 2}
    assert [row["path"] for row in summary["refused"]] == ["gone.mp4"]
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.column("path").tolist() == ["b.mp4", "b.mp4", "gone.mp4"]
    assert manifest.column("start").tolist()[:2] == [0.0, 0.5]
    assert manifest.column("label").tolist() == ["dog", "cat", "cat"]
    assert manifest.column("group").tolist() == ["g1", "g1", "gone.mp4"]
    assert manifest.column("speaker").tolist() == [None, "ann", None]


@pytest.mark.parametrize(
    "text, message",
    [
        ("file,label\na.mp4,x\n", "no column path"),
        ("path\n../a.mp4\n", "line 2: ../a.mp4 does not lie in"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path\na.mp4\na.mp4\n", "line 3: a.mp4 is listed twice"),
        ("path,start\na.mp4,soon\n", "'soon' is no number of seconds"),
        ("path,start,end\na.mp4,2,1\n", "end 1.0 must come after start 2.0"),
    ],
)
def test_wrong_lists_are_refused(folder, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        folder.read_list(tmp_path / "list.csv", tmp_path)


def test_exit_codes(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    nothing = run(tmp_path, "--out", tmp_path / "m.parquet")
    assert nothing.returncode == 1
    assert "a.mp4: the file is empty" in nothing.stdout
    assert "is ROOT right?" in nothing.stderr
    assert read_manifest(tmp_path / "m.parquet").column("status").tolist() == ["empty"]
    wrong = run(tmp_path / "none", "--out", tmp_path / "m.parquet")
    assert wrong.returncode == 2
    assert "is not a folder" in wrong.stderr
    assert run(tmp_path, "--out", tmp_path / "m.parquet", "--list", tmp_path / "none.csv").returncode == 2


def test_sounds_are_taken_when_asked_for_and_counted(tmp_path, clip):
    root = tmp_path / "clips"
    (root / "cat").mkdir(parents=True)
    (root / "cat/a.mp4").write_bytes(clip)
    make_sound(root / "cat/b.mp3", 0, 0)
    (root / "cat/c.wav").write_bytes(b"")
    done = run(root, "--out", tmp_path / "m.parquet")  # a stray song must not change the ids
    assert "1 clips: 1 ok" in done.stdout
    assert "2 other files ignored" in done.stdout
    assert "audio only" not in done.stdout
    done = run(root, "--out", tmp_path / "m.parquet", "--sounds")
    assert "3 clips: 1 empty, 1 no_video, 1 ok" in done.stdout
    assert "1 audio only, such as 'cat/b.mp3'" in done.stdout
    assert "1 refused:\n  cat/c.wav: the file is empty" in done.stdout
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.usable().tolist() == [True, True, False]
    assert (manifest.has_video.tolist(), manifest.has_audio.tolist()) == ([True, False, False], [True, True, False])
    (root / "cat/a.mp4").unlink()
    done = run(root, "--out", tmp_path / "m.parquet", "--sounds")
    assert done.returncode == 0
    assert "has video: its audio serves for queries and neighbours" in done.stderr


def test_an_empty_folder_is_told_and_costs_no_manifest(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"of before")
    done = run(tmp_path, "--out", tmp_path / "m.parquet")
    assert done.returncode == 1
    assert f"error: no clip of {tmp_path} is usable: is ROOT right?" in done.stderr
    assert (tmp_path / "m.parquet").read_bytes() == b"of before"
