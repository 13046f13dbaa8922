"""From a manifest to its table of tracks, in worker processes that may hang or die."""

import collections
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from avssl.data.manifest import Manifest
from avssl.data.tracks import EMPTY, read_tracks, write_tracks
from avssl.files import WriteError, digest, folder_lock, open_no_link
from avssl.workers import Lost, run_jobs

MODULE = "avssl.mining.tracking"  # of the workers
NOT_READ = "not read: "  # begins the reason of a clip that could not be read; the next call tries it again


def track_manifest(
    manifest: Manifest,
    out: Path,
    options: Mapping[str, Any],
    *,
    split: str | None,
    num_workers: int,
    timeout_seconds: float,
) -> dict[str, Any]:
    """Find the tracks of all clips, with a progress bar, and write the table. Results of an earlier call with the same
    manifest and options, finished or stopped, are reused.

    Args:
        out: the table; the results of a stopped call are kept beside it.
        options: fields of mining.tracking.Options.
        split: of the manifest; None = all.
        timeout_seconds: per clip.

    Returns:
        clips, kept (from an earlier call), with_track, tracks; without {reason: clips}; not_read: path and reason of
        each clip that could not be read.

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
        answers = _read_earlier(out, manifest.hash, options) | _read_journal(journal)
        kept = sum(id in answers for id in ids)
        for id, answer in _find(
            manifest, [id for id in ids if id not in answers], options, num_workers, timeout_seconds
        ):
            answers[id] = answer
            if not answer["reason"].startswith(NOT_READ):
                _note(journal, json.dumps([id, answer]))
        rows = [row for id, answer in answers.items() for row in _rows(id, answer)]
        write_tracks(out, rows, manifest_hash=manifest.hash, options=options)
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
    manifest: Manifest, ids: list[int], options: Mapping[str, Any], num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (id, {tracks, reason}) as they come."""
    jobs, bounds = {}, manifest.bounds("video")
    for id, row in zip(ids, manifest.table.take(np.array(ids, np.int64)).to_pylist(), strict=True):
        if row["status"] == "ok":
            start = float(np.nan_to_num(bounds[id, 0]))
            end = float(np.nan_to_num(bounds[id, 1], nan=start + options["max_seconds"]))
            jobs[id] = {
                "path": str(manifest.root / row["path"]),
                "start": start,
                "end": end,
                "size": [row["height"], row["width"]],
                "options": options,
            }
        elif row["status"] == "no_video":
            yield id, {"tracks": [], "reason": "no video"}
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


@contextlib.contextmanager
def _journal(out: Path, manifest_hash: str, options: Mapping[str, Any]) -> Iterator[TextIO]:
    """The file beside `out` with a line per finished clip, locked; its name is a digest of manifest and options."""
    key = digest(json.dumps([manifest_hash, options]), num_bytes=6)
    path = out.with_name(f".{out.name}.{key}.jsonl")
    with folder_lock(out.parent, file=out.name):
        try:
            os.close(open_no_link(path, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            raise WriteError(path, error) from error
        with open(path, "a+", encoding="utf-8", opener=open_no_link) as file:
            yield file


def _note(journal: TextIO, line: str) -> None:
    try:
        os.write(journal.fileno(), f"{line}\n".encode())
    except OSError as error:
        raise WriteError(Path(journal.name), error) from error


def _read_journal(journal: TextIO) -> dict[int, dict[str, Any]]:
    """{id: {tracks, reason}}; a truncated last line is ignored and ended."""
    journal.seek(0)
    text = journal.read()
    if text and not text.endswith("\n"):
        _note(journal, "")
    answers = {}
    for line in text.splitlines():
        try:
            id, answer = json.loads(line)
        except ValueError:
            continue
        answers[id] = answer
    return answers


def _read_earlier(out: Path, manifest_hash: str, options: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """{id: {tracks, reason}} of an earlier table with the same options."""
    if not out.exists():
        return {}
    table = read_tracks(out, manifest_hash=manifest_hash)
    if table.options != options:
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
