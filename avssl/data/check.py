"""Checking files in worker processes: `build_table` probes those of a new manifest, `inspect_manifest` decodes those
of an existing one, and `with_findings` adds the results to it.
"""

import collections
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from avssl.data.manifest import EXCHANGED, FINDINGS, HOLES, SCHEMA, Manifest, ManifestError, read_manifest
from avssl.data.policy import TITLES, cases
from avssl.data.quarantine import release
from avssl.files import atomic_write
from avssl.media import shards
from avssl.media.inspect import Inspection
from avssl.media.probe import Probe
from avssl.windows import beginning
from avssl.workers import Lost, run_jobs

T = TypeVar("T", bound=Probe)
FACTS = tuple(name for name in asdict(Probe()) if name in SCHEMA.names)
FIXED = ("size", "content_key")  # facts that identify the instance: a checked manifest keeps them
TIMES = ("duration", "video_start", "video_end", "audio_start", "audio_end")
SAME_SECONDS = 0.1  # recorded times stay if decoding agrees this well, as training draws windows from them
WHOLE = {"start": None, "end": None}  # a row that is no part of its file
CUT_TOLERANCE = 1.0  # seconds by which crawlers cut clips too long or short
MAX_NAMED = 20  # files listed as text; --json lists all


def build_table(
    root: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    may_be_cut: bool = False,
    num_workers: int = 2,
    timeout_seconds: float = 60.0,
) -> pa.Table:
    """Probe the files of all rows, each file once, and return the table of a manifest.

    Args:
        root: folder that the paths are relative to.
        rows: in the order of the manifest: "path" and optionally start, end, group (default: the path), label, split,
            further columns. One named like a probed fact is kept as listed_<name>.
        may_be_cut: start and end are dropped where the file cannot be the whole video: some crawlers cut the clip and
            name it by the id only. Such a file is no longer than the clip, and the listed part lies beyond its end.
        timeout_seconds: per file; a file that takes longer gets the status timeout.
    """
    paths = sorted({row["path"] for row in rows})
    files = [Path(root) / path for path in paths]
    probed = probe_files(files, num_workers=num_workers, timeout_seconds=timeout_seconds)
    probed = tqdm(probed, total=len(paths), desc="probing", unit="clip")
    facts = {paths[i]: asdict(probe) for i, probe in probed}
    if may_be_cut:
        rows = [row | WHOLE if _is_cut(row, facts[row["path"]]) else row for row in rows]
    return join_facts(rows, facts)


def manifest_of_file(path: Path) -> Manifest:
    """A manifest of one clip. Raises ManifestError where it cannot be used."""
    manifest = manifest_of_files([path])
    if not manifest.usable()[0]:
        raise ManifestError(f"{path} cannot be used: {manifest.column('reason')[0]}")
    return manifest


def manifest_of_files(paths: Sequence[str | Path], *, num_workers: int = 1) -> Manifest:
    """A manifest of files wherever they lie, in their order; those that cannot be used are marked as such. Raises
    ManifestError for a path that is no file."""
    files = [Path(path).absolute() for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not shards.is_file(file):
            why = "is a folder" if file.is_dir() else "does not exist"
            raise ManifestError(f"{path} {why}: give a file with video or audio")
    names = list(dict.fromkeys(map(str, files)))
    found = probe_files(names, num_workers=num_workers, timeout_seconds=60.0)
    facts = {names[place]: asdict(probe) for place, probe in found}
    return Manifest(join_facts([{"path": str(file)} for file in files], facts), Path("/"))


def join_facts(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The table of a manifest from rows as in `build_table` and the fields of a `Probe` of each path."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    further = {name: None for row in rows for name in row if name in FACTS or name not in SCHEMA.names}
    for row in rows:
        found = {"group": row["path"]} | {name: value for name, value in row.items() if value is not None}
        if "label" in found:  # two disks may write the same folder in two forms, and it is one class
            found["label"] = unicodedata.normalize("NFC", found["label"])
        found |= _of_part(row, facts[row["path"]])
        for name in SCHEMA.names:
            columns[name].append(found.get(name))
    table = pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names})
    for name in further:
        values = pa.array([row.get(name) for row in rows])
        table = table.append_column(f"listed_{name}" if name in FACTS else name, values)
    if any(each.get(HOLES) for each in facts.values()) and HOLES not in table.column_names:
        holes = [facts[row["path"]].get(HOLES) for row in rows]
        table = table.append_column(HOLES, pa.array(holes, FINDINGS[HOLES]))
    return table


