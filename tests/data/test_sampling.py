"""Which seconds are drawn: properties of the windows over many draws."""

from unittest import mock

import numpy as np
import pytest

from avssl.config import DataConfig
from avssl.data import sampling
from avssl.data.sampling import draw_windows, num_steps_per_epoch, plan_windows, spread_windows
from avssl.data.tracks import Track
from avssl.transforms.recipes import Clip
from avssl.transforms.views import Beyond, OtherHalf, Same, TrackFrame, Uniform, View, When, Within, clips
from avssl.windows import Span

NUM_DRAWS = 2000
SECOND = DataConfig(manifest="", num_frames=10, fps=10)


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


def test_without_audio_the_picture_alone_is_drawn() -> None:
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


TEN_SECONDS = Span(0, 10)


def further(views: tuple[View, ...], *, first: float = 2.0, video: Span = TEN_SECONDS) -> np.ndarray:
    """(1000, num - 1) starts behind a first clip of a second."""
    rng, clip = np.random.default_rng(0), Clip(64, 48, video, None)
    with mock.patch.object(sampling, "draw_windows", return_value=(first, first)):
        found = [plan_windows(rng, views, SECOND, clip) for _ in range(1000)]
    return np.array([[windows[view.name].start for view in views[1:]] for windows in found])


def test_uniform_starts_have_cvrls_interval() -> None:
    """CVRL's sampler inverts the distribution of a linearly decreasing interval; two uniform starts have it too."""
    rng, clip = np.random.default_rng(0), Clip(64, 48, Span(0, 193 + 1), None)
    found = [plan_windows(rng, clips(2), SECOND, clip) for _ in range(20000)]
    share = np.array([abs(windows["video"].start - windows["video.1"].start) for windows in found]) / 193
    assert share.mean() == pytest.approx(0.3325, abs=0.005)  # recorded of the original
    deciles = np.histogram(share, bins=10, range=(0, 1))[0] / len(share)
    assert deciles[0] == pytest.approx(0.19, abs=0.01)
    assert deciles[-1] == pytest.approx(0.01, abs=0.003)
    assert (np.diff(deciles) < 0).all()


def test_radii_draw_near_clips_and_far_ones() -> None:
    near, other, far = further(clips(4, when=[Within(0.5), Within(0.5), Beyond(3)])).T
    assert np.abs(near - 2).max() <= 0.5
    assert np.abs(other - 2).max() <= 0.5
    assert near.std() > 0.2
    assert far.min() >= 5  # before the first one there is no room
    assert far.max() <= 9
    sides = further(clips(3, when=[Within(0.5), Beyond(3)]), first=4.0)[:, 1]
    assert ((sides <= 1) | (sides >= 7)).all()
    assert (sides <= 1).mean() == pytest.approx(1 / 3, abs=0.05)  # one second of starts before, two behind


def test_radii_stay_inside_a_short_video() -> None:
    near, far = further(clips(3, when=[Within(5), Beyond(6)]), first=0.5, video=Span(0, 2)).T
    for starts in (near, far):  # nothing is far: anywhere
        assert 0 <= starts.min() < 0.1
        assert 0.9 < starts.max() <= 1


def test_halves_repeat_the_first_start_and_lie_in_order_in_the_other_half() -> None:
    halves = clips(4, when=[Same("video"), OtherHalf(), OtherHalf()])
    for first, (low, high) in ((2.0, (4.5, 9)), (7.0, (0, 4.5))):
        same, one, two = further(halves, first=first).T
        assert (same == first).all()
        assert (one <= two).all()
        assert low <= one.min()
        assert two.max() <= high


@pytest.mark.parametrize("when", [Uniform(), Within(1), Beyond(2), OtherHalf(), Same("video")], ids=str)
def test_a_video_shorter_than_a_clip_has_one_start(when: When) -> None:
    assert (further(clips(4, when=when), first=3.0, video=Span(3, 3.4)) == 3).all()


def test_views_of_other_lengths_start_with_the_sample_and_fit_into_the_track() -> None:
    long = View("long", changes={"num_frames": 30})
    rng, clip = np.random.default_rng(0), Clip(64, 48, TEN_SECONDS, TEN_SECONDS)
    views = (View("video"), long, View("audio", recipe="audio"), View("sound", recipe="audio", when=Same("long")))
    found = [plan_windows(rng, views, SECOND, clip) for _ in range(300)]
    starts = {name: np.array([windows[name].start for windows in found]) for name in found[0]}
    assert (starts["video"] == starts["long"]).all()
    assert starts["long"].max() <= 10 - 3
    assert starts["long"].max() > 6.5
    assert (starts["sound"] == np.minimum(starts["long"], 10 - SECOND.audio_seconds)).all()


