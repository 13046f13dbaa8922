"""Which seconds are drawn: properties of the windows over many draws."""

import numpy as np
import pytest

from avssl.data.sampling import Span, draw_windows, num_steps_per_epoch, spread_windows

NUM_DRAWS = 2000


def drawn(video: Span, audio: Span | None, **lengths: float) -> np.ndarray:
    """(NUM_DRAWS, 2) starts of picture and sound."""
    rng = np.random.default_rng(0)
    return np.array([draw_windows(rng, video, audio, **lengths) for _ in range(NUM_DRAWS)])


def test_sound_lies_anywhere_and_the_picture_inside_it_or_a_little_beside() -> None:
    picture, sound = drawn(
        Span(0, 10), Span(0.5, 9), video_seconds=0.5, audio_seconds=2, max_offset_seconds=0.3
    ).T  # both windows fit many times
    assert sound.min() >= 0.5
    assert sound.max() <= 7
    assert np.histogram(sound, bins=5, range=(0.5, 7))[0] == pytest.approx([NUM_DRAWS / 5] * 5, rel=0.15)
    assert (picture >= np.maximum(sound - 0.3, 0)).all()
    assert (picture <= sound + 2 + 0.3 - 0.5).all()
    assert (picture < sound).any()
    assert (picture > sound + 1.5).any()


def test_a_picture_longer_than_the_sound_is_drawn_first() -> None:
    picture, sound = drawn(Span(0, 4), Span(0, 4), video_seconds=2, audio_seconds=1, max_offset_seconds=0).T
    assert picture.min() >= 0
    assert picture.max() <= 2
    assert (sound >= picture).all()
    assert (sound + 1 <= picture + 2 + 1e-9).all()


def test_a_track_shorter_than_its_window_begins_with_it() -> None:
    picture, sound = drawn(Span(0, 0.6), Span(0.1, 0.5), video_seconds=0.5, audio_seconds=1, max_offset_seconds=0).T
    assert (sound == 0.1).all()
    assert picture.min() >= 0
    assert picture.max() <= 0.1 + 1e-9


def test_without_sound_the_picture_alone_is_drawn() -> None:
    picture, sound = drawn(Span(1, 3), None, video_seconds=0.5, audio_seconds=2, max_offset_seconds=0.5).T
    assert (picture == sound).all()
    assert picture.min() >= 1
    assert picture.max() <= 2.5


def test_evaluation_windows_are_spread_evenly_with_the_sound_around_them() -> None:
    starts = [
        spread_windows(Span(0, 10), Span(0, 10), video_seconds=1, audio_seconds=2, clip=clip, num_clips=3)
        for clip in range(3)
    ]
    assert [picture for picture, _ in starts] == pytest.approx([1.5, 4.5, 7.5])
    assert [sound - picture for picture, sound in starts] == pytest.approx([-0.5] * 3)


def test_fewer_clips_than_a_batch_is_an_error() -> None:
    assert num_steps_per_epoch(10, clips_per_video=3, batch_size=8) == 3
    with pytest.raises(ValueError, match=r"10 usable videos x data\.clips_per_video=1 are fewer than one batch"):
        num_steps_per_epoch(10, clips_per_video=1, batch_size=16)
