"""The folder of previews: made once, bounded, and unharmed by bad files, lost workers, threads and other servers."""

import array
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from avssl.browser import previews
from avssl.browser.previews import MODULE, PreviewError, Previews
from avssl.workers import Lost
from tests.support.clips import make_clip, make_sound

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "clip.mp4", 0, 0)
    for number in range(4):
        make_clip(folder / f"{number}.mkv", 0, number)
    make_sound(folder / "sound.wav", 0, 0)
    make_sound(folder / "sound.mp3", 0, 0)
    (folder / "empty.mp4").touch()
    (folder / "broken.mp4").write_text("no clip" * 99)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Previews]:
    """With workers that are started once for several tests."""
    with Previews(tmp_path_factory.mktemp("cache"), num_workers=1) as made:
        yield made


class FakeWorkers:
    """Stands in for the workers: what is made are 1,000 bytes."""

    def __init__(self) -> None:
        self.jobs: list[dict] = []
        self.answer: dict | Lost = {"reason": "", "media_type": None}
        self.seconds = 0.0
        self.busy = self.most_busy = 0

    def ask(self, job: dict) -> dict | Lost:
        self.jobs.append(job)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        time.sleep(self.seconds)
        self.busy -= 1
        if job["target"] is not None and self.answer == {"reason": "", "media_type": None}:
            Path(job["target"]).write_bytes(bytes(1000))
        return self.answer | {"media_type": "video/mp4"} if job["kind"] == "preview" else self.answer


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    fake = FakeWorkers()
    monkeypatch.setattr(previews._Pool, "ask", lambda self, job: fake.ask(job))
    return fake


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# ---- with workers


def test_everything_of_a_clip(shared: Previews, clips: Path) -> None:
    with Image.open(io.BytesIO(shared.poster(clips / "clip.mp4"))) as image:
        assert (image.format, image.size) == ("JPEG", (48, 48))
    with Image.open(io.BytesIO(shared.spectrogram(clips / "clip.mp4"))) as image:
        assert (image.format, image.size) == ("PNG", (256, 64))
    assert shared.media(clips / "clip.mp4") == (clips / "clip.mp4", "video/mp4")
    part, media_type = shared.media(clips / "clip.mp4", (0.2, 0.4))
    assert (part.suffix, media_type) == (".mp4", "video/mp4")
    with av.open(str(part)) as container:
        assert container.duration / av.time_base == pytest.approx(0.2, abs=0.11)
    assert shared.media(clips / "sound.mp3") == (clips / "sound.mp3", "audio/mpeg")
    path, media_type = shared.media(clips / "0.mkv")
    assert (path.suffix, media_type) == (".mp4", "video/mp4")
    assert shared.media(path) == (path, "video/mp4")
    part, _ = shared.media(clips / "0.mkv", (0.2, 0.4))
    assert part != path
    assert part.stat().st_size < path.stat().st_size


def test_sound_alone(shared: Previews, clips: Path, tmp_path: Path) -> None:
    shutil.copy(clips / "sound.wav", tmp_path / "sound.wav")
    data = bytearray((tmp_path / "sound.wav").read_bytes())
    data[20] = 6  # A-law, which browsers need not know
    data[34] = 8
    (tmp_path / "sound.wav").write_bytes(data)
    path, media_type = shared.media(tmp_path / "sound.wav")
    assert (path.suffix, media_type) == (".m4a", "audio/mp4")
    assert shared.media(tmp_path / "sound.wav") == (path, media_type)  # as it was kept
    with pytest.raises(PreviewError, match=r"^sound\.wav: the clip has no video$"):
        shared.poster(tmp_path / "sound.wav")


@pytest.mark.parametrize("kind", ["poster", "spectrogram", "media"])
def test_bad_files_are_told_by_name(shared: Previews, clips: Path, kind: str) -> None:
    for name, reason in {
        "empty.mp4": "the file is empty",
        "broken.mp4": "no media file that can be opened",
        "missing.mp4": "the file does not exist",
        "": "it is a folder",
    }.items():
        with pytest.raises(PreviewError, match=f"^{name or clips.name}: {reason}") as error:
            getattr(shared, kind)(clips / name)
        assert str(clips) not in str(error.value)
    for part in ((2.0, 1.0), (0.0, np.nan)):
        with pytest.raises(PreviewError, match="is not a stretch of time"):
            getattr(shared, kind)(clips / "0.mkv", part)
    assert not [path for path in shared._folder.path.iterdir() if path.name.startswith(".")]


