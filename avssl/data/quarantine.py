"""The list of files that crashed a worker process, beside the manifest: MANIFEST.quarantine.jsonl.

Runs only append lines, so several runs and ranks can share it. A replaced file (another content key) is not on it;
`avssl check MANIFEST --fix-manifest` decodes every file and releases those that are intact.
"""

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from avssl.files import WriteError, atomic_write


@dataclass(frozen=True)
class Entry:
    """One file and why it is kept out."""

    path: str  # as in the manifest
    content_key: str
    reason: str
    time: str = ""  # when it was added, UTC


def quarantine_path(manifest: str | Path) -> Path:
    """Where the list of a manifest is."""
    manifest = Path(manifest)
    return manifest.with_name(f"{manifest.name}.quarantine.jsonl")


def read_quarantine(manifest: str | Path) -> list[Entry]:
    """The entries, oldest first; a line truncated by a crash is ignored."""
    path = quarantine_path(manifest)
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(Entry(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return entries


def add_to_quarantine(manifest: str | Path, entry: Entry) -> None:
    """Append one entry. Raises WriteError."""
    path = quarantine_path(manifest)
    line = json.dumps(asdict(entry) | {"time": datetime.now(UTC).isoformat(timespec="seconds")})
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"\n{line}\n".encode())  # begins a new line even after a truncated one
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise WriteError(path, error) from error


def release(manifest: str | Path, paths: Collection[str]) -> list[str]:
    """Take files off the list, and return those that were on it, sorted. Raises WriteError."""
    entries = read_quarantine(manifest)
    kept = [entry for entry in entries if entry.path not in paths]
    if len(kept) < len(entries):
        with atomic_write(quarantine_path(manifest)) as temporary:
            temporary.write_text("".join(f"{json.dumps(asdict(entry))}\n" for entry in kept), encoding="utf-8")
    return sorted({entry.path for entry in entries} - {entry.path for entry in kept})
