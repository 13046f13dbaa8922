"""Choice of the decoding library: PyAV is the default; others (backends/) are imported only when chosen by name."""

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import av

from avssl.media.reader import LIMITS, Limits, Reader, Source

Decoder = Literal["pyav", "decord", "torchcodec"]
INSTALL_HINTS = {
    "decord": "pip install decord, which exists for Linux on x86-64",
    "torchcodec": "pip install 'avssl[torchcodec]', and FFmpeg's shared libraries from the system (Debian and Ubuntu: "
    "apt-get install ffmpeg)",
}


class DecoderMissingError(ImportError):
    """A decoder that cannot be used here: the message says how to install it."""


def open_source(path: str | Path, *, decoder: Decoder = "pyav", limits: Limits = LIMITS) -> Source:
    """Open a file.

    Raises:
        DecodeError: as `Reader`.
        DecoderMissingError: the decoder is not installed, or does not load.
        ValueError: there is no such decoder.
    """
    return _reader_class(decoder)(path, limits=limits)


def describe(decoder: Decoder) -> dict[str, str]:
    """Name, version and FFmpeg version of a decoder. Raises as `open_source`."""
    if decoder == "pyav":
        return {"name": decoder, "version": av.__version__, "ffmpeg": av.ffmpeg_version_info}
    _reader_class(decoder)
    module = _load(decoder)
    ffmpeg = _ffmpeg_of_decord(module) if decoder == "decord" else _ffmpeg_of_torchcodec()
    return {"name": decoder, "version": module.__version__, "ffmpeg": ffmpeg}


def format_decoder(described: dict[str, str]) -> str:
    """The result of `describe` as text: pyav 18.1.0 (FFmpeg 8.1.2)."""
    return f"{described['name']} {described['version']} (FFmpeg {described['ffmpeg']})"


def _reader_class(decoder: Decoder) -> Callable[..., Source]:
    match decoder:
        case "pyav":
            return Reader
        case "decord":
            _load(decoder)
            from avssl.media.backends.decord_reader import DecordReader

            return DecordReader
        case "torchcodec":
            _load(decoder)
            from avssl.media.backends.torchcodec_reader import TorchcodecReader

            return TorchcodecReader
    raise ValueError(f"decoder={decoder!r} must be pyav, decord or torchcodec")


def _load(decoder: str) -> ModuleType:
    try:
        return importlib.import_module(decoder)
    # torchcodec raises RuntimeError where it finds no FFmpeg or another torch than it was built for
    except (ImportError, RuntimeError, OSError) as error:
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else "does not load"
        raise DecoderMissingError(
            f"decoder {decoder} {problem} here: {INSTALL_HINTS[decoder]}; or take pyav, the default"
        ) from error


def _ffmpeg_of_decord(module: ModuleType) -> str:
    """By the FFmpeg libraries that the wheel of decord carries; a local build has none."""
    library = next(Path(module.__file__).parents[1].glob("decord.libs/libavutil*"), None)
    if library is None:
        return "unknown"
    version = ctypes.CDLL(str(library)).av_version_info
    version.restype = ctypes.c_char_p
    return version().decode()


def _ffmpeg_of_torchcodec() -> str:
    from torchcodec._core import get_ffmpeg_library_versions  # not public; the number of the major version is

    return str(get_ffmpeg_library_versions()["ffmpeg_version"])
