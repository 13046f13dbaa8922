"""A file is there whole or as it was before, and a refused write is one sentence."""

import errno
import os
from pathlib import Path

import pytest

from avssl.files import WriteError, check_writable, whole_file


def test_new_content_takes_the_place_of_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_file(tmp_path / "new" / "file") as temporary:
            temporary.write_text(text)
            assert temporary.parent == tmp_path / "new"  # the same file system, or the rename would be a copy
        assert (tmp_path / "new" / "file").read_text() == text
    assert os.listdir(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_write_leaves_the_old_content_only(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with whole_file(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    (tmp_path / "file").write_text("old")
    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)):
        interrupted()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


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
