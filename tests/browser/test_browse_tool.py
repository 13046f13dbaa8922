"""tools/browse.py as a user starts it."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clips import make_clip
from tests.support.stores import random_vectors, write

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def browser(*arguments: object, **environment: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """A started browser and the address that it printed."""
    command = [sys.executable, str(ROOT / "tools" / "browse.py"), *map(str, arguments)]
    settings = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=20)


def get(address: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    for number in range(3):
        make_clip(tmp_path / "clips" / f"{number}.mp4", number, number)
    write(tmp_path / "e", random_vectors(3, 4), root=tmp_path)
    return tmp_path / "e"


def test_a_program_serves_the_page_and_goes_on_after_ctrl_c(embeddings: Path) -> None:
    program = "import avssl, signal, sys\nbefore = signal.getsignal(signal.SIGINT)\n"
    program += "avssl.browse(sys.argv[1], open_page=False)\n"
    program += "print('goes on', signal.getsignal(signal.SIGINT) is before)"
    command, settings = [sys.executable, "-c", program, str(embeddings)], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as process:
        address = process.stdout.readline().strip()
        assert get(f"{address}api/about")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "goes on True\n"
        assert process.returncode == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(embeddings: Path, tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "temporary").mkdir()
    with browser(embeddings, "--port", 0, TMPDIR=tmp_path / "temporary") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        status, page = get(address)
        assert (status, b"<script" in page) == (200, True)
        assert json.loads(get(f"{address}api/about")[1])["stores"][0]["clips"] == 3
        assert get(f"{address}media/1")[1] == (embeddings.parent / "clips" / "1.mp4").read_bytes()
        assert get(f"{address}poster/1")[0] == 200
        assert get(f"{address}api/about", Host="evil.example")[0] == 421
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
        assert children  # workers, which must not stay behind
        assert list((tmp_path / "temporary").iterdir())
        process.send_signal(how)
        assert process.wait(20) == 0
        assert not list((tmp_path / "temporary").iterdir())
        assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert list((embeddings / "browser" / "previews").glob("*.jpg"))


def test_a_request_that_does_not_end_is_answered_when_it_is_stopped(embeddings: Path) -> None:
    with browser(embeddings, "--port", 0) as (process, address):
        with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(address).port), timeout=20) as visitor:
            head = "POST /api/uploads?name=a.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"
            visitor.sendall(head.encode() + b"the beginning")
            assert get(f"{address}api/about")[0] == 200
            process.send_signal(signal.SIGINT)
            answer = b"".join(iter(lambda: visitor.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server was stopped" in answer
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


SLOW_UMAP = """
import os, pathlib, time
class UMAP:
    def __init__(self, **settings): pass
    def fit_transform(self, vectors):
        pathlib.Path(os.environ["DRAWING"]).touch()
        time.sleep(1000)
"""


def test_a_map_that_takes_long_holds_up_nothing(tmp_path: Path) -> None:
    """Neither other questions, however many wait for the map, nor the end."""
    write(tmp_path / "e", random_vectors(40, 4), root=tmp_path)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "umap.py").write_text(SLOW_UMAP)
    drawing, before = tmp_path / "drawing", os.environ.get("PYTHONPATH", "")
    with browser(tmp_path / "e", "--port", 0, PYTHONPATH=f"{tmp_path / 'fake'}:{before}", DRAWING=drawing) as (
        process,
        address,
    ):
        waiting = []
        for _ in range(60):
            waiting.append(socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(address).port), timeout=30))
            waiting[-1].sendall(b"GET /api/map?by=umap HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while not drawing.exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert get(f"{address}api/map")[0] == 200
        assert get(f"{address}api/clips")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert all(visitor.recv(4096).startswith(b"HTTP/1.1 503") for visitor in waiting)
        for visitor in waiting:
            visitor.close()


def test_bound_elsewhere_it_asks_for_a_token(embeddings: Path) -> None:
    with browser(embeddings, "--port", 0, "--host", "0.0.0.0") as (_, address):
        plain, token = address.split("?token=")
        plain = f"http://127.0.0.1:{plain.rstrip('/').rsplit(':', 1)[1]}/"
        assert len(token) >= 32
        for path in ("", "api/about", "media/1", "static/app.js"):
            assert get(plain + path)[0] == 401
        assert get(f"{plain}api/about", Authorization=f"Bearer {token}")[0] == 200


def test_embeddings_that_cannot_be_written_to_are_browsed_all_the_same(embeddings: Path) -> None:
    (embeddings / "browser").write_text("in the way")
    with browser(embeddings, "--port", 0) as (process, address):
        assert get(f"{address}spectrogram/1")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert "kept for this time only" in said


def test_wrong_calls(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    specification = importlib.util.spec_from_file_location("browse", ROOT / "tools" / "browse.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)

    def refused(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tools/browse.py", *map(str, arguments)])
        assert tool.main() == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    assert "holds no embeddings (no meta.json): make them with avssl embed" in refused(tmp_path / "nothing")
    assert "give one, or two" in refused(embeddings, embeddings, embeddings)
    write(tmp_path / "f", random_vectors(3, 4), root=tmp_path, manifest_hash="another")
    assert "is given twice" in refused(embeddings, embeddings.parent / "e" / ".." / "e")
    assert "are of different manifests" in refused(embeddings, tmp_path / "f")
    assert "name the right one with --root" in refused(embeddings, "--root", tmp_path / "gone")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "--port 0 finds a free one" in refused(embeddings, "--port", port)
    assert "cannot be listened on" in refused(embeddings, "--port", 70_000)
    assert "cannot be listened on" in refused(embeddings, "--host", "no.such.host.invalid")


def test_clips_that_moved_are_found_by_root(embeddings: Path, tmp_path: Path) -> None:
    os.rename(tmp_path / "clips", tmp_path / "moved")
    (tmp_path / "new").mkdir()
    os.rename(tmp_path / "moved", tmp_path / "new" / "clips")
    with browser(embeddings, "--port", 0, "--root", tmp_path / "new") as (_, address):
        assert get(f"{address}media/2")[0] == 200


def test_many_visitors_at_once(embeddings: Path) -> None:
    """50 at a time; for a minute and a million clips: tools/benchmarks/search.py."""
    failed: list[tuple[str, int | str]] = []
    with browser(embeddings, "--port", 0) as (process, address):

        def visit(number: int) -> None:
            for path in (
                "",
                "api/clips",
                f"api/neighbors?query={number % 3}&by=v2a",
                f"poster/{number % 3}",
                "media/2",
            ):
                try:
                    status, _ = get(address + path)
                except OSError as error:
                    status = str(error)
                if status != 200:
                    failed.append((path, status))

        visit(0)
        held = len(os.listdir(f"/proc/{process.pid}/fd"))
        threads = [threading.Thread(target=visit, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert get(f"{address}api/about")[0] == 200
        assert len(os.listdir(f"/proc/{process.pid}/fd")) <= held + 8  # pipes of another worker, a thread's event
