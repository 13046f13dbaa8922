"""What is fetched comes whole or not at all; the network is made by the test."""

import io
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from avssl.data.recipes.download import DownloadError, fetch_file, fetch_zip

ADDRESS = "https://example.org/set.zip"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    """serve(content) answers every request with it, or raises it."""

    def give(content: bytes | Exception, length: int | None = None) -> None:
        def urlopen(address: str, timeout: float):
            if isinstance(content, Exception):
                raise content
            answer = io.BytesIO(content)
            answer.headers = {"Content-Length": str(len(content) if length is None else length)}
            return answer

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)

    return give


def archive(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return content.getvalue()


def test_a_file_is_fetched_once(serve, tmp_path: Path) -> None:
    serve(b"a,b\n")
    fetch_file(ADDRESS, tmp_path / "lists" / "list.csv")
    serve(AssertionError("asked twice"))
    fetch_file(ADDRESS, tmp_path / "lists" / "list.csv")
    assert (tmp_path / "lists" / "list.csv").read_bytes() == b"a,b\n"


@pytest.mark.parametrize(
    "content, length, message",
    [
        (
            urllib.error.URLError("Name or service not known"),
            None,
            "set.zip cannot be fetched .*not known.*to .*list.csv",
        ),
        (urllib.error.HTTPError(ADDRESS, 404, "Not Found", None, None), None, "cannot be fetched .*404: Not Found"),
        (TimeoutError("timed out"), None, "cannot be fetched .timed out"),
        (ConnectionResetError(104, "Connection reset by peer"), None, "cannot be fetched .*reset by peer"),
        (b"half", 8, "broke off at 4 of 8 bytes: try again"),
    ],
)
def test_without_a_network_nothing_is_left(serve, tmp_path: Path, content, length, message: str) -> None:
    serve(content, length)
    with pytest.raises(DownloadError, match=message):
        fetch_file(ADDRESS, tmp_path / "list.csv")
    assert not list(tmp_path.iterdir())


def test_an_archive_becomes_its_folder(serve, tmp_path: Path) -> None:
    serve(archive(**{"set/a.txt": "a", "set/meta/b.txt": "b"}))
    fetch_zip(ADDRESS, tmp_path / "set")
    assert (tmp_path / "set" / "meta" / "b.txt").read_text() == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("name", ["../a.txt", "set/../../a.txt", "/a.txt", "other/a.txt", "set\\..\\..\\a.txt"])
def test_an_archive_that_leaves_its_folder_is_refused(serve, tmp_path: Path, name: str) -> None:
    serve(archive(**{"set/b.txt": "b", name: "a"}))
    with pytest.raises(DownloadError, match="which lies outside of set: delete it"):
        fetch_zip(ADDRESS, tmp_path / "root" / "set")
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "set.zip"]


def test_a_damaged_archive_is_refused(serve, tmp_path: Path) -> None:
    content = archive(**{"set/a.txt": "some text"})
    for damaged in (content.replace(b"some", b"same", 1), content[:40]):
        serve(damaged)
        with pytest.raises(DownloadError, match=r"is damaged .*: delete it and fetch it again"):
            fetch_zip(ADDRESS, tmp_path / "set")
        assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]
        (tmp_path / "set.zip").unlink()
