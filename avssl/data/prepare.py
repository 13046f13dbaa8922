"""From a folder of clips to a folder of training copies and its manifest."""

import collections
import contextlib
import csv
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from avssl.data.check import FACTS, join_facts
from avssl.data.manifest import HOLES, SCHEMA, read_manifest, write_manifest
from avssl.data.recipes.layout import find_clips, label_clips
from avssl.files import atomic_write, did_you_mean, digest, folder_lock
from avssl.media import shards
from avssl.media.prepare import EXTENSION, Prepared, Settings
from avssl.media.probe import Probe
from avssl.workers import Lost, run_jobs

MODULE = "avssl.media.prepare"
MANIFEST, FAILURES = "manifest.parquet", "not_prepared.csv"
KNOWN = tuple(name for name in SCHEMA.names if name not in FACTS)  # columns that are not facts of the file
GIGABYTE = 1e9
MEASURED = 4  # clips that tell size and time of all
MAX_NAME_BYTES = 255  # of most file systems


class PrepareError(ValueError):
    """Work that cannot begin or continue: the message says why, and the fix."""


@dataclass(frozen=True)
class Listing:
    """Rows to carry over: `rows` with the columns of KNOWN, `further` other columns, `clips` each file once."""

    rows: list[dict[str, Any]]
    further: dict[str, pa.ChunkedArray]
    clips: list[str]


def list_clips(source: Path, manifest: Path | None = None) -> Listing:
    """Rows of the manifest, or of SOURCE/manifest.parquet, or of the folder as avssl scan would list it.

    Raises:
        PrepareError: no clip there, or none where the manifest says.
        ManifestError: the manifest cannot be read, or names a path that leaves the folder.
    """
    if manifest is None and (source / MANIFEST).is_file():
        manifest = source / MANIFEST
    if manifest is None:
        rows = label_clips(find_clips(source)[0])
        rows = [row | {"start": None, "end": None, "group": row["path"]} for row in rows]
        if not rows:
            raise PrepareError(f"no clip lies in {source}: is SRC right?")
        return Listing(rows, {}, [row["path"] for row in rows])
    table = read_manifest(manifest, root=source).table
    rows = table.select(KNOWN).to_pylist()
    clips = sorted({row["path"] for row in rows})
    if not any(shards.is_file(source / path) for path in clips):
        raise PrepareError(
            f"none of the {len(clips)} clips of {manifest} lies in {source}: SRC must be the folder that its paths are "
            "relative to"
        )
    further = {name: table.column(name) for name in table.column_names if name not in SCHEMA.names}
    return Listing(rows, further, clips)


def name_copies(clips: Sequence[str]) -> dict[str, str]:
    """{clip: its copy}: a/b.avi becomes a/b.mp4, or a/b.avi.mp4 if two names would be equal when case is ignored. Too
    long a name is cut, and ends in a digest."""
    names = {clip: _fitting(PurePosixPath(clip).with_suffix(EXTENSION)) for clip in clips}
    longer = {clip: _fitting(PurePosixPath(clip + EXTENSION)) for clip in clips}
    while True:
        claims = collections.Counter(name.casefold() for name in names.values())
        # a longer name may clash with another one
        clashes = [clip for clip, name in names.items() if claims[name.casefold()] > 1 and name != longer[clip]]
        if not clashes:
            return names
        names |= {clip: longer[clip] for clip in clashes}


def _fitting(path: PurePosixPath) -> str:
    if len(path.name.encode()) <= MAX_NAME_BYTES:
        return str(path)
    begin = path.name.encode()[: MAX_NAME_BYTES - 32].decode(errors="ignore")
    return str(path.with_name(f"{begin}-{digest(path, num_bytes=8)}{EXTENSION}"))


