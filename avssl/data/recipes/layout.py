"""Clips of a folder, with labels and splits by its layout."""

import os
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from avssl.data.manifest import ManifestError
from avssl.media import shards
from avssl.media.shards import ENDING

VIDEO_NAMES = "mp4 m4v mov qt mkv webm avi divx mpg mpeg m2v vob ts mts m2ts flv f4v wmv asf 3gp 3g2 ogv"
AUDIO_NAMES = "mp3 wav flac m4a m4b aac ogg oga opus mka weba wma aif aiff ac3 amr au mp2 w64 caf"
CLIPS = frozenset(f".{name}" for name in VIDEO_NAMES.split())
SOUNDS = frozenset(f".{name}" for name in AUDIO_NAMES.split())
UNLISTED = "lost+found"  # at the root of many disks, for the administrator alone
SPLITS = frozenset({"train", "val", "validation", "test"})


def find_clips(root: Path, *, endings: frozenset[str] = CLIPS) -> tuple[list[str], list[str]]:
    """Files below a folder without hidden ones, links followed: (clips, other files), sorted, relative to it. Clips in
    tar files are at TAR/NAME, see `avssl.media.shards`.

    Raises:
        ManifestError: a folder or a tar file cannot be listed.
    """
    clips, others = [], []
    above = {os.fspath(root): {os.path.realpath(root)}}  # {folder: where it and all that it lies in really are}
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        shown = (name for name in folders if not name.startswith(".") and name != UNLISTED)
        folders[:] = [name for name in shown if real[name] not in above[folder]]  # else a link that leads back
        above |= {os.path.join(folder, name): above[folder] | {real[name]} for name in folders}
        for name in files:
            if not name.startswith("."):
                path = (Path(folder) / name).relative_to(root).as_posix()
                is_utf8 = path.encode(errors="ignore").decode() == path
                inside = _clips_inside(Path(folder) / name, endings) if is_utf8 and name.endswith(ENDING) else []
                is_clip = is_utf8 and Path(name).suffix.lower() in endings
                clips += [f"{path}/{each}" for each in inside] or [path] * is_clip
                others += [] if inside or is_clip else [path]
    return sorted(clips), sorted(others)


def label_clips(paths: list[str]) -> list[dict[str, Any]]:
    """Rows with label and split by layout; tar files are no classes."""
    parts = [[part for part in PurePosixPath(path).parts if not part.endswith(ENDING)] for path in paths]
    has_splits = bool(parts) and all(len(each) > 1 and each[0] in SPLITS for each in parts)
    rows = []
    for path, each in zip(paths, parts, strict=True):
        folders = each[1:-1] if has_splits else each[:-1]
        split = each[0] if has_splits else None
        rows.append({"path": path, "label": folders[-1] if folders else None, "split": split})
    return rows


def _clips_inside(path: Path, endings: frozenset[str]) -> list[str]:
    try:
        names = [PurePosixPath(name) for name in shards.members(path)]
        return [str(name) for name in names if name.suffix.lower() in endings and not name.name.startswith(".")]
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}, so clips would be missing: mend it or move it away") from error


def _refuse(error: OSError) -> NoReturn:
    raise ManifestError(
        f"folder {error.filename} cannot be listed ({error.strerror}), so its clips would be missing: make it readable "
        "or move it away"
    ) from error
