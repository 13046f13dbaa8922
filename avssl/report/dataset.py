"""Training clips of a run: statistics of the manifest, what was left out, and why.

Letter: N rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avssl.config import ConfigError, DataConfig
from avssl.data.manifest import Manifest
from avssl.data.policy import TITLES, admit, cases, split_of
from avssl.report.page import note, paragraph, table

MAX_SPLITS = 6  # columns; smaller splits are counted together
NUM_NAMED = 3  # files named per reason
MAX_REASONS = 15


def dataset_parts(manifest: Manifest, data: DataConfig, *, num_trained: int) -> list[str]:
    """Tables of rows by split and case, and of unusable files by reason; num_trained clips by the checkpoint."""
    found = cases(manifest, max(data.num_frames / data.fps, data.audio_seconds))
    splits = _splits(manifest)
    readable = manifest.has_video & manifest.has_audio
    kinds = [("all", np.ones(len(manifest), dtype=bool), "", ""), ("with video and audio", readable, "", "")]
    kinds += [
        (TITLES[case], rows, getattr(data.policy, case), _named(manifest, rows))
        for case, rows in found.items()
        if rows.any()
    ]
    lines = [(name, *(int((rows & split).sum()) for split in splits.values()), *more) for name, rows, *more in kinds]
    columns = ("rows", *splits, "data.policy", "such as")
    classes = len(manifest.class_names)
    num_labeled = int((manifest.targets() >= 0).sum())
    labels = f"{classes} classes, {num_labeled:,} rows with a label" if classes else "no labels"
    hours = f"{_hours(manifest, 'video'):.2f} hours of video, {_hours(manifest, 'audio'):.2f} hours of audio"
    parts = [
        paragraph(
            f"{num_trained:,} clips of data.split={split_of(manifest, data) or 'null'} were trained on. "
            f"The manifest has {len(manifest):,} rows: {hours}; {labels}."
        ),
        table("Rows by split and missing modality", columns, lines),
        note("A row can be in several lines. This is what the manifest and its quarantine list say now."),
        note(_policy(manifest, data)),
    ]
    reasons = _reasons(manifest)
    if reasons:
        parts.append(table("Files that cannot be used", ("status", "reason", "rows", "such as"), reasons))
    return parts


def _splits(manifest: Manifest) -> dict[str, np.ndarray]:
    """{split: (N,) bool}, the largest first; one column of all rows without splits."""
    column = np.array([split or "no split" for split in manifest.column("split").tolist()])
    names, counts = np.unique(column, return_counts=True)
    ordered = names[np.argsort(-counts, kind="stable")].tolist()
    kept = ordered[:MAX_SPLITS]
    splits = {name: column == name for name in kept}
    return splits | ({"other splits": ~np.isin(column, kept)} if len(kept) < len(ordered) else {})


def _hours(manifest: Manifest, modality: str) -> float:
    rows = manifest.has_video if modality == "video" else manifest.has_audio
    start, end = manifest.bounds(modality)[rows].T
    return float(np.nansum(np.maximum(end - start, 0))) / 3600


def _policy(manifest: Manifest, data: DataConfig) -> str:
    try:
        admitted = admit(manifest, data)
    except ConfigError as error:  # quarantined since the run began, under policy error
        return f"data.policy today would refuse this set: {error}"
    left, kept = (
        ", ".join(f"{count:,} {TITLES[case]}" for case, count in counts.items()) or "none"
        for counts in (admitted.skipped, admitted.masked)
    )
    return f"Left out of this split by data.policy: {left}. Trained on, with what is missing marked: {kept}."


def _reasons(manifest: Manifest) -> list[Sequence[Any]]:
    """Unusable rows by status and reason, the most frequent first."""
    status = manifest.column("status")
    reason = np.array([each or "no reason given" for each in manifest.column("reason").tolist()])
    bad = np.flatnonzero(~manifest.usable())
    groups: dict[tuple[str, str], list[int]] = {}
    for row in bad.tolist():
        groups.setdefault((str(status[row]), str(reason[row])), []).append(row)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [(*names, len(rows), _named(manifest, rows)) for names, rows in ordered[:MAX_REASONS]]
    rest = sum(len(rows) for _, rows in ordered[MAX_REASONS:])
    return [*lines, ("", "other reasons", rest, "")] if rest else lines


def _named(manifest: Manifest, rows: np.ndarray | list[int]) -> str:
    """A few files among `rows`: (N,) bool or numbers."""
    numbers = np.flatnonzero(rows) if isinstance(rows, np.ndarray) else np.array(rows)
    names = [str(manifest.column("path")[row]) for row in numbers[:NUM_NAMED].tolist()]
    return ", ".join(names) + (", ..." if len(numbers) > NUM_NAMED else "")
