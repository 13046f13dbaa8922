"""The measurements of synchrony on vectors whose answer is known, and the whole way on made clips."""

import numpy as np
import pytest
from natural import (
    HOP_SECONDS,
    WINDOW_SECONDS,
    retrieval_within,
    shift_preference,
    windows,
)

from avssl.data.manifest import Manifest


def vectors(num: int, *, clips: int = 1):
    """Windows every 0.2 s of `clips` clips, each with a direction of its own."""
    clip = np.repeat([f"clip{i}" for i in range(clips)], num)
    start = np.tile(np.arange(num) * HOP_SECONDS, clips)
    return np.eye(num * clips), start, clip


def test_windows_lie_inside_both_tracks(clip_set: Manifest) -> None:
    rows = np.flatnonzero(clip_set.has_audio)[:2]
    parts = windows(clip_set, rows, seconds=0.5, hop=0.2)
    for row in rows.tolist():
        own = [part for part in parts if part["path"] == clip_set.column("path")[row]]
        first = max(clip_set.column("video_start")[row], clip_set.column("audio_start")[row])
        last = min(clip_set.column("video_end")[row], clip_set.column("audio_end")[row])
        assert [part["start"] for part in own] == pytest.approx([first + 0.2 * i for i in range(len(own))])
        assert own[-1]["end"] <= last + 1e-6 < own[-1]["end"] + 0.2
    assert windows(clip_set, rows, seconds=60, hop=0.2) == []


def test_sound_in_time_is_preferred() -> None:
    z, start, clip = vectors(6, clips=2)
    assert (shift_preference(z, z, start, clip) == 1).all()
    late = np.roll(z.reshape(2, 6, -1), 3, axis=1).reshape(z.shape)  # a window's own vector comes 0.6 s later
    assert shift_preference(z, late, start, clip).mean() < 0.5
    same = np.ones_like(z)
    assert (shift_preference(same, same, start, clip) == 0.5).all()


def test_near_windows_and_other_clips_are_not_compared() -> None:
    z, start, clip = vectors(2, clips=3)  # 0.2 s apart only
    assert np.isnan(shift_preference(z, z, start, clip)).all()


def test_retrieval_is_among_windows_that_do_not_overlap() -> None:
    z, start, clip = vectors(12)  # 2.2 s: windows at 0, 1.0 and 2.0 s
    right, chance, of = retrieval_within(z, z, start, clip)
    assert right.tolist() == [1, 1, 1]
    assert chance.tolist() == pytest.approx([1 / 3] * 3)
    assert set(of) == {"clip0"}
    assert 1.0 >= WINDOW_SECONDS > 0.8
    right, _, _ = retrieval_within(z, np.roll(z, 5, axis=0), start, clip)
    assert right.sum() < 3
    z, start, clip = vectors(3)  # no two windows apart
    assert retrieval_within(z, z, start, clip)[0].size == 0
