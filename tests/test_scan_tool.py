"""Layouts, lists, and the command as a user calls it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from avssl.cli import scan
from avssl.cli.check import main as check
from avssl.data import check as check_module
from avssl.data.check import FACTS, join_facts
from avssl.data.manifest import ManifestError, read_manifest
from avssl.media.encode import write_clip
from tests.support.clips import make_sound

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    write_clip(path, np.full((8, 32, 32, 3), 99, dtype=np.uint8), fps=8, samples=tone, sample_rate=8000)
    return path.read_bytes()


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "avssl", "scan", *map(str, arguments), "--workers", "2"]
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
def test_layouts(paths, expected):
    rows = scan.label_clips(paths)
    assert [row["path"] for row in rows] == paths
    assert [(row["label"], row["split"]) for row in rows] == expected


def test_clips_are_found_sorted_without_hidden_and_other_files(tmp_path):
    for name in ("b/2.MP4", "b/10.mkv", "a/1.avi", ".cache/x.mp4", "a/.hidden.mp4", "a/notes.txt", "list.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    clips, others = scan.find_clips(tmp_path)
    assert clips == ["a/1.avi", "b/10.mkv", "b/2.MP4"]
    assert others == ["a/notes.txt", "list.csv"]


def test_only_a_link_that_leads_back_is_left_out(tmp_path):
    (tmp_path / "pool" / "more").mkdir(parents=True)
    (tmp_path / "pool" / "a.mp4").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "pool")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "pool")
    (tmp_path / "pool" / "more" / "self").symlink_to(tmp_path / "pool")
    (tmp_path / "root" / "far").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "root")  # by way of another folder
    assert scan.find_clips(tmp_path / "root") == (["cat/a.mp4", "dog/a.mp4"], [])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("cat", "dog", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()

    def scandir(path, real=os.scandir):
        if os.path.basename(str(path)) in ("dog", "lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ManifestError, match=r"folder .*/dog cannot be listed \(Permission denied\)"):
        scan.find_clips(tmp_path)
    shutil.rmtree(tmp_path / "dog")
    assert scan.find_clips(tmp_path)[0] == ["cat/a.mp4"]


def test_a_root_that_is_not_utf8(tmp_path, clip):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "a.mp4").write_bytes(clip)
    for out in (tmp_path / "m.parquet", root / "m.parquet"):
        done = run(root, "--out", out)
        assert done.returncode == 0, done.stderr
        manifest = read_manifest(out)
        assert manifest.path(0).read_bytes() == clip
        assert manifest.column("label").tolist() == ["cat"]


def test_folder_becomes_a_manifest(tmp_path, clip):
    root = tmp_path / "clips"
    for name in ("train/cat/2.mp4", "train/cat/1.mp4", "test/dog/1.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(clip)
    (root / "test/dog/broken.mp4").write_bytes(clip[:200])
    (root / "readme.txt").touch()
    done = run(root, "--out", tmp_path / "m.parquet")
    assert done.returncode == 0, done.stderr
    assert "4 clips: 3 ok, 1 unreadable; 2 labels (names of folders); 2 test, 2 train" in done.stdout
    assert "test/dog/broken.mp4: " in done.stdout
    assert "other files ignored: 1" in done.stdout
    assert f"  or: avssl train toy/avid data.manifest={tmp_path}/m.parquet run.dir" in done.stderr
    assert "data.split=null" not in done.stderr
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
        "path,label,split,group,start,end,speaker,labels\n"
        "b.mp4,cat,train,g1,0.5,,ann,rain; cat\n"
        f"{tmp_path}/b.mp4,dog,train,g1,0,0.5,,\n"
        "gone.mp4,,,,,,,cat;wind\n"
    )
    done = run(tmp_path, "--list", tmp_path / "list.csv", "--out", tmp_path / "m.parquet", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["status"] == {"missing": 1, "ok": 2}
    assert [row["path"] for row in summary["unreadable"]] == ["gone.mp4"]
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.column("path").tolist() == ["b.mp4", "b.mp4", "gone.mp4"]
    assert manifest.column("start").tolist()[:2] == [0.0, 0.5]
    assert manifest.column("label").tolist() == ["dog", "cat", "cat"]
    assert manifest.column("group").tolist() == ["g1", "g1", "gone.mp4"]
    assert manifest.column("speaker").tolist() == [None, "ann", None]
    assert manifest.label_sets == [("dog",), ("cat", "rain"), ("cat", "wind")]


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\n#1.mp4,run,train\n",
        " Path ,LABEL, Split\n#1.mp4 , run ,train \n",
        "path, label, split\n#1.mp4, run, train\n\n",
        ",path,label,split\n0,#1.mp4,run,train\n",  # as pandas writes it
        '"path", "label", "split"\r\n"#1.mp4", "run", "train"\r\n',
    ],
)
def test_lists_as_people_write_them_keep_labels(tmp_path, text):
    (tmp_path / "list.csv").write_text(f"\ufeff{text}", newline="")
    found = [(row["path"], row["label"], row["split"]) for row in scan.read_list(tmp_path / "list.csv", tmp_path)]
    assert found == [("#1.mp4", "run", "train")]


def test_names_are_found_in_either_form_of_unicode(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Café/é") for form in ("NFC", "NFD"))
    for name in (decomposed, "tea/é ", "tea/plain"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = ["path,label", f"{composed},{decomposed}", "tea/é,x", "tea/plain,x", "tea/gone,x"]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    rows = scan.read_list(tmp_path / "list.csv", tmp_path)
    assert [row["path"] for row in rows] == [decomposed, "tea/gone", "tea/plain", "tea/é "]
    facts = {row["path"]: dict.fromkeys(FACTS) for row in rows}
    assert join_facts(rows[:1], facts).column("label").to_pylist() == [composed]  # one class on every disk


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "list.csv has no column path"),
        ("\n\n", "list.csv has no column path"),
        ("path,label\n", "list.csv names no clip"),
        ("file,label\na.mp4,x\n", "no column path: .* is 'file,label'"),
        ("path;label\na.mp4;x\n", "no column path: .* with commas between, and is 'path;label'"),
        ("path,start_seconds\na.mp4,1\n", "has a column start_seconds, did you mean start?"),
        ("path,End_Time\na.mp4,1\n", "has a column end_time, did you mean end?"),
        ("path,damaged_at\na.mp4,1\n", "a name that the manifest itself uses: rename it"),
        ("path,labell\na.mp4,x\n", "has a column labell, did you mean label?"),
        ("path,label,Label\na.mp4,x,y\n", "has the column label twice"),
        (
            "path,label,split\na.mp4,run, fast,train\n",
            "'a.mp4,run,fast,train' has 4 cells and the first line 3: .*quotes",
        ),
        ("path,label,split\na.mp4,run\n", "'a.mp4,run' has 2 cells and the first line 3"),
        ('path,label\na.mp4,"run\nb.mp4,dance\n', "cannot be read as CSV"),
        ("path,label\na.mp4,caf\xe9\n".encode("latin-1"), "is not UTF-8"),
        ("path,label\na.mp4,x\n".encode("utf-16"), "is not UTF-8"),
        ("path\n../a.mp4\n", "'../a.mp4' does not lie in"),
        ("path,label\n,x\n", "'': the path is empty"),
        ("path\na.mp4\n./a.mp4\n", "'./a.mp4' is listed twice"),
        ("path,start\na.mp4,\na.mp4,0\n", "'a.mp4' is listed twice"),
        ("path,start\na.mp4,soon\n", "'soon' is no number of seconds"),
        ("path,start,end\na.mp4,2,1\n", "end 1.0 must come after start 2.0"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=message):
        scan.read_list(tmp_path / "list.csv", tmp_path)


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
    misspelt = run(tmp_path.with_name(tmp_path.name + "x"), "--out", tmp_path / "m.parquet")
    assert f"did you mean {tmp_path}?" in misspelt.stderr
    assert f"name it {tmp_path}/m.parquet" in run(tmp_path, "--out", tmp_path / "m.csv").stderr
    assert run(tmp_path, "--out", tmp_path / "m.parquet", "--list", tmp_path / "none.csv").returncode == 2


def test_sounds_are_taken_when_asked_for_and_counted(tmp_path, clip):
    root = tmp_path / "clips"
    (root / "cat").mkdir(parents=True)
    (root / "cat/a.mp4").write_bytes(clip)
    make_sound(root / "cat/b.mp3", 0, 0)
    (root / "cat/c.wav").write_bytes(b"")
    done = run(root, "--out", tmp_path / "m.parquet")  # a stray song must not change the ids
    assert "1 clips: 1 ok" in done.stdout
    assert "other files ignored: 2" in done.stdout
    assert "audio only" not in done.stdout
    done = run(root, "--out", tmp_path / "m.parquet", "--sounds")
    assert "3 clips: 1 empty, 1 no_video, 1 ok" in done.stdout
    assert "1 audio only, such as 'cat/b.mp3'" in done.stdout
    assert "1 unreadable:\n  cat/c.wav: the file is empty" in done.stdout
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.usable().tolist() == [True, True, False]
    assert (manifest.has_video.tolist(), manifest.has_audio.tolist()) == ([True, False, False], [True, True, False])
    (root / "cat/a.mp4").unlink()
    done = run(root, "--out", tmp_path / "m.parquet", "--sounds")
    assert done.returncode == 0
    assert "has video: its audio serves for queries and neighbors" in done.stderr


def test_an_empty_folder_is_told_and_costs_no_manifest(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"of before")
    done = run(tmp_path, "--out", tmp_path / "m.parquet")
    assert done.returncode == 1
    assert f"error: no clip of {tmp_path} is usable: is ROOT right?" in done.stderr
    assert (tmp_path / "m.parquet").read_bytes() == b"of before"


def test_scanning_again_keeps_what_was_found_and_says_what_is_new(tmp_path, clip):
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(4):
        samples = np.sin(np.arange(8000) / (5 + number)).astype(np.float32)
        frames = np.full((8, 32, 32, 3), 20 * number, dtype=np.uint8)
        write_clip(clips / f"{number}.mp4", frames, fps=8, samples=samples, sample_rate=8000)
    shutil.copy(clips / "0.mp4", clips / "copy.mp4")
    out = tmp_path / "m.parquet"
    first = run(clips, "--out", out)
    assert f"next: avssl check {out} --fix-manifest\n  or: avssl train toy/avid" in first.stderr
    assert check([str(out), "--fix-manifest", "--clip-seconds", "0.5", "--workers", "1"]) == 0
    before = read_manifest(out)
    assert before.column("duplicate_of").tolist() == [None, None, None, None, "0.mp4"]
    assert "rows:" not in run(clips, "--out", out).stderr  # nothing new
    assert read_manifest(out).table.equals(before.table.select(read_manifest(out).table.column_names))
    (clips / "3.mp4").unlink()
    (clips / "1.mp4").rename(clips / "a.mp4")
    write_clip(clips / "0_new.mp4", np.full((8, 32, 32, 3), 99, dtype=np.uint8), fps=8)
    again = run(clips, "--out", out)
    assert f"note: {out} had 5 rows: 1 are new, 1 gone; a run of the old rows is not resumed" in again.stderr
    after = read_manifest(out)
    assert after.column("path").tolist() == ["0.mp4", "0_new.mp4", "2.mp4", "a.mp4", "copy.mp4"]
    assert after.column("duplicate_of").tolist() == [None, None, None, None, "0.mp4"]
    assert set(check_module.FINDINGS) <= set(after.table.column_names)
