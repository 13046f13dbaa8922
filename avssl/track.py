"""From a manifest to its table of tracks, in processes that may hang or die; and sheets of tracks to look at.

What lives here: the pool, what a stopped run leaves for the next one, the counts, the sheets. What does not: finding
the tracks of a clip (mining/tracking.py), the table (data/tracks.py), the words of the command (tools/track.py).
"""

import collections
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from tqdm import tqdm

from avssl.data.manifest import Manifest
from avssl.data.tracks import EMPTY, Track, Tracks, read_tracks, write_tracks
from avssl.files import WriteError, digest, folder_lock, whole_file
from avssl.media.decode import VideoWindow, read_clip
from avssl.mining.tracking import Options
from avssl.workers import Lost, run_jobs

MODULE = "avssl.mining.tracking"
NOT_READ = "not read: "  # begins the reason of a clip that could not be read; it is tried again by the next call
NO_PICTURE = "no picture"
SHEET_FRAMES, SHEET_TRACKS, SHEET_HEIGHT, LINE = 8, 10, 150, 18  # frames of a row, rows of a sheet; pixels


def track_manifest(
    manifest: Manifest, out: Path, options: Options, *, split: str | None, num_workers: int, timeout_seconds: float
) -> dict[str, Any]:
    """Find the tracks of all clips that are not known yet, with a progress bar, and write the table.

    Clips known from a call before with the same manifest and options, finished or stopped, stay as they are.

    Args:
        manifest: of the clips.
        out: the table; what a stopped call found is kept beside it.
        options: how clips are searched.
        split: whose clips are meant; None = all.
        num_workers: processes.
        timeout_seconds: per clip.

    Returns:
        clips, kept (of them, from a call before), with_track, tracks; without {reason: clips}; not_read: path and
        reason of each clip that could not be read.

    Raises:
        TracksError: `out` is of another manifest or no table of tracks.
        LockedError: another process writes it.
        ValueError: the split has no clips.
        WriteError: `out` or the file beside it cannot be written.
    """
    mine = np.ones(len(manifest), bool) if split is None else manifest.column("split") == split
    if not mine.any():
        raise ValueError(f"the manifest has no clips of split={split}: name another, or none for all")
    ids = np.flatnonzero(mine).tolist()
    with _journal(out, manifest.hash, options) as journal:
        answers = _known(out, manifest.hash, options) | _read_journal(journal)
        kept = sum(id in answers for id in ids)
        for id, answer in _find(
            manifest, [id for id in ids if id not in answers], options, num_workers, timeout_seconds
        ):
            answers[id] = answer
            if not answer["reason"].startswith(NOT_READ):
                print(json.dumps([id, answer]), file=journal, flush=True)
        rows = [row for id, answer in answers.items() for row in _rows(id, answer)]
        write_tracks(out, rows, manifest_hash=manifest.hash, options=asdict(options))
        os.unlink(journal.name)
    reasons = {id: answers[id]["reason"] for id in ids if answers[id]["reason"]}
    unread = {id: reason for id, reason in reasons.items() if reason.startswith(NOT_READ)}
    return {
        "out": str(out),
        "clips": len(ids),
        "kept": kept,
        "with_track": len(ids) - len(reasons),
        "tracks": sum(len(answers[id]["tracks"]) for id in ids),
        "without": dict(
            collections.Counter(reason for id, reason in reasons.items() if id not in unread).most_common()
        ),
        "not_read": [
            {"path": manifest.column("path")[id], "reason": reason.removeprefix(NOT_READ)}
            for id, reason in unread.items()
        ],
    }