def _length(facts: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of the video and of the audio of a file, from its beginning to their ends; NaN without the track."""
    names = ("video_start", "audio_start", "video_end", "audio_end")
    video_start, audio_start, *ends = np.array([facts[name] for name in names], dtype=np.float64)
    return tuple(np.array(ends) - beginning(video_start, audio_start))


def _is_cut(row: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether the file is the listed part alone; see `build_table`."""
    length = np.fmax(*_length(facts))
    start, end = row.get("start"), row.get("end")
    return None not in (start, end) and length <= end - start + CUT_TOLERANCE and length + CUT_TOLERANCE < end


def _of_part(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a file as those of a row: where only one track reaches into its part, the row lacks the other; where
    none does, it cannot be used."""
    start, end = row.get("start") or 0.0, row.get("end")
    if facts["status"] not in ("ok", "no_video") or (not start and end is None):
        return dict(facts)
    zero = float(beginning(*(np.float64(facts[f"{track}_start"]) for track in ("video", "audio"))))
    for before, after in facts.get(HOLES) or ():
        if before - zero <= start and end is not None and end <= after - zero:
            reason = f"its part, {start:g} to {end:g} s, lies where the file has nothing"
            return facts | {"status": "outside", "has_audio": False, "reason": reason}
    video, audio = _length(facts)
    has_video = start < video and (end is None or end > 0)
    has_audio = start < audio and (end is None or end > 0)
    if not has_video and not has_audio:
        part = f"from {start:g} s on" if end is None else f"{start:g} to {end:g} s"
        reason = f"its part, {part}, lies outside of the file, which lasts {np.fmax(video, audio):.1f} s"
        return facts | {"status": "outside", "has_audio": False, "reason": reason}
    if not has_video and facts["status"] == "ok":
        facts = facts | {"status": "no_video", "reason": f"the video ends at {video:.1f} s, before this part"}
    if not has_audio and facts["has_audio"]:
        facts = facts | {"has_audio": False, "reason": f"the audio ends at {audio:.1f} s, before this part"}
    return dict(facts)


def probe_files(
    paths: Sequence[str | Path], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Probe]]:
    """Yield (position in `paths`, facts) as they come; see `run_jobs`."""
    return _run_workers("avssl.media.probe", Probe, paths, num_workers, timeout_seconds)


def inspect_manifest(manifest: Manifest, *, num_workers: int, timeout_seconds: float) -> dict[str, Inspection]:
    """Decode each file of a manifest once, with a progress bar: {path: inspection}."""
    paths = sorted(set(manifest.column("path")))
    files = [manifest.root / path for path in paths]
    found = _run_workers("avssl.media.inspect", Inspection, files, num_workers, timeout_seconds)
    return {paths[i]: each for i, each in tqdm(found, total=len(paths), desc="checking", unit="clip")}


def _run_workers(
    module: str, kind: type[T], paths: Sequence[str | Path], num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, T]]:
    jobs = [str(path) for path in paths]
    for i, answer in run_jobs(module, jobs, num_workers=num_workers, timeout_seconds=timeout_seconds):
        yield i, kind(status=answer.status, reason=answer.reason) if isinstance(answer, Lost) else kind(**answer)


def with_findings(table: pa.Table, found: Mapping[str, Inspection]) -> pa.Table:
    """The table of a manifest, same rows, with results of decoding: status, reason, times and the columns of FINDINGS.

    A file other than the recorded one gets the status exchanged; a quarantined row stays so.
    """
    rows = table.to_pylist()
    first: dict[tuple, str] = {}  # (digest, start, end) -> path of the first row
    for row in rows:
        inspection = found[row["path"]]
        row |= dict.fromkeys(FINDINGS) | _facts(row, inspection)
        row |= {name: value for name, value in _of_part(row, row).items() if name in FACTS}
        if inspection.digest and row["status"] != "exchanged":
            original = first.setdefault((inspection.digest, row["start"], row["end"]), row["path"])
            row["duplicate_of"] = None if original == row["path"] else original
    types = {name: SCHEMA.field(name).type for name in FACTS if name not in FIXED} | FINDINGS
    for name, type_ in types.items():
        column = pa.array([row[name] for row in rows], type_)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def fix_manifest(path: str | Path, manifest: Manifest, found: Mapping[str, Inspection]) -> list[str]:
    """Write the findings into the manifest file, atomically; ids, hash and recorded root stay. Files that decode leave
    the quarantine list.

    Args:
        manifest: as it was read before the files were inspected.
        found: of every path in it.

    Returns:
        Paths that left the quarantine list.

    Raises:
        ManifestError: the file holds other instances by now.
        WriteError: the file cannot be written.
    """
    if read_manifest(path, root=manifest.root).hash != manifest.hash:
        raise ManifestError(f"manifest {path} was exchanged while its files were checked: check it again")
    table = with_findings(pq.read_table(path), found)  # as in the file, without the quarantine list
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)
    return release(path, {name for name, inspection in found.items() if inspection.status in ("ok", "no_video")})


def report(manifest: Manifest, found: Mapping[str, Inspection], *, clip_seconds: float) -> dict[str, Any]:
    """Problems of the files of a manifest, as plain data.

    Args:
        found: of every path in the manifest; takes precedence over it.
        clip_seconds: files shorter than this are short.

    Returns:
        rows, files, clip_seconds; cases {case: number of files}; problems: an entry per file in any case, in the order
        of the manifest.
    """
    table = with_findings(manifest.table, found)
    facts = table.select(["path", "status", "reason", *FINDINGS]).to_pylist()
    problems: dict[str, dict[str, Any]] = {}
    for case, rows in cases(Manifest(table, manifest.root), clip_seconds).items():
        for i in rows.nonzero()[0].tolist():
            path = facts[i]["path"]
            further = {name: getattr(found[path], name) for name in ("claimed_end", "num_lost")}
            new = facts[i] | further | {"rows": [], "cases": []}
            entry = problems.setdefault(path, new)
            entry["rows"] += [] if i in entry["rows"] else [i]
            entry["cases"] += [] if case in entry["cases"] else [case]
    ordered = sorted(problems.values(), key=lambda entry: min(entry["rows"]))
    return {
        "rows": len(manifest),
        "files": len(found),
        "clip_seconds": clip_seconds,
        "cases": dict(collections.Counter(case for entry in ordered for case in entry["cases"])),
        "problems": ordered,
    }


def describe(summary: Mapping[str, Any]) -> str:
    """The report as text: how many files are in each case, and up to MAX_NAMED of them by name."""
    lines = [f"{summary['files']} files decoded, {len(summary['problems'])} with findings"]
    for case, title in TITLES.items():
        entries = [entry for entry in summary["problems"] if case in entry["cases"]]
        title = f"shorter than {summary['clip_seconds']:g} s (--clip-seconds)" if case == "short" else title
        lines += name_some(title, [f"{entry['path']}{_detail(case, entry)}" for entry in entries], "--json names all")
    return "\n".join(lines)


def name_some(what: str, entries: Sequence[str | Mapping[str, str]], where: str) -> list[str]:
    """How many entries there are, up to MAX_NAMED of them (text, or path and reason), and where the others are named;
    no line without entries."""
    names = [each if isinstance(each, str) else f"{each['path']}: {each['reason']}" for each in entries[:MAX_NAMED]]
    lines = [f"{len(entries)} {what}:", *(f"  {name}" for name in names)]
    if len(entries) > MAX_NAMED:
        lines.append(f"  and {len(entries) - MAX_NAMED} more: {where}")
    return lines if entries else []


def _detail(case: str, entry: Mapping[str, Any]) -> str:
    match case:
        case "unreadable" | "quarantined":
            return f": {entry['status']}: {entry['reason']}"
        case "cut_off":
            return f": ends at {entry['cut_off_at']:.2f} s, by its header at {entry['claimed_end']:.2f} s"
        case "damaged":
            return f": from {entry['damaged_at']:.2f} s"
        case "further_tracks":
            return f": {entry['further_tracks']}"
        case "jumps":
            lost = f"{entry['num_lost']} packets behind that are not read" if entry["num_lost"] else "read on one clock"
            return f": times begin anew at {entry['jump_at']:.2f} s, {lost}"
        case "holes":
            return ": nothing from " + ", ".join(f"{begin:.2f} to {end:.2f} s" for begin, end in entry["holes"])
        case "duplicate":
            return f": as {entry['duplicate_of']}"
    return ""


def _facts(row: Mapping[str, Any], found: Inspection) -> dict[str, Any]:
    """New values of a row of a manifest."""
    if row["status"] == "quarantined":
        return {}
    if not found.content_key:  # missing, timeout, crashed
        never_there = found.status == "missing" and not row["content_key"] and row["reason"]  # a copy not prepared
        return {} if never_there else {"status": found.status, "reason": found.reason}
    if found.content_key != row["content_key"]:
        return {"status": "exchanged", "reason": EXCHANGED}
    kept = (set(FINDINGS) | set(FACTS)) - set(FIXED)
    facts = {name: value for name, value in asdict(found).items() if name in kept}
    for name in TIMES:
        if None not in (row[name], facts[name]) and abs(row[name] - facts[name]) < SAME_SECONDS:
            facts[name] = row[name]
    return facts