def test_a_longer_view_of_the_same_seconds_stays_inside_and_parts_draw_apart() -> None:
    rng, clip = np.random.default_rng(0), Clip(64, 48, TEN_SECONDS, None)
    long = View("long", when=Same("video"), changes={"num_frames": 40})
    halves = [View(f"{part}.{i}", when=OtherHalf(), changes=changes) for part, changes in
              (("a", {}), ("b", {"num_frames": 40})) for i in (0, 1)]  # fmt: skip
    found = [plan_windows(rng, (View("video"), long, *halves), SECOND, clip) for _ in range(500)]
    starts = {name: np.array([windows[name].start for windows in found]) for name in found[0]}
    assert starts["long"].max() <= 10 - 4
    assert (starts["long"] == np.minimum(starts["video"], 6)).all()
    assert starts["b.1"].max() <= 10 - 4
    assert abs(np.mean(starts["a.0"]) - np.mean(starts["a.1"])) > 0.5  # in order within a part
    assert (starts["a.0"] > starts["b.1"]).mean() > 0.1  # and not between parts


def tracks(*lengths: int) -> list[Track]:
    return [
        Track(np.arange(n) / 10, np.tile([0.1, 0.2, 0.3, 0.4], (n, 1)), np.ones(n), number)
        for number, n in enumerate(lengths)
    ]


def picked(given: list[Track], num: int, frames: str = "ends") -> list[list[tuple[int, int]]]:
    """200 times the (track, frame) of the views that are present."""
    whens = [TrackFrame(track, end, "t", frames) for track in range(num) for end in (0, 1)]
    views = [View(f"patch.{when.track}.{when.end}", "patch", when) for when in whens]
    rng, clip = np.random.default_rng(0), Clip(64, 48, TEN_SECONDS, None)
    found = [plan_windows(rng, views, SECOND, clip, tracks=given) for _ in range(200)]
    return [[(w.track, round(10 * w.start)) for w in windows.values() if w.present] for windows in found]


def test_patches_are_the_ends_of_a_track_or_any_two_frames() -> None:
    lengths = {0: 30, 1: 4, 2: 9}
    drawn = picked(tracks(30, 4, 9), 2)
    for (a, first), (b, last), (c, _), (d, _) in drawn:
        assert a == b != c == d
        assert (first, last) == (0, lengths[a] - 1)
    assert {each[0][0] for each in drawn} == {0, 1, 2}
    pairs = picked(tracks(5), 1, "any")
    assert all(one < two for (_, one), (_, two) in pairs)
    assert len(set(map(tuple, pairs))) == 10
    assert picked([], 2)[0] == []
    assert len(picked(tracks(7), 2)[0]) == 2  # the second track is absent


HOLES = [[6.0, 106.0], [110.0, 130.0]]


@pytest.mark.parametrize("num_clips", [None, 1, 5])
def test_windows_lie_beside_holes(num_clips: int | None) -> None:
    data = DataConfig(manifest="", num_frames=8, fps=16, audio_seconds=2.0)
    views = [View("v", "video"), View("a", "audio"), View("later", "video", Within(1.0))]
    span, starts = Span(0.0, 142.0), []
    for number in range(num_clips or 60):
        rng = None if num_clips else np.random.default_rng(number)
        shown = views[:2] if num_clips else views
        clip = Clip(64, 48, span, span, HOLES)
        windows = plan_windows(rng, shown, data, clip, number=number, num_clips=num_clips or 1)
        for view in shown:
            start, end = windows[view.name].start, windows[view.name].start + view.seconds(data)
            assert start >= 0
            assert end <= 142
            assert all(end <= low or start >= high for low, high in HOLES)
        starts.append(windows["v"].start)
    if num_clips == 5:
        assert starts == sorted(set(starts))
        assert starts[0] < 6
        assert starts[-1] > 130
    elif num_clips is None:
        parts = np.bincount(np.searchsorted([6, 130], starts), minlength=3)
        assert min(parts[0], parts[2]) > 8  # by the length of the stretches: 6, 4 and 12 s