def _find(
    manifest: Manifest, ids: list[int], options: Options, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (id, {tracks, reason}) as they come."""
    jobs, bounds = {}, manifest.bounds("video")
    for id, row in zip(ids, manifest.table.take(np.array(ids, np.int64)).to_pylist(), strict=True):
        if row["status"] == "ok":
            start = float(np.nan_to_num(bounds[id, 0]))
            end = float(np.nan_to_num(bounds[id, 1], nan=start + options.max_seconds))
            jobs[id] = {
                "path": str(manifest.root / row["path"]),
                "start": start,
                "end": end,
                "size": [row["height"], row["width"]],
                "options": asdict(options),
            }
        elif row["status"] == "no_video":
            yield id, {"tracks": [], "reason": NO_PICTURE}
        else:
            yield id, {"tracks": [], "reason": f"{NOT_READ}{row['status']}: {row['reason']}"}
    order = list(jobs)
    found = run_jobs(MODULE, list(jobs.values()), num_workers=num_workers, timeout_seconds=timeout_seconds)
    with contextlib.closing(found) as answers:
        for i, answer in tqdm(answers, total=len(jobs), desc="tracking", unit="clip"):
            if isinstance(answer, Lost):
                answer = {"unread": f"{answer.status}: {answer.reason}"}
            if "unread" in answer:
                answer = {"tracks": [], "reason": NOT_READ + answer["unread"]}
            yield order[i], answer


def _rows(id: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one clip in the table."""
    if not answer["tracks"]:
        return [EMPTY | {"id": id, "reason": answer["reason"]}]
    return [track | {"id": id, "track": number, "reason": None} for number, track in enumerate(answer["tracks"])]


# ---- what a call leaves for the next one


@contextlib.contextmanager
def _journal(out: Path, manifest_hash: str, options: Options) -> Iterator[TextIO]:
    """The file beside `out` with a line for each clip that is done, open for reading and appending by this call alone.

    Its name tells manifest and options, so that a call with others neither uses nor harms it.
    """
    key = digest(json.dumps([manifest_hash, asdict(options)]), num_bytes=6)
    path = out.with_name(f".{out.name}.{key}.jsonl")
    with folder_lock(out.parent, file=out.name):
        try:
            path.touch()
        except OSError as error:
            raise WriteError(path, error) from error
        with open(path, "a+", encoding="utf-8") as file:
            yield file


def _read_journal(journal: TextIO) -> dict[int, dict[str, Any]]:
    """{id: {tracks, reason}}; a line that was cut off is passed over, and what follows begins a new one."""
    journal.seek(0)
    text = journal.read()
    if text and not text.endswith("\n"):
        print(file=journal, flush=True)
    answers = {}
    for line in text.splitlines():
        try:
            id, answer = json.loads(line)
        except ValueError:
            continue
        answers[id] = answer
    return answers


def _known(out: Path, manifest_hash: str, options: Options) -> dict[int, dict[str, Any]]:
    """{id: {tracks, reason}} of the table of a call before, if it had the same options."""
    if not out.exists():
        return {}
    table = read_tracks(out, manifest_hash=manifest_hash)
    if table.options != asdict(options):
        return {}
    without = {
        id: {"tracks": [], "reason": text} for id, text in table.reasons.items() if not text.startswith(NOT_READ)
    }
    names = ("times", "boxes", "confidence")
    return without | {
        id: {
            "tracks": [{name: getattr(track, name).tolist() for name in names} for track in table.of(id)],
            "reason": "",
        }
        for id in np.unique(table.ids).tolist()
    }


# ---- sheets


def write_sheets(out: Path, manifest: Manifest, tracks: Tracks, *, num: int) -> list[Path]:
    """Write pictures beside the table `out` on which a person sees `num` of its tracks, evenly spread over it: a row
    per track, frames with box, second and confidence.

    Raises:
        DecodeError: a clip cannot be read any more.
        WriteError: a picture cannot be written.
    """
    every = [(id, track) for id in np.unique(tracks.ids).tolist() for track in tracks.of(id)]
    chosen = [every[i] for i in sorted({round(i) for i in np.linspace(0, len(every) - 1, min(num, len(every)))})]
    paths = []
    for first in range(0, len(chosen), SHEET_TRACKS):
        rows = [_sheet_row(manifest, id, track) for id, track in chosen[first : first + SHEET_TRACKS]]
        width = max(row.shape[1] for row in rows)
        sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
        path = out.with_name(f"{out.stem}_sheet_{len(paths)}.png")
        with whole_file(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
        paths.append(path)
    return paths


def _sheet_row(manifest: Manifest, id: int, track: Track) -> np.ndarray:
    """Some frames of a track side by side, (H, W, 3) RGB, below a line that names it."""
    facts = manifest.table.slice(id, 1).to_pylist()[0]
    size = np.array([SHEET_HEIGHT, round(SHEET_HEIGHT * facts["width"] / facts["height"])])
    numbers = np.unique(np.linspace(0, len(track.times) - 1, SHEET_FRAMES).round().astype(int))
    windows = [VideoWindow(track.times[i], 1.0, 1.0, size=tuple(size.tolist())) for i in numbers]
    frames, _ = read_clip(manifest.path(id), video=windows)
    pictures = []
    for i, frame in zip(numbers, frames, strict=True):
        picture = np.ascontiguousarray(frame.data[0])
        top, left, bottom, right = (
            np.rint(np.concatenate([track.boxes[i, :2], track.boxes[i, :2] + track.boxes[i, 2:]]) * np.tile(size, 2))
            .astype(int)
            .tolist()
        )
        cv2.rectangle(picture, (left, top), (right, bottom), (255, 255, 0), 2)
        pictures.append(np.pad(picture, ((LINE, 4), (0, 4), (0, 0))))
        _write(pictures[-1], f"{track.times[i]:.2f}s {track.confidence[i]:.2f}")
    row = np.pad(np.concatenate(pictures, axis=1), ((LINE, 0), (0, 0), (0, 0)))
    _write(row, f"{id}, track {track.number}: {facts['path']}")
    return row


def _write(picture: np.ndarray, text: str) -> None:
    cv2.putText(picture, text, (2, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
