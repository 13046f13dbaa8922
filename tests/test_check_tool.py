"""tools/check.py, called as a user calls it: what it finds, what it writes, and what training makes of it."""

import importlib.util
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

from avssl.data import check
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.data.policy import cases
from avssl.data.quarantine import Entry, add_to_quarantine, read_quarantine
from avssl.training.loop import train
from avssl.workers import Lost, Worker, run_jobs
from tests.support.clips import make_set
from tests.support.noise import FRAMES, clip, remux
from tests.support.numbered import move_stamps
from tests.support.runs import config

pytestmark = pytest.mark.slow
Call = Callable[..., int]


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("called_check", repository / "tools" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tool: ModuleType) -> Call:
    def call(*arguments: object) -> int:
        try:
            return tool.main([*map(str, arguments), "--workers", "1"])
        except SystemExit as stop:  # argparse
            return stop.code

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips, each with one thing the matter, and its manifest; not to be changed by tests."""
    folder = tmp_path_factory.mktemp("check") / "set"
    folder.mkdir()
    clip(folder / "a_good.mp4")
    clip(folder / "b_cut.mkv", gain=0.9)
    content = (folder / "b_cut.mkv").read_bytes()
    (folder / "b_cut.mkv").write_bytes(content[: len(content) // 2])
    remux(folder / "a_good.mp4", folder / "c_again.mkv")
    shutil.copy(folder / "a_good.mp4", folder / "d_copy.mp4")
    clip(folder / "e_silent.mp4", gain=0.0)
    clip(folder / "f_mute.mp4", samples=None)
    clip(folder / "g_late.mp4", gain=0.8, video_start=0.6)
    clip(folder / "h_turned.mp4", gain=0.7, rotation=90)
    clip(folder / "i_short.mp4", gain=0.6, frames=FRAMES[:25], samples=np.full(16000, 0.1, np.float32))
    clip(folder / "j_unequal.mp4", gain=0.5, frames=FRAMES[:80])
    (folder / "k_text.mp4").write_text("words")
    clip(folder / "l_gone.mp4", gain=0.4)
    clip(folder / "m_other.mp4", gain=0.3)
    rows = [{"path": path.name, "split": "train"} for path in sorted(folder.iterdir())]
    rows.insert(1, {"path": "a_good.mp4", "start": 0.0, "end": 2.5, "split": "train"})
    write_manifest(folder / "manifest.parquet", check.build_table(folder, rows, num_workers=1), root=folder)
    (folder / "l_gone.mp4").unlink()
    clip(folder / "m_other.mp4", gain=0.2)
    return folder


EXPECTED = {
    "b_cut.mkv": {"cut_off"},
    "c_again.mkv": {"duplicate"},
    "d_copy.mp4": {"duplicate"},
    "e_silent.mp4": {"silent"},
    "f_mute.mp4": {"no_audio"},
    "g_late.mp4": {"late_start"},
    "h_turned.mp4": {"rotated"},
    "i_short.mp4": {"short"},
    "j_unequal.mp4": {"unequal_length"},
    "k_text.mp4": {"unreadable"},
    "l_gone.mp4": {"unreadable"},
    "m_other.mp4": {"unreadable"},
}


def test_every_finding_is_reported_and_nothing_else(made: Path, call: Call, tmp_path: Path, capsys) -> None:
    before = (made / "manifest.parquet").read_bytes()
    assert call(made / "manifest.parquet", "--json", tmp_path / "report.json") == 1
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["rows"], found["files"]) == (14, 13)
    problems = {entry["path"]: entry for entry in found["problems"]}
    assert {path: set(entry["cases"]) for path, entry in problems.items()} == EXPECTED
    assert found["cases"]["unreadable"] == 3
    assert (problems["l_gone.mp4"]["status"], problems["m_other.mp4"]["status"]) == ("missing", "exchanged")
    assert problems["c_again.mkv"]["duplicate_of"] == "a_good.mp4"
    assert problems["b_cut.mkv"]["rows"] == [2]
    words = capsys.readouterr().out
    assert "13 files decoded, 12 with findings" in words
    assert f"b_cut.mkv: ends at {problems['b_cut.mkv']['cut_off_at']:.2f} s, by its header at 4." in words
    assert "m_other.mp4: exchanged: the file is not the one that the manifest was written from" in words
    assert (made / "manifest.parquet").read_bytes() == before


def test_fixing_writes_the_facts_and_keeps_the_instances(made: Path, call: Call, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "moved"))
    path = folder / "manifest.parquet"
    before = read_manifest(path)
    assert call(path, "--fix-manifest") == 0
    after = read_manifest(path)
    assert after.hash == before.hash
    assert (after.root, after.table.schema.metadata) == (before.root, before.table.schema.metadata)
    assert after.table.column_names == [*before.table.column_names, *check.FINDINGS]
    for name in ("path", "start", "end", "group", "label", "split", "size", "content_key"):
        assert after.column(name).tolist() == pytest.approx(before.column(name).tolist(), nan_ok=True), name
    rows = {row["path"]: row for row in after.table.to_pylist()}
    assert rows["a_good.mp4"]["status"] == "ok"
    assert rows["b_cut.mkv"]["video_end"] == pytest.approx(rows["b_cut.mkv"]["cut_off_at"], abs=0.1)
    assert (rows["l_gone.mp4"]["status"], rows["l_gone.mp4"]["video_end"]) == ("missing", 4.0)
    assert rows["m_other.mp4"]["status"] == "exchanged"
    good = before.column("status") == "ok"
    good &= ~np.isin(before.column("path"), ["l_gone.mp4", "m_other.mp4", "b_cut.mkv"])
    for name in check.TIMES:  # so that the same clips are drawn as before
        assert np.array_equal(after.column(name)[good], before.column(name)[good], equal_nan=True), name
    first = path.read_bytes()
    assert call(path, "--fix-manifest") == 0
    assert pq.read_table(path).equals(after.table)
    assert path.read_bytes() == first


def test_a_clean_set_gives_0_and_the_recorded_root_stays(tmp_path: Path, call: Call, capsys) -> None:
    manifest = make_set(tmp_path / "set", num_train=3, num_test=1, silent=0)
    path = tmp_path / "set" / "manifest.parquet"
    shutil.move(path, tmp_path / "manifest.parquet")
    write_manifest(tmp_path / "manifest.parquet", manifest.table, root=tmp_path / "set")
    shutil.move(tmp_path / "set", tmp_path / "new")
    shutil.move(tmp_path / "manifest.parquet", tmp_path / "new" / "kept.parquet")
    path = tmp_path / "new" / "kept.parquet"
    assert call(path) == 2
    assert "name the right one as root" in capsys.readouterr().err
    recorded = pq.read_schema(path).metadata
    assert call(path, "--root", tmp_path / "new", "--clip-seconds", 1, "--fix-manifest") == 0
    assert pq.read_schema(path).metadata == recorded
    assert call(path, "--root", tmp_path / "new", "--clip-seconds", 2) == 1  # they last 1.2 seconds


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.parquet"], r"none\.parquet does not exist"),
        (["{}", "--timeout", "0"], r"--timeout 0 must be above 0"),
        (["{}", "--clip-seconds", "nan"], r"--clip-seconds nan must be above 0"),
        (["{}", "--json", "/dev/null/x"], r"/dev/null/x cannot be written"),
    ],
)
def test_wrong_calls_give_2(made: Path, call: Call, capsys, arguments: list[str], message: str) -> None:
    assert call(*(argument.format(made / "manifest.parquet") for argument in arguments)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_file_that_hangs_or_kills_is_named_and_stops_nothing(
    tmp_path: Path, repository: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_set(tmp_path / "set", num_train=4, num_test=1, silent=0)
    hangs, kills = (str(manifest.column("path")[i]) for i in (0, 1))
    (tmp_path / "hostile.py").write_text(
        "import os, time\n"
        "from dataclasses import asdict\n"
        "from avssl.media.inspect import inspect\n"
        "from avssl.workers import serve\n"
        "def answer(path):\n"
        f"    if path.endswith({kills!r}): os._exit(9)\n"
        f"    if path.endswith({hangs!r}): time.sleep(60)\n"
        "    return asdict(inspect(path))\n"
        "serve(answer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    monkeypatch.setattr(check, "run_jobs", lambda module, jobs, **options: run_jobs("hostile", jobs, **options))
    path = tmp_path / "set" / "manifest.parquet"
    arguments = [path, "--clip-seconds", 1, "--timeout", 2, "--fix-manifest", "--json", tmp_path / "report.json"]
    assert call(*arguments) == 0
    problems = json.loads((tmp_path / "report.json").read_text())["problems"]
    assert {entry["path"]: entry["status"] for entry in problems} == {hangs: "timeout", kills: "crashed"}
    after = read_manifest(path)
    assert after.hash == manifest.hash
    assert sorted(after.column("status")) == ["crashed", "ok", "ok", "ok", "timeout"]
    assert after.column("video_end").tolist() == manifest.column("video_end").tolist()


def test_a_stopped_worker_is_not_late(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped with the whole call (Ctrl-Z, a suspended job), or alone by a debugger."""
    (tmp_path / "slow.py").write_text("import time\nfrom avssl.workers import serve\nserve(time.sleep)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    with Worker("slow", 3) as worker, ThreadPoolExecutor(1) as threads:
        assert worker.ask(0) is None
        asked = threads.submit(worker.ask, 1)
        time.sleep(0.5)
        os.kill(worker.process.pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert asked.result() is None
        assert worker.ask(60) == Lost("timeout", "not done within 3 seconds")


def test_quarantined_files_that_decode_are_released(made: Path, tmp_path: Path, call: Call, capsys) -> None:
    path = Path(shutil.copytree(made, tmp_path / "set")) / "manifest.parquet"
    manifest = read_manifest(path)
    sound = next(i for i, status in enumerate(manifest.column("status")) if status == "ok")
    broken = next(i for i, status in enumerate(manifest.column("status")) if status == "unreadable")
    names = [str(manifest.column("path")[i]) for i in (sound, broken)]
    for i, name in zip((sound, broken), names, strict=True):
        add_to_quarantine(path, Entry(name, str(manifest.column("content_key")[i]), "a worker died"))
    assert call(path, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["cases"]["quarantined"] == 2
    assert call(path, "--fix-manifest") == 0
    assert f"released from quarantine, it decodes: {names[0]}" in capsys.readouterr().err
    assert [entry.path for entry in read_quarantine(path)] == names[1:]
    assert read_manifest(path).column("status")[[sound, broken]].tolist() == ["ok", "quarantined"]


def test_another_manifest_is_left_alone(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made, tmp_path / "set")) / "manifest.parquet"
    manifest = read_manifest(path)
    found = check.inspect_manifest(manifest, num_workers=1, timeout_seconds=60)
    write_manifest(path, manifest.table.slice(1), root=manifest.root)
    with pytest.raises(check.ManifestError, match=r"was exchanged while its files were checked: check it again"):
        check.fix_manifest(path, manifest, found)


def test_training_does_as_the_policy_says(tmp_path: Path, call: Call, capsys) -> None:
    manifest: Manifest = make_set(tmp_path / "set", num_train=8, num_test=1)
    paths = manifest.column("path")[manifest.column("split") == "train"]
    (tmp_path / "set" / paths[0]).write_bytes((tmp_path / "set" / paths[1]).read_bytes())
    rows = manifest.table.select(["path", "label", "split"]).to_pylist()
    write_manifest(tmp_path / "set" / "manifest.parquet", check.build_table(manifest.root, rows), root=manifest.root)
    assert call(tmp_path / "set" / "manifest.parquet", "--clip-seconds", 1, "--fix-manifest") == 0
    capsys.readouterr()
    assert not train(config(manifest, tmp_path / "run", "run.max_steps=1", "data.policy.no_audio=skip"))
    assert "left out: 1 no_audio, 1 duplicate; trained on: none" in capsys.readouterr().err


def test_holes_and_jumps_are_findings(tmp_path: Path, call: Call, capsys) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    clip(tmp_path / "whole.mkv")
    move_stamps(tmp_path / "whole.mkv", folder / "paused.mkv", lambda kind, number, second: second + 60 * (second > 2))
    part = clip(tmp_path / "part.ts", rate=48000).read_bytes()
    (folder / "joined.ts").write_bytes(part + part)
    rows = [{"path": name, "split": "train"} for name in ("joined.ts", "paused.mkv")]
    path = folder / "manifest.parquet"
    write_manifest(path, check.build_table(folder, rows, num_workers=1), root=folder)
    before = read_manifest(path)
    assert list(before.holes) == [1]  # training goes around them from the first manifest on
    assert before.column("duration")[0] == pytest.approx(8, abs=0.2)
    assert call(path, "--fix-manifest") == 0
    words = capsys.readouterr().out
    assert re.search(r"joined\.ts: times begin anew at [45]\.\d\d s, read on one clock", words)
    assert re.search(r"paused\.mkv: nothing from 2\.\d\d to 62\.\d\d s", words)
    after = read_manifest(path)
    assert list(after.holes) == [1]
    found = cases(after, 1.0)
    assert found["holes"].tolist() == [False, True]
    assert found["jumps"].tolist() == [True, False]