def test_names_that_are_no_text(shared: Previews, clips: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe:clip\n%d.mkv"))
    shutil.copy(clips / "0.mkv", odd)
    assert shared.poster(odd) == shared.poster(clips / "0.mkv")
    assert shared.media(odd)[1] == "video/mp4"
    odd.write_text("broken")
    with pytest.raises(PreviewError) as error:
        shared.poster(odd)
    str(error.value).encode()


def stop(process: subprocess.Popen) -> None:
    """Stop a process, and wait until it has stopped: until then it would take a job out of its pipe."""
    os.kill(process.pid, signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def wait_until_asked(stopped: subprocess.Popen) -> None:
    """Until a job lies in the pipe to a process that does not read."""
    held, since = array.array("i", [0]), time.monotonic()
    while held[0] == 0:
        assert time.monotonic() - since < 60
        time.sleep(0.01)
        fcntl.ioctl(stopped.stdin, termios.FIONREAD, held)


def test_a_worker_that_hangs_holds_up_nothing_else(clips: Path, tmp_path: Path) -> None:
    with Previews(tmp_path, num_workers=1, timeout_seconds=10) as made, ThreadPoolExecutor() as threads:
        made._transcodes.workers[0].module = "tests.support.sleeper"
        hanging = threads.submit(made.media, clips / "1.mkv")
        assert made.poster(clips / "2.mkv")  # while the other hangs
        assert not hanging.done()
        with pytest.raises(PreviewError, match=r"^1\.mkv: not done within 10 seconds"):
            hanging.result()
        with pytest.raises(PreviewError, match="not done within"):  # at once
            made.media(clips / "1.mkv")
        made._transcodes.workers[0].module = MODULE
        assert made.media(clips / "2.mkv")[1] == "video/mp4"


def test_a_worker_that_dies(clips: Path, tmp_path: Path) -> None:
    with Previews(tmp_path, num_workers=1) as made, ThreadPoolExecutor() as threads:
        made.poster(clips / "0.mkv")
        process = made._pictures.workers[0].process
        stop(process)
        lost = threads.submit(made.poster, clips / "1.mkv")
        wait_until_asked(process)
        process.kill()
        with pytest.raises(PreviewError, match=r"^1\.mkv: the worker that had it died"):
            lost.result()
        assert made.poster(clips / "2.mkv")
        made._pictures.workers[0].process.kill()  # between two jobs
        made._pictures.workers[0].process.wait()
        assert made.poster(clips / "3.mkv")


def test_close_gives_up_what_hangs(clips: Path, tmp_path: Path) -> None:
    with Previews(tmp_path, num_workers=1) as made, ThreadPoolExecutor() as threads:
        made.poster(clips / "0.mkv")
        stop(made._pictures.workers[0].process)
        waiting = [threads.submit(made.poster, clips / f"{number}.mkv") for number in (1, 2, 3)]
        wait_until_asked(made._pictures.workers[0].process)
        begin = time.monotonic()
        made.close()
        assert time.monotonic() - begin < 5
        for each in waiting:
            with pytest.raises(PreviewError):
                each.result(timeout=5)
        with pytest.raises(PreviewError, match="about to end"):
            made.poster(clips / "clip.mp4")
        assert made.poster(clips / "0.mkv")  # which is there


# ---- the folder


def test_made_once_for_many_threads(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    workers.seconds = 0.2
    with Previews(tmp_path) as made, ThreadPoolExecutor(40) as threads:
        found = list(threads.map(lambda number: made.poster(clips / f"{number % 4}.mkv"), range(40)))
        assert workers.most_busy > 1  # different ones are made side by side
        list(threads.map(lambda _: made.media(clips / "0.mkv"), range(40)))
    assert found == [bytes(1000)] * 40
    assert sorted(job["kind"] for job in workers.jobs) == ["playable"] + ["poster"] * 4 + ["preview"]
    assert not made._locks


def test_kept_for_the_next_server(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with Previews(tmp_path) as made:
            made.poster(clips / "0.mkv")
            made.poster(clips / "0.mkv", (np.float32(0), np.int64(1)))
            made.spectrogram(clips / "0.mkv")
    assert [(job["kind"], job["part"]) for job in workers.jobs] == [
        ("poster", None),
        ("poster", [0.0, 1.0]),
        ("spectrogram", None),
    ]


def test_a_changed_file_is_looked_at_anew(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    source = tmp_path / "clip.mkv"
    shutil.copy(clips / "0.mkv", source)
    (tmp_path / "link.mkv").symlink_to(source)
    with Previews(tmp_path / "cache") as made:
        for name in ("clip.mkv", "link.mkv", "clip.mkv"):
            made.poster(tmp_path / name)
        assert len(workers.jobs) == 1
        age(source, 50)
        made.poster(source)
        assert len(workers.jobs) == 2
        made.media(source)
        age(source, 40)
        made.media(source)
        assert len(workers.jobs) == 6


def test_failures_are_remembered_until_the_file_changes(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    source = tmp_path / "clip.mkv"
    shutil.copy(clips / "0.mkv", source)
    with Previews(tmp_path / "cache") as made:
        workers.answer = {"reason": "it is bad"}
        for _ in range(3):
            with pytest.raises(PreviewError, match=r"^clip\.mkv: it is bad$"):
                made.poster(source)
        assert len(workers.jobs) == 1
        workers.answer = {"reason": "the disk is full", "again": True}
        for _ in range(3):
            with pytest.raises(PreviewError, match="the disk is full"):
                made.poster(source, (0, 1))
        assert len(workers.jobs) == 4
        age(source, 50)
        workers.answer = {"reason": "", "media_type": None}
        assert made.poster(source)


def test_a_lost_file_is_tried_again_later(
    workers: FakeWorkers, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.answer = Lost("timeout", "not done")
    with Previews(tmp_path) as made:
        for _ in range(2):
            with pytest.raises(PreviewError, match="not done"):
                made.poster(clips / "0.mkv")
        assert len(workers.jobs) == 1
        monkeypatch.setattr(previews, "LOST_SECONDS", 0.0)
        with pytest.raises(PreviewError, match="not done"):
            made.poster(clips / "1.mkv")
        workers.answer = {"reason": "", "media_type": None}
        assert made.poster(clips / "1.mkv")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "NUM_REMEMBERED", 3)
    memory = previews._LruCache()
    for key in "abc":
        memory.put(key, key)
    memory.get("a")
    memory.put("d", "d")
    assert [memory.get(key) for key in "abcd"] == ["a", None, "c", "d"]


def test_least_recently_used_are_removed(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(bytes(9000))  # not ours
    with Previews(tmp_path, max_bytes=4500) as made:
        for number in range(4):
            made.poster(clips / f"{number}.mkv")
            age(entries(tmp_path)[-1], 1000 - number)
        made.poster(clips / "0.mkv")  # used
        made.poster(clips / "clip.mp4")
        assert len(workers.jobs) == 5
        kept = [path for path in tmp_path.iterdir() if path.suffix == ".jpg"]
        assert sum(path.stat().st_size for path in kept) <= 4500
        made.poster(clips / "0.mkv")
        made.poster(clips / "3.mkv")
        assert len(workers.jobs) == 5
        made.poster(clips / "1.mkv")
        assert len(workers.jobs) == 6
    assert (tmp_path / "notes.txt").exists()


def test_what_was_just_used_stays(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    with Previews(tmp_path, max_bytes=1500) as made:
        paths = [made.media(clips / f"{number}.mkv")[0] for number in range(4)]
        assert all(path.exists() for path in paths)
        for path in paths:
            age(path, 100)
        made.media(clips / "1.mkv")
        made.media(clips / "clip.mp4")
        assert [path.exists() for path in paths] == [False, True, False, False]
    for path in entries(tmp_path):
        age(path, 100)
    with Previews(tmp_path, max_bytes=1500):  # also what an earlier run left
        assert len(entries(tmp_path)) == 1


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    names = [f".{'0' * 16}.made", f"..{'1' * 16}.made.ab.partial", f"..{'2' * 16}.made.cd.partial", ".hidden"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        age(tmp_path / name, 5000)
    age(tmp_path / names[2], 5)  # of a server that runs
    with Previews(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_two_servers_on_one_folder(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            for path in tmp_path.glob("*.jpg"):
                path.unlink(missing_ok=True)

    with Previews(tmp_path) as one, Previews(tmp_path) as other, ThreadPoolExecutor(8) as threads:
        threads.submit(remove)
        try:
            asked = [threads.submit(made.poster, clips / f"{i % 4}.mkv") for i in range(200) for made in (one, other)]
            assert {each.result() for each in asked} == {bytes(1000)}
        finally:
            stop.set()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_process_can_be_started(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Previews(tmp_path, num_workers=1) as made:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(PreviewError, match=r"^0\.mkv: no process for it could be started"):
            made.poster(clips / "0.mkv")
        monkeypatch.undo()
        assert made.poster(clips / "0.mkv")


def test_a_folder_that_cannot_be_written(workers: FakeWorkers, clips: Path, tmp_path: Path) -> None:
    with Previews(tmp_path / "cache") as made:
        workers.answer = {"reason": "", "media_type": None, "again": True}  # nothing was written
        with pytest.raises(PreviewError, match="cannot be kept"):
            made.poster(clips / "0.mkv")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Previews(tmp_path / "file")
