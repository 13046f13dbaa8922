"""The command as a user calls it: names, rows, what is kept and what is done again, kills, and wrong calls."""

import csv
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from avssl.data.check import build_table, join_facts
from avssl.data.manifest import SCHEMA, read_manifest, write_manifest
from avssl.data.prepare import name_copies
from avssl.media.encode import write_clip
from avssl.media.prepare import read_record
from avssl.media.probe import Probe, content_key, probe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "prepare.py"
RATE = 8000
FRAMES = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("prepare_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clip(
    path: Path, *, seconds: float = 1.0, pitch: float = 300, frames: np.ndarray = FRAMES, **options: object
) -> Path:
    samples = (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames, fps=12, samples=samples, sample_rate=RATE, **options)
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "clips"
    for number, name in enumerate(("train/cat/a.mp4", "train/dog/b.mkv", "test/dog/c.mp4")):
        clip(root / name, pitch=300 + number)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "clips, names",
    [
        (["a/b.avi"], ["a/b.mp4"]),
        (["a/b.avi", "b.avi"], ["a/b.mp4", "b.mp4"]),
        (["a/b.avi", "a/b.mp4", "a/c.mp4"], ["a/b.avi.mp4", "a/b.mp4.mp4", "a/c.mp4"]),
        (["B.avi", "b.mkv"], ["B.avi.mp4", "b.mkv.mp4"]),  # one file where upper and lower case are the same
        (["b.avi", "b.avi.mkv", "b.mkv"], ["b.avi.mp4", "b.avi.mkv.mp4", "b.mkv.mp4"]),  # lengthened into another
        (["clip.1.mp4", "clip.2.mp4"], ["clip.1.mp4", "clip.2.mp4"]),
        ([f"a/{'x' * 251}.mp4"], [f"a/{'x' * 251}.mp4"]),
    ],
)
def test_no_copy_takes_the_name_of_another(clips, names):
    assert list(name_copies(clips).values()) == names


def test_names_too_long_for_a_copy_are_cut_and_stay_apart():
    clips = [f"a/{'é' * 126}.ts", f"a/{'é' * 126}.qt", f"a/{'x' * 250}.avi", f"a/{'x' * 250}.mkv", f"b/{'x' * 251}.avi"]
    copies = list(name_copies(clips).values())
    assert len(set(copies)) == len(clips)
    assert all(len(Path(copy).name.encode()) <= 255 and copy.endswith(".mp4") for copy in copies)
    assert [Path(copy).parent.name for copy in copies] == ["a"] * 4 + ["b"]
    assert copies[4] == clips[4].replace(".avi", ".mp4")


def test_a_folder_becomes_copies_and_their_manifest(tool, source, tmp_path, capsys):
    (source / "test/dog/broken.mp4").write_bytes(b"no clip at all" * 50)
    assert tool.main([str(source), str(tmp_path / "new"), "--workers", "1", "--json", str(tmp_path / "s.json")]) == 1
    printed = capsys.readouterr()
    assert "3 of 4 clips prepared (3 now, 0 before)" in printed.out
    assert "test/dog/broken.mp4: no media file that can be opened" in printed.out
    next_call = f"next: avssl train toy/avid data.manifest={tmp_path}/new/manifest.parquet"
    assert f"{next_call} run.dir=runs/new\n" in printed.err
    manifest = read_manifest(tmp_path / "new" / "manifest.parquet")
    assert manifest.root == tmp_path / "new"
    assert manifest.table.column_names == [*SCHEMA.names, "source_key", "source_shift"]
    rows = manifest.table.to_pylist()
    assert [(row["path"], row["label"], row["split"], row["status"]) for row in rows] == [
        ("test/dog/broken.mp4", "dog", "test", "unreadable"),
        ("test/dog/c.mp4", "dog", "test", "ok"),
        ("train/cat/a.mp4", "cat", "train", "ok"),
        ("train/dog/b.mp4", "dog", "train", "ok"),
    ]
    assert rows[3]["source_key"] == content_key(source / "train/dog/b.mkv")
    assert rows[3]["group"] == "train/dog/b.mkv"
    assert {name: rows[1][name] for name in ("size", "content_key", "audio_end")} == {
        name: getattr(probe(tmp_path / "new/test/dog/c.mp4"), name) for name in ("size", "content_key", "audio_end")
    }
    with open(tmp_path / "new" / "not_prepared.csv", newline="") as file:
        assert [(row["path"], row["status"]) for row in csv.DictReader(file)] == [("test/dog/broken.mp4", "unreadable")]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["files"], summary["written"], summary["kept"]) == (4, 3, 0)
    assert summary["not_prepared"][0]["path"] == "test/dog/broken.mp4"


