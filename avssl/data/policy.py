"""Defects of clips, and which clips a run trains on in spite of them, by row (start, end). N = rows.

cut_off, damaged, variable_rate, further_tracks and duplicate are known only after
`avssl check MANIFEST --fix-manifest`.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avssl.config import ConfigError, DataConfig, PolicyConfig
from avssl.data.manifest import Manifest
from avssl.windows import beginning

SHORT_SECONDS = 0.1  # may be missing of a window: audio of intact clips ends up to 0.06 s off (priming, last packet)
LATE_SECONDS = 0.2  # tracks of intact MPEG and FLV begin up to 0.1 s apart
UNINDEXED = r"\.(mpe?g|vob|m2p)$"  # MPEG program streams: a window is searched for among the bytes
LONG_SECONDS = 600.0  # of such a file, in which that takes about a second
UNEQUAL_SECONDS = 0.5  # recorders close one track later than the other
TITLES = {
    "unreadable": "unreadable",
    "quarantined": "in quarantine",
    "no_video": "audio only",
    "no_audio": "without audio",
    "silent": "with a silent audio track",
    "short": "shorter than a clip",
    "late_start": "with a late first frame",
    "rotated": "rotated",
    "unequal_length": "with audio and video of different length",
    "cut_off": "cut off",
    "damaged": "damaged",
    "jumps": "joined of files with times of their own",
    "holes": "with holes in all tracks",
    "variable_rate": "with a variable frame rate",
    "further_tracks": "with further tracks that are not read",
    "duplicate": "with the content of an earlier one",
}


@dataclass(frozen=True)
class Admitted:
    """Rows that a run trains on."""

    valid: np.ndarray  # (N,) bool, rows of the split that are trained on
    skipped: dict[str, int]  # {case: number of rows of the split left out}; a row can be in several cases
    masked: dict[str, int]  # {case: number of rows in it that are trained on}

    def describe(self) -> str:
        """One line of text."""
        return f"left out: {_listed(self.skipped)}; trained on: {_listed(self.masked)}"


def cases(manifest: Manifest, clip_seconds: float) -> dict[str, np.ndarray]:
    """Rows in each case of `PolicyConfig`: {case: (N,) bool}.

    A row that cannot be read is in no further case; one of audio only is in none about video.

    Args:
        clip_seconds: the longer of a clip's video and audio window.
    """
    status, has_audio = manifest.column("status"), manifest.has_audio
    ok, quarantined = status == "ok", status == "quarantined"
    no_video = (status == "no_video") & has_audio
    readable = ok | no_video
    video, audio = (manifest.bounds(track).T for track in ("video", "audio"))  # (2, N) each, NaN without the track
    audio_span, video_span = np.where(has_audio, audio, np.nan), np.where(ok, video, np.nan)  # (2, N)
    overlap = np.fmin(audio_span[1], video_span[1]) - np.fmax(audio_span[0], video_span[0])  # (N,) seconds
    zero = beginning(_numbers(manifest, "video_start"), _numbers(manifest, "audio_start"))
    end = np.nan_to_num(zero + _numbers(manifest, "end"), nan=np.inf)  # on the container's clock
    return {
        "unreadable": ~readable & ~quarantined,
        "quarantined": quarantined,
        "no_video": no_video,
        "no_audio": ok & np.isnan(audio[0]),
        "silent": ok & ~np.isnan(audio[0]) & ~has_audio,
        "short": readable & (overlap < clip_seconds - SHORT_SECONDS),
        "late_start": ok & (video_span[0] - audio_span[0] > LATE_SECONDS),
        "rotated": ok & (_numbers(manifest, "rotation") > 0),
        "unequal_length": ok
        & (np.abs((video_span[1] - video_span[0]) - (audio_span[1] - audio_span[0])) > UNEQUAL_SECONDS),
        "cut_off": readable & (_numbers(manifest, "cut_off_at") < end),
        "damaged": readable & (_numbers(manifest, "damaged_at") < end),
        "jumps": readable & (_numbers(manifest, "jump_at") < end),
        "holes": readable & _has_holes(manifest, zero + _numbers(manifest, "start"), end),
        "variable_rate": ok & (_numbers(manifest, "variable_rate") > 0),
        "further_tracks": readable & _is_named(manifest, "further_tracks"),
        "duplicate": readable & _is_named(manifest, "duplicate_of"),
    }


def split_of(manifest: Manifest, data: DataConfig) -> str | None:
    """The split that data.split means; None = every row."""
    if data.split != "auto":
        return data.split
    return "train" if any(manifest.column("split")) else None


def admit(manifest: Manifest, data: DataConfig) -> Admitted:
    """Which rows of data.split a run trains on, as data.policy says.

    Raises:
        ConfigError: a row is in a case whose policy is error.
    """
    name, split = split_of(manifest, data), np.ones(len(manifest), dtype=bool)
    if name is not None:
        split = manifest.column("split") == name
    found = {
        case: rows & split
        for case, rows in cases(manifest, max(data.num_frames / data.fps, data.audio_seconds)).items()
    }
    policy = dict(data.policy)
    for case, rows in found.items():
        if policy[case] == "error" and rows.any():
            raise ConfigError(_refusal(case, manifest, rows, split=name))
    skipped = {case: rows for case, rows in found.items() if policy[case] == "skip"}
    valid = split & ~np.any(list(skipped.values()), axis=0)
    masked = {case: rows & valid for case, rows in found.items() if policy[case] == "mask"}
    return Admitted(valid, _counts(skipped), _counts(masked))


def num_slow(manifest: Manifest, valid: np.ndarray) -> int:
    """How many of the rows valid (N,) are of long files without an index, where finding a window takes seconds."""
    is_unindexed = pc.match_substring_regex(manifest.table.column("path"), UNINDEXED, ignore_case=True).to_numpy()
    return int((valid & is_unindexed & (_numbers(manifest, "duration") > LONG_SECONDS)).sum())


def _refusal(case: str, manifest: Manifest, rows: np.ndarray, *, split: str | None) -> str:
    choices = get_args(PolicyConfig.model_fields[case].annotation)
    others = " or ".join(choice for choice in choices if choice != "error")
    return (
        f"data.policy.{case}=error, and {int(rows.sum())} clips of data.split={split or 'null'} are "
        f"{TITLES[case]}, first {manifest.path(int(rows.argmax()))}: fix or remove them, or set "
        f"data.policy.{case} to {others}"
    )


def _counts(found: dict[str, np.ndarray]) -> dict[str, int]:
    return {case: int(rows.sum()) for case, rows in found.items() if rows.any()}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {case}" for case, count in counts.items()) or "none"


def _numbers(manifest: Manifest, name: str) -> np.ndarray:
    """(N,) float64, NaN where unknown; columns of FINDINGS may be missing."""
    if name not in manifest.table.column_names:
        return np.full(len(manifest), np.nan)
    return manifest.table.column(name).cast(pa.float64()).to_numpy().astype(np.float64)


def _has_holes(manifest: Manifest, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(N,) bool: a hole is in the row's part of the file; start, end (N,) on the container's
    clock, NaN and infinity where the row has none."""
    found = np.zeros(len(manifest), dtype=bool)
    for row, holes in manifest.holes.items():
        found[row] = any(not after <= start[row] and before < end[row] for before, after in holes)
    return found


def _is_named(manifest: Manifest, name: str) -> np.ndarray:
    """(N,) bool: a text column, which may be missing, is not null."""
    if name not in manifest.table.column_names:
        return np.zeros(len(manifest), dtype=bool)
    return manifest.table.column(name).is_valid().to_numpy()