def check_folders(source: Path, target: Path) -> None:
    """Raises PrepareError: no such source, or one folder lies in the other."""
    if not source.is_dir():
        raise PrepareError(f"SRC {source} is not a folder: {did_you_mean(source)}name that of the clips")
    a, b = source.resolve(), target.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise PrepareError(f"DST {target} and SRC {source} must be two folders of which none lies in the other")
    if target.exists() and not target.is_dir():
        raise PrepareError(f"DST {target} is a file, and must be a folder or a new name")


def plan(
    source: Path, target: Path, listing: Listing, settings: Settings, *, num_workers: int, timeout_seconds: float
) -> dict[str, Any]:
    """What `prepare` would do, without writing there; size and time are those of a few clips, prepared elsewhere."""
    names = name_copies(listing.clips)
    jobs = _jobs(source, target, names, settings, dry_run=True)
    answers = run_jobs(MODULE, jobs, num_workers=num_workers, timeout_seconds=timeout_seconds)
    seen = dict(tqdm(answers, total=len(jobs), desc="looking", unit="clip"))
    answers = {clip: seen[i] for i, clip in enumerate(names) if not isinstance(seen[i], Lost)}
    done = [clip for clip, answer in answers.items() if answer["done"]]
    todo = {clip: answer["seconds"] for clip, answer in answers.items() if answer["seconds"] and not answer["done"]}
    size, work = _measure(source, sorted(todo, key=todo.get)[: len(todo) // 2 + 1], todo, settings, timeout_seconds)
    return {
        "files": len(names),
        "done": len(done),
        "todo": len(names) - len(done),
        "source_bytes": sum(map(_size, (source / clip for clip in names))),
        "done_bytes": sum(_size(target / names[clip]) for clip in done),
        "hours": sum(answer["seconds"] for answer in answers.values()) / 3600,
        "todo_bytes": round(size * sum(todo.values())),
        "todo_seconds": work * sum(todo.values()) / min(num_workers, max(len(todo), 1)),
    }


def _measure(
    source: Path, clips: Sequence[str], seconds: Mapping[str, float], settings: Settings, timeout_seconds: float
) -> tuple[float, float]:
    """Bytes of a copy, and seconds of work for it, per second of a clip: of up to MEASURED of these clips; 0 if none
    can be prepared."""
    clips = clips[:: max(1, len(clips) // MEASURED)][:MEASURED]
    size, work, whole = 0, [], []
    with tempfile.TemporaryDirectory() as folder:
        names = {clip: f"{i}{EXTENSION}" for i, clip in enumerate(clips)}
        jobs = _jobs(source, Path(folder), names, settings, dry_run=False)
        begin = time.monotonic()
        for i, answer in run_jobs(MODULE, jobs, num_workers=1, timeout_seconds=timeout_seconds):
            begin, took = time.monotonic(), time.monotonic() - begin
            if not isinstance(answer, Lost) and answer["state"] == "written":
                size += answer["facts"]["size"]
                work.append(took)
                whole.append(seconds[clips[i]])
    first = len(work) > 1  # which takes the start of the process too
    return size / max(sum(whole), 1e-9), sum(work[first:]) / max(sum(whole[first:]), 1e-9)


def prepare(
    source: Path, target: Path, listing: Listing, settings: Settings, *, num_workers: int, timeout_seconds: float
) -> dict[str, Any]:
    """Make all missing copies, then the manifest of all rows and the list of failures.

    Returns:
        Counts, bytes, and `not_prepared`: path, status and reason of each clip without a copy.

    Raises:
        LockedError: another process works on the same folder.
        PrepareError: no copy can be written any more, as on a full disk.
        WriteError: the folder cannot be written to.
    """
    names = name_copies(listing.clips)
    with folder_lock(target):
        try:
            done = _make_copies(source, target, names, settings, num_workers, timeout_seconds)
        finally:
            _remove_unfinished(target)  # of workers that were killed
        write_manifest(target / MANIFEST, _table(listing, names, done), root=target)
        failures = [
            {"path": clip, "status": each.facts.status, "reason": each.facts.reason}
            for clip, each in done.items()
            if each.state == "failed"
        ]
        _write_failures(target / FAILURES, failures)
    states = collections.Counter(each.state for each in done.values())
    return {
        "manifest": str(target / MANIFEST),
        "rows": len(listing.rows),
        "files": len(names),
        "written": states["written"],
        "kept": states["kept"],
        "source_bytes": sum(map(_size, (source / clip for clip in names))),
        "bytes": sum(each.facts.size for each in done.values()),
        "without_audio": sum(each.state != "failed" and not each.facts.has_audio for each in done.values()),
        "not_prepared": failures,
    }


def _make_copies(
    source: Path, target: Path, names: dict[str, str], settings: Settings, num_workers: int, timeout_seconds: float
) -> dict[str, Prepared]:
    """Result for each clip, in the order of `names`."""
    _remove_unfinished(target)
    clips = list(names)
    jobs = _jobs(source, target, names, settings, dry_run=False)
    done: dict[str, Prepared] = {}
    pool = run_jobs(MODULE, jobs, num_workers=num_workers, timeout_seconds=timeout_seconds)
    with contextlib.closing(pool) as answers:
        for i, answer in _with_progress(answers, [_size(source / clip) for clip in clips]):
            if isinstance(answer, Lost):
                answer = Prepared("failed", "", 0.0, Probe(status=answer.status, reason=answer.reason))
            if answer.state == "stopped":
                raise PrepareError(f"{answer.facts.reason}; the same command continues")
            done[clips[i]] = answer
    return {clip: done[clip] for clip in clips}


def _with_progress(
    answers: Iterable[tuple[int, dict | Lost]], sizes: list[int]
) -> Iterator[tuple[int, Prepared | Lost]]:
    """Show progress by bytes of source, which predict time and size better than the number of clips."""
    total, read, written = sum(sizes), 0, 0
    with tqdm(total=total, desc="preparing", unit="B", unit_scale=True, unit_divisor=1000) as bar:
        for number, (i, answer) in enumerate(answers, 1):
            if not isinstance(answer, Lost):
                answer = Prepared(**answer | {"facts": Probe(**answer["facts"])})
                if answer.state in ("written", "kept"):
                    read, written = read + sizes[i], written + answer.facts.size
            expected = written / max(read, 1) * total
            text = f"{number}/{len(sizes)} clips, {written / GIGABYTE:.2f} of about {expected / GIGABYTE:.2f} GB"
            bar.set_postfix_str(text, refresh=False)
            bar.update(sizes[i])
            yield i, answer


def _jobs(
    source: Path, target: Path, names: dict[str, str], settings: Settings, *, dry_run: bool
) -> list[dict[str, Any]]:
    shared = {"settings": asdict(settings), "dry_run": dry_run}
    return [{"source": str(source / clip), "target": str(target / name)} | shared for clip, name in names.items()]


def _table(listing: Listing, names: dict[str, str], done: dict[str, Prepared]) -> pa.Table:
    """The rows of the source in their order, with the facts of the copies."""
    rows = [row | {"path": names[row["path"]]} for row in listing.rows]
    table = join_facts(rows, {names[clip]: asdict(each.facts) for clip, each in done.items()})
    origin = [done[row["path"]] for row in listing.rows]
    further = {
        name: values for name, values in listing.further.items() if name not in ("source_key", "source_shift", HOLES)
    }
    further["source_key"] = pa.array([each.source_key for each in origin], pa.string())
    further["source_shift"] = pa.array([each.shift for each in origin], pa.float64())
    for name, values in further.items():
        table = table.append_column(name, values)
    return table


def _write_failures(path: Path, failures: list[dict[str, str]]) -> None:
    if not failures:
        path.unlink(missing_ok=True)  # of a call before
        return
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "status", "reason"])
        writer.writeheader()
        writer.writerows(failures)


def _remove_unfinished(target: Path) -> None:
    for path in list(target.rglob(".*.partial")):
        if path.is_file():
            path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return shards.locate(path).size if shards.is_file(path) else 0