def test_what_is_done_is_kept_and_what_changed_is_done_again(tool, source, tmp_path, capsys):
    call = [str(source), str(tmp_path / "new"), "--workers", "1", "--json"]

    def summary(*more: str) -> dict:
        assert tool.main([*call, *more]) == 0
        return json.loads(capsys.readouterr().out)

    assert (summary()["written"], len(tree(tmp_path / "new"))) == (3, 4)
    before = tree(tmp_path / "new")
    assert (summary()["kept"], tree(tmp_path / "new")) == (3, before)
    clip(source / "train/dog/b.mkv", pitch=900)
    done = summary()
    assert (done["written"], done["kept"]) == (1, 2)
    changed = {name for name, content in tree(tmp_path / "new").items() if content != before[name]}
    assert changed == {"manifest.parquet", "train/dog/b.mp4"}
    assert summary("--gop", "6")["written"] == 3
    assert read_record(tmp_path / "new/train/dog/b.mp4").settings["gop"] == 6


def listed(source: Path) -> Path:
    """A manifest of parts, with a missing file, a broken one and further columns."""
    (source / "lost.mp4").write_bytes((source / "train/cat/a.mp4").read_bytes())
    (source / "broken.mp4").write_bytes(b"no clip at all" * 50)
    rows = [
        {
            "path": "train/dog/b.mkv",
            "start": 0.5,
            "end": 1.0,
            "group": "g1",
            "label": "x",
            "split": "val",
            "words": "n",
        },
        {"path": "lost.mp4", "words": "h"},
        {"path": "train/dog/b.mkv", "start": 0.0, "end": 0.5, "group": "g1", "words": None},
        {"path": "broken.mp4", "words": "ha"},
        {"path": "train/cat/a.mp4", "label": "y", "words": "s"},
    ]
    table = build_table(source, rows, num_workers=1).append_column("box", pa.array([[1], [2], None, [], [3]]))
    write_manifest(source / "manifest.parquet", table, root=source)
    (source / "lost.mp4").unlink()
    return source / "manifest.parquet"


def test_rows_of_a_manifest_are_carried_over(tool, source, tmp_path, capsys):
    before = read_manifest(listed(source)).table
    assert tool.main([str(source), str(tmp_path / "new"), "--workers", "1"]) == 1
    assert "lost.mp4: the file does not exist" in capsys.readouterr().out
    after = read_manifest(tmp_path / "new" / "manifest.parquet").table
    for name in ("start", "end", "group", "label", "split", "words", "box"):
        assert after.column(name).equals(before.column(name)), name
    assert after.column("path").to_pylist() == [
        *("train/dog/b.mp4", "lost.mp4", "train/dog/b.mp4", "broken.mp4", "train/cat/a.mp4")
    ]
    assert after.column("status").to_pylist() == ["ok", "missing", "ok", "unreadable", "ok"]
    assert after.column("reason").to_pylist()[1] == "the file does not exist"
    keys = after.column("source_key").to_pylist()
    assert keys == [key if i != 1 else "" for i, key in enumerate(before.column("content_key").to_pylist())]
    assert not (tmp_path / "new/test").exists()  # only what the manifest names


DEADLY = """
import os, signal
from pathlib import Path
from avssl.media import prepare
from avssl.workers import serve

def answer(job):
    if "deadly" in job["source"]:
        Path(job["target"]).with_name(f".{os.getpid()}.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare._run_job(job)

serve(answer)
"""


