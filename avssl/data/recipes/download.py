"""Downloads: a file, or a zip archive that is unpacked."""

import http.client
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from avssl.files import atomic_write

SECONDS = 60  # without an answer


class DownloadError(ValueError):
    """Something that cannot be fetched: the message names the address, the reason and the fix."""


def fetch_file(address: str, path: Path) -> None:
    """Fetch one file atomically; an existing one stays.

    Raises:
        DownloadError: no network, no such address, or the connection broke.
        WriteError: the file cannot be written.
    """
    if path.exists():
        return
    print(f"fetching {address}", file=sys.stderr)
    with atomic_write(path) as temporary:
        try:
            with urllib.request.urlopen(address, timeout=SECONDS) as answer, open(temporary, "wb") as file:
                shutil.copyfileobj(answer, file)
                expected = answer.headers.get("Content-Length")
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise DownloadError(f"{address} cannot be fetched ({error}): fetch it by other means to {path}") from error
        if expected is not None and temporary.stat().st_size != int(expected):
            raise DownloadError(f"{address} broke off at {temporary.stat().st_size} of {expected} bytes: try again")


def fetch_zip(address: str, folder: Path) -> None:
    """Fetch an archive of one folder and unpack it as `folder`, atomically; an existing one stays.

    Args:
        address: of a zip file that holds a folder of the same name as `folder`.

    Raises:
        DownloadError: it cannot be fetched, is damaged, or holds a file outside of its folder.
        OSError: it cannot be written.
    """
    if folder.exists():
        return
    archive = folder.with_name(f"{folder.name}.zip")
    fetch_file(address, archive)
    try:
        with zipfile.ZipFile(archive) as file, tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            for name in file.namelist():
                parts = PurePosixPath(name.replace("\\", "/")).parts
                if parts[:1] != (folder.name,) or ".." in parts:
                    raise DownloadError(f"{archive} holds {name!r}, which lies outside of {folder.name}: delete it")
            file.extractall(unpacked)  # it checks each file's CRC
            Path(unpacked, folder.name).replace(folder)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{archive} is damaged ({error}): delete it and fetch it again") from error
    archive.unlink()
