"""A file is there whole or as it was before, and a refused write is one sentence."""

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from avssl.files import (
    LockedError,
    Parser,
    WriteError,
    atomic_write,
    cached_folder,
    check_writable,
    did_you_mean,
    digest,
    folder_lock,
    print_result,
)


def test_a_misspelt_path_is_answered_by_the_nearest_name_beside_it(tmp_path: Path) -> None:
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    assert did_you_mean(tmp_path / "run" / "toy" / "last.pt") == f"did you mean {tmp_path / 'runs'}? "
    assert did_you_mean(tmp_path / "runs" / "tyo") == f"did you mean {tmp_path / 'runs' / 'toy'}? "
    assert did_you_mean(tmp_path / "runs" / "mine") == did_you_mean(tmp_path / "runs" / "toy") == ""


def test_new_content_takes_the_place_of_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic_write(tmp_path / "new" / "file") as temporary:
            temporary.write_text(text)
            assert temporary.parent == tmp_path / "new"  # the same file system, or the rename would be a copy
        assert (tmp_path / "new" / "file").read_text() == text
    assert os.listdir(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_write_leaves_the_old_content_only(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    (tmp_path / "file").write_text("old")
    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)):
        interrupted()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "\U0001f3ac" * 63])
def test_names_as_long_as_the_system_allows_can_be_written(tmp_path: Path, name: str) -> None:
    check_writable(tmp_path / name)
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == [name]


def test_temporary_names_cannot_be_foretold_and_follow_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_write(tmp_path / "file") as one, atomic_write(tmp_path / "file") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file").read_text() == "one"  # of the later
    monkeypatch.setattr("secrets.token_hex", lambda num: "0" * 2 * num)  # somebody could
    (tmp_path / "mine").write_text("precious")
    (tmp_path / f".file.{'0' * 16}.partial").symlink_to(tmp_path / "mine")
    for write in (lambda: atomic_write(tmp_path / "file").__enter__(), lambda: check_writable(tmp_path / "file")):
        with pytest.raises(WriteError, match="File exists"):
            write()
    assert (tmp_path / "mine").read_text() == "precious"


def test_devices_and_pipes_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        with pytest.raises(WriteError, match="it is a device or a pipe"):
            check_writable(path)


def test_a_result_is_written_whole(tmp_path: Path) -> None:
    print_result({"a": 1}, "text", to=str(tmp_path / "result.json"))
    with pytest.raises(TypeError):
        print_result({"a": object()}, "text", to=str(tmp_path / "result.json"))
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_paths_of_options_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser()
    parser.add_argument("--out", type=Path)
    parser.add_subparsers().add_parser("sub").add_argument("files", type=Path, nargs="+")
    given = parser.parse_args(["--out=~/x", "sub", "~/a", "b~"])
    assert (given.out, given.files) == (Path("/home/me/x"), [Path("/home/me/a"), Path("b~")])


@pytest.mark.parametrize(
    "number, message",
    [
        (
            errno.ENOSPC,
            r"file cannot be written \(No space left on device\): free space there or choose another folder",
        ),
        (errno.EACCES, r"file cannot be written \(Permission denied\): choose a folder that you may write to"),
        (errno.EFBIG, r"file cannot be written \(File too large\): choose another path"),
        (None, r"file cannot be written \(odd\): choose another path"),
    ],
)
def test_the_sentence_names_path_reason_and_way_out(number: int | None, message: str) -> None:
    error = OSError(number, "not shown") if number else OSError("odd")
    with pytest.raises(WriteError, match=message):
        raise WriteError(Path("runs/file"), error)


def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path / "new") == []
    with pytest.raises(WriteError, match="Is a directory"):
        check_writable(tmp_path / "new")
    with pytest.raises(WriteError, match=r"file/x cannot be written"):
        check_writable(tmp_path / "file" / "x")


def test_a_locked_folder_is_refused_by_the_holders_name(tmp_path: Path) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with folder_lock(tmp_path / "new"):
        with pytest.raises(LockedError, match=f"^{holder} writes to {tmp_path / 'new'}: wait for it or end it$"):
            folder_lock(tmp_path / "new").__enter__()
        with folder_lock(tmp_path / "new", file="other"):
            assert sorted(os.listdir(tmp_path / "new")) == [".lock", ".other.lock"]
            with pytest.raises(LockedError, match=f"{tmp_path / 'new' / 'other'}: wait"):
                folder_lock(tmp_path / "new", file="other").__enter__()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        folder_lock(tmp_path / "file").__enter__()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_a_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder_lock(tmp_path / "new"), atomic_write(tmp_path / "new" / "file") as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path / "new") == ["file"]
    said = f"note: {tmp_path / 'new'} cannot be locked ({os.strerror(number)}): let no other process write there"
    assert capsys.readouterr().err == f"{said}\n"


def test_a_lock_ends_with_its_process_and_leftovers_go_with_the_next(tmp_path: Path) -> None:
    """Its children, such as workers, live on for a while."""
    script = (
        "import os, signal, sys, time\nfrom avssl.files import atomic_write, folder_lock\n"
        f"held = folder_lock({str(tmp_path)!r})\nheld.__enter__()\n"
        "child = os.fork()\nif not child: os.close(1), time.sleep(60), os._exit(0)\n"
        f"begun = atomic_write({str(tmp_path / 'file')!r})\nbegun.__enter__()\n"
        "print(child, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    try:
        os.kill(int(done.stdout), 0)
        assert len(list(tmp_path.glob(".file.*.partial"))) == 1
        with atomic_write(tmp_path / "other") as temporary, folder_lock(tmp_path):
            assert list(tmp_path.glob(".*.partial")) == [temporary]  # which is being written
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(WriteError, match="symbolic links"):
        folder_lock(tmp_path / "shared").__enter__()
    assert (tmp_path / "mine").read_text() == "precious"


def test_one_of_many_fills_a_cached_folder_and_the_others_find_it(tmp_path: Path) -> None:
    filled = []

    def ask(number: int) -> str:
        with cached_folder(tmp_path / "cache" / "key") as begun:
            if begun is not None:
                time.sleep(0.1)
                filled.append(number)
                (begun / "file").write_text(str(number))
        return (tmp_path / "cache" / "key" / "file").read_text()

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(ask, range(8)))
    assert found == {str(number) for number in filled}
    assert len(filled) == 1
    assert os.listdir(tmp_path / "cache") == ["key"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_filling_leaves_the_folder_as_it_was(tmp_path: Path, error: BaseException) -> None:
    def fill(text: str, error: BaseException | None) -> None:
        with cached_folder(tmp_path / "key", is_ready=lambda: False) as begun:
            (begun / text).touch()
            if error is not None:
                raise error

    fill("old", None)
    (tmp_path / ".other.partial").mkdir()  # by a process that was killed
    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)):
        fill("half", error)
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "key")) == (["key"], ["old"])
    fill("new", None)
    assert os.listdir(tmp_path / "key") == ["new"]


def test_digests_are_those_of_the_parts_joined() -> None:
    parts = ["a", 1, b"\xff", memoryview(b"z"), (None, "é")]
    joined = b"a1\xffz" + repr((None, "é")).encode()
    assert digest(*parts) == hashlib.blake2b(joined, digest_size=16).hexdigest()
    assert digest(*parts, num_bytes=6) == hashlib.blake2b(joined, digest_size=6).hexdigest()
    assert digest(*parts, algorithm="sha256") == hashlib.sha256(joined).hexdigest()