def test_a_clip_that_brings_its_worker_down_is_named(tool, source, tmp_path, capsys, monkeypatch):
    (tmp_path / "deadly_worker.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr("avssl.data.prepare.MODULE", "deadly_worker")
    (source / "train/cat/deadly.mp4").write_bytes((source / "train/cat/a.mp4").read_bytes())
    assert tool.main([str(source), str(tmp_path / "new"), "--workers", "2", "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["written"] == 3
    assert [(each["path"], each["status"]) for each in summary["not_prepared"]] == [("train/cat/deadly.mp4", "crashed")]
    assert not [name for name in tree(tmp_path / "new") if "partial" in name or "deadly" in name]


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    # a suite that runs in the background of a shell was started with Ctrl-C ignored, which children inherit
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True, **heard
    )


def wait_until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def many(tmp_path) -> Path:
    frames = np.random.default_rng(2).integers(0, 255, (60, 128, 128, 3), dtype=np.uint8)
    first = clip(tmp_path / "many" / "00.mp4", frames=frames, seconds=5).read_bytes()
    for number in range(1, 8):
        (tmp_path / "many" / f"{number:02d}.mp4").write_bytes(first + bytes(number))  # other keys
    return tmp_path / "many"


@pytest.mark.processes
def test_killed_and_started_again_it_does_nothing_twice(many, tmp_path):
    target = tmp_path / "new"
    seen: dict[str, int] = {}

    def finished() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in target.glob("*.mp4")}

    for kill in range(2):
        process = start(many, target, "--workers", 2)
        enough = len(seen) + 2
        wait_until(lambda enough=enough: len(finished()) >= enough and list(target.glob(".*.partial")))
        os.kill(process.pid, signal.SIGKILL)  # the pool alone: its workers must end by themselves
        process.communicate()
        for name, inode in finished().items():
            assert seen.setdefault(name, inode) == inode, f"{name} was made again after kill {kill}"
            assert probe(target / name).status == "ok"
        assert not (target / "manifest.parquet").exists()
    (target / ".00.mp4.partial").write_bytes(b"half")  # of a worker that was killed too
    process = start(many, target, "--workers", 2, "--json")
    summary = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 0
    assert summary["written"] + summary["kept"] == 8
    assert summary["kept"] >= len(seen) > 3
    now = finished()
    assert {name: now[name] for name in seen} == seen
    assert len({(target / name).stat().st_size for name in now}) == 1  # equal frames and audio
    assert sorted(os.listdir(target)) == [*(f"{number:02d}.mp4" for number in range(8)), "manifest.parquet"]


@pytest.mark.processes
def test_interrupted_it_says_how_to_go_on(many, tmp_path):
    process = start(many, tmp_path / "new", "--workers", 2)
    wait_until(lambda: list((tmp_path / "new").glob("*.mp4")))
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    printed = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "the same command continues" in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "new").glob(".*.partial"))


@pytest.mark.processes
def test_two_at_once_in_one_folder_are_refused(many, tmp_path):
    first = start(many, tmp_path / "new", "--workers", 1)
    wait_until(lambda: list((tmp_path / "new").glob(".*.partial")))
    second = start(many, tmp_path / "new", "--workers", 1)
    assert f"process {first.pid} on {socket.gethostname()} writes to" in second.communicate(timeout=20)[1]
    assert second.returncode == 2
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()


def test_a_dry_run_writes_nothing(tool, source, tmp_path, capsys):
    call = [str(source), str(tmp_path / "new"), "--workers", "1"]
    assert tool.main([*call, "--dry-run", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert 0 < expected["todo_seconds"] < 100
    assert tool.main([*call, "--dry-run"]) == 0
    assert "3 clips" in (printed := capsys.readouterr().out)
    assert re.search(r"3 to prepare, about [\d.e-]+ GB in 0:\d\d:\d\d \(h:mm:ss\), 0 prepared before", printed)
    assert not (tmp_path / "new").exists()
    tool.main(call)
    capsys.readouterr()
    copies = sum(path.stat().st_size for path in (tmp_path / "new").rglob("*.mp4"))
    assert expected["todo_bytes"] == pytest.approx(copies, rel=0.1)
    clip(source / "train/dog/b.mkv", pitch=900)
    before = tree(tmp_path / "new")
    assert tool.main([*call, "--dry-run", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["files"], summary["done"], summary["todo"]) == (3, 2, 1)
    assert summary["source_bytes"] == sum(map(len, tree(source).values()))
    assert summary["hours"] == pytest.approx(3 / 3600, rel=0.2)
    assert tree(tmp_path / "new") == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["lost", "new"], "SRC .*lost is not a folder"),
        (["clips", "clips"], "none lies in the other"),
        (["clips", "clips/copies"], "none lies in the other"),
        (["clips", "."], "none lies in the other"),
        (["clips", "file"], "DST .*file is a file"),
        (["empty", "new"], "no clip lies in"),
        (["clips", "new", "--manifest", "lost.parquet"], "lost.parquet does not exist"),
        (["clips", "new", "--manifest", "other.parquet"], "none of the 1 clips of .*other.parquet lies in"),
        (["clips", "new", "--manifest", "outside.parquet"], "paths that leave its root, such as"),
        (["clips", "new", "--short-side", "2"], "short_side=2 must be at least 16"),
        (["clips", "new", "--fps", "-1"], "fps=-1 must be above 0"),
        (["clips", "new", "--workers", "0"], "--workers 0 must be at least 1"),
        (["clips", "new", "--timeout", "0"], "--timeout 0 must be above 0"),
    ],
)
def test_wrong_calls_are_one_sentence(tool, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "clips"):
        (tmp_path / name).mkdir()
    for name in ("file", "clips/a.mp4"):
        (tmp_path / name).touch()
    for name, path in (("other", "nowhere.mp4"), ("outside", "../file")):
        table = join_facts([{"path": path}], {path: asdict(Probe())})
        write_manifest(tmp_path / f"{name}.parquet", table, root=tmp_path)
    assert tool.main(arguments) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert not (tmp_path / "new").exists()
