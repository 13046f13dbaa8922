"""Order of clips and their windows: pure functions of (seed, epoch, step) and of a row of the manifest, so that any
number of workers and ranks draws the same and a resumed run continues in the middle of an epoch.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from avssl.config import DataConfig
from avssl.data.tracks import Track
from avssl.transforms.recipes import Clip, Window
from avssl.transforms.video import spread_crops
from avssl.transforms.views import Beyond, First, OtherHalf, Same, Spread, TrackFrame, Uniform, View, Within
from avssl.windows import Span

NO_CLIP = -1  # id of a place in a batch without a clip


class Key(NamedTuple):
    """Names one drawn clip; everything random about it follows from (seed, epoch, id, clip)."""

    epoch: int
    id: int  # row of the manifest; NO_CLIP = an empty place
    clip: int  # which of the video's clips of this epoch


def num_steps_per_epoch(num_videos: int, *, clips_per_video: int, batch_size: int) -> int:
    """Whole batches in one epoch; the rest of an epoch's clips is left out (another rest each epoch).

    Raises:
        ValueError: there are fewer clips than one batch.
    """
    steps = num_videos * clips_per_video // batch_size
    if steps == 0:
        raise ValueError(
            f"{num_videos} usable videos x data.clips_per_video={clips_per_video} are fewer than one batch of "
            f"data.batch_size={batch_size}: lower the batch size or raise the clips per video"
        )
    return steps


def epoch_keys(ids: np.ndarray, *, clips_per_video: int, seed: int, epoch: int) -> np.ndarray:
    """All clips of one epoch in order: (num_videos * clips_per_video, 2) int64 of (id, clip).

    Every video comes once before any comes again. Differs from AVID-CMA, which shuffles all clips at once, so that a
    video often meets itself in a batch.
    """
    rng = np.random.default_rng((seed, epoch))
    passes = [np.stack([rng.permutation(ids), np.full(len(ids), clip)], axis=1) for clip in range(clips_per_video)]
    return np.concatenate(passes)


class TrainingBatches:
    """Yields this rank's list of keys for every step of a run, from any step on: a batch sampler.

    Args:
        ids: (num_videos,) rows of the manifest to train on.
        batch_size: over all ranks; rank r takes the r-th block of each batch, as gathering puts them together. Where
            the ranks do not divide it, the last of them have one clip less and an empty place (NO_CLIP), so that a run
            may go on with any number of processes.
        first_step: where a resumed run continues.

    Raises:
        ValueError: there are more ranks than clips in a batch.
    """

    def __init__(
        self,
        ids: np.ndarray,
        *,
        clips_per_video: int,
        batch_size: int,
        num_epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
    ) -> None:
        if batch_size < world_size:
            raise ValueError(f"data.batch_size={batch_size} must be at least the {world_size} processes")
        self.ids = ids
        self.clips_per_video = clips_per_video
        self.batch_size = batch_size
        self.seed = seed
        self.rows = -(-batch_size // world_size)  # of each rank, empty places included
        least, num_more = divmod(batch_size, world_size)
        self._offset = rank * least + min(rank, num_more)
        self._num_own = least + (rank < num_more)
        self.steps_per_epoch = num_steps_per_epoch(len(ids), clips_per_video=clips_per_video, batch_size=batch_size)
        self.num_steps = num_epochs * self.steps_per_epoch
        self.first_step = first_step

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        keys, drawn_epoch = np.empty((0, 2), dtype=np.int64), -1
        for step in range(self.first_step, self.num_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != drawn_epoch:
                keys = epoch_keys(self.ids, clips_per_video=self.clips_per_video, seed=self.seed, epoch=epoch)
                drawn_epoch = epoch
            first = number * self.batch_size + self._offset
            own = [Key(epoch, int(row), int(clip)) for row, clip in keys[first : first + self._num_own]]
            yield own + [Key(epoch, NO_CLIP, 0)] * (self.rows - self._num_own)


def draw_windows(
    rng: np.random.Generator,
    video: Span | None,
    audio: Span | None,
    *,
    video_seconds: float,
    audio_seconds: float,
    max_offset_seconds: float,
) -> tuple[float, float]:
    """Random starts of a video window and of an audio window that overlap.

    The longer window is drawn first, anywhere inside its track; the shorter one then lies inside it, or up to
    `max_offset_seconds` before or after it, and inside its own track. A track shorter than its window begins with it.
    Of a clip with one modality only its window is drawn, and both start there.

    Source: AVID-CMA datasets/video_db.py, for audio longer than video. Differs from AVID-CMA: the shorter window
    stays inside its track, and a clip that is too short is looped and padded instead of being replaced by the next
    file.
    """
    if audio is None or video is None:
        track, seconds = (video, video_seconds) if audio is None else (audio, audio_seconds)
        start = _uniform(rng, track.start, track.end - seconds)
        return start, start
    both = Span(max(video.start, audio.start), min(video.end, audio.end))
    if audio_seconds >= video_seconds:
        audio_start = _uniform(rng, both.start, both.end - audio_seconds)
        video_start = _uniform(rng, *_around(audio_start, audio_seconds, video_seconds, max_offset_seconds, video))
    else:
        video_start = _uniform(rng, both.start, both.end - video_seconds)
        audio_start = _uniform(rng, *_around(video_start, video_seconds, audio_seconds, max_offset_seconds, audio))
    return video_start, audio_start


def plan_windows(
    rng: np.random.Generator | None,
    views: Sequence[View],
    data: DataConfig,
    clip: Clip,
    *,
    tracks: Sequence[Track] = (),
    number: int = 0,
    num_clips: int = 1,
) -> dict[str, Window]:
    """Windows of the views of a sample: first the sample's own, then further starts in the order of the views, then
    tracks without replacement.

    A track shorter than a view has one start only, its beginning: such views differ by augmentation alone.

    Args:
        rng: None = evaluation: the `number`-th of `num_clips` windows spread evenly over the clip.
        clip: the span of audio that no view uses is None.
        tracks: of the clip, for views of a TrackFrame.

    Returns:
        {view: window}, absent where the clip lacks what the view shows.
    """
    if clip.holes:
        seconds = max(view.seconds(data) for view in views)
        clip, number, num_clips = _beside_holes(rng, clip, seconds, number=number, num_clips=num_clips)
    spans = {"video": clip.video, "audio": clip.audio}
    first = _first_windows(rng, views, data, clip, number=number, num_clips=num_clips)
    windows: dict[str, Window] = {}
    by_name = {view.name: view for view in views}
    later: dict[tuple, list[float]] = {}  # {changes: starts in the other half, drawn together}
    for view in views:
        span, start, seconds = spans[view.modality], first[view.modality], view.seconds(data)
        if span is None or isinstance(view.when, TrackFrame):
            continue
        box = None
        match view.when:
            case Same(other):
                found, followed = windows.get(other), by_name[other]
                start = start if found is None else found.start
                fits = view.modality == followed.modality and seconds <= followed.seconds(data)
                start = start if found is None or fits else span.clamp(start, seconds)
            case Uniform():
                start = _uniform(rng, span.start, span.end - seconds)
            case Within(most):
                high = max(span.start, span.end - seconds)
                start = _uniform(rng, max(span.start, start - most), min(high, start + most))
            case Beyond(least):
                start = _far(rng, start, span.start, max(span.start, span.end - seconds), least)
            case OtherHalf():
                if view.changes not in later:
                    num = sum(isinstance(each.when, OtherHalf) and each.changes == view.changes for each in views)
                    later[view.changes] = _other_half(rng, start, span, seconds=seconds, num=num)
                start = later[view.changes].pop(0)
            case Spread(crop, num):
                crops = spread_crops(width=clip.width, height=clip.height, num=num, share=data.center_crop)
                box = tuple(crops[crop].tolist())
        windows[view.name] = Window(start, box)
    if clip.video is not None:
        windows |= _track_windows(rng, views, tracks)
    absent = Window(first["audio"], present=False)
    return {view.name: windows.get(view.name, absent) for view in views}


def _beside_holes(
    rng: np.random.Generator | None, clip: Clip, seconds: float, *, number: int, num_clips: int
) -> tuple[Clip, int, int]:
    """One stretch of a clip between its holes, for all windows of a sample: drawn by length, or in evaluation the one
    that the sample falls into, with its number and their number there. Below `seconds` only if no stretch is longer.
    """
    edges = [-np.inf, *itertools.chain.from_iterable(sorted(clip.holes)), np.inf]
    stretches = []  # (seconds, video, audio)
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        cut = [each and Span(max(each.start, low), min(each.end, high)) for each in (clip.video, clip.audio)]
        length = min((span.end - span.start for span in cut if span is not None), default=0.0)
        if length > 0:
            stretches.append((length, *cut))
    stretches = [each for each in stretches if each[0] >= seconds] or stretches
    if not stretches:  # the tracks have no stretch in common
        return clip, number, num_clips
    ends = np.cumsum([length for length, _, _ in stretches])
    if rng is not None:
        chosen = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
    else:
        taken = np.searchsorted(ends, (np.arange(num_clips) + 0.5) / num_clips * ends[-1], side="right")
        chosen = int(taken[number])
        number, num_clips = number - int((taken < chosen).sum()), int((taken == chosen).sum())
    return replace(clip, video=stretches[chosen][1], audio=stretches[chosen][2]), number, num_clips


def _first_windows(
    rng: np.random.Generator | None, views: Sequence[View], data: DataConfig, clip: Clip, *, number: int, num_clips: int
) -> dict[str, float]:
    """Starts of the first window in either modality, long enough for the longest view in it."""
    if clip.video is None and clip.audio is None:
        return {"video": 0.0, "audio": 0.0}
    lengths = {}
    for modality, usual in (("video", data.num_frames / data.fps), ("audio", data.audio_seconds)):
        own = [view for view in views if view.modality == modality and isinstance(view.when, First | Spread)]
        lengths[f"{modality}_seconds"] = max((view.seconds(data) for view in own), default=usual)
    if rng is None:
        video, audio = spread_windows(clip.video, clip.audio, **lengths, clip=number, num_clips=num_clips)
    else:
        video, audio = draw_windows(rng, clip.video, clip.audio, **lengths, max_offset_seconds=data.max_offset_seconds)
    return {"video": video, "audio": audio}


def _other_half(rng: np.random.Generator, first: float, span: Span, *, seconds: float, num: int) -> list[float]:
    """Ascending starts in the half of the track that `first` is not in (SeCo)."""
    low, high = span.start, max(span.start, span.end - seconds)
    middle = (low + high) / 2
    half = (middle, high) if first < middle else (low, middle)
    return sorted(_uniform(rng, *half) for _ in range(num))


def _track_windows(rng: np.random.Generator, views: Sequence[View], tracks: Sequence[Track]) -> dict[str, Window]:
    """Windows of the views of tracked patches that the clip's tracks can fill."""
    wanted = [(view.name, view.when) for view in views if isinstance(view.when, TrackFrame)]
    if not wanted:
        return {}
    num = 1 + max(when.track for _, when in wanted)
    picked = []  # (track, its two frames)
    for track in (tracks[i] for i in rng.permutation(len(tracks))[:num].tolist()):
        last = len(track.times) - 1
        any_two = wanted[0][1].frames == "any"
        pair = sorted(rng.choice(last + 1, 2, replace=False).tolist()) if any_two else [0, last]
        picked.append((track, pair))
    windows = {}
    for name, when in wanted:
        if when.track < len(picked):
            track, pair = picked[when.track]
            frame = pair[when.end]
            windows[name] = Window(float(track.times[frame]), tuple(track.boxes[frame].tolist()), track.number)
    return windows


def _far(rng: np.random.Generator, first: float, low: float, high: float, distance: float) -> float:
    """Uniform over the starts at least `distance` from the first; over all when there are none."""
    before, behind = max(first - distance - low, 0.0), max(high - first - distance, 0.0)
    if before + behind == 0:
        return _uniform(rng, low, high)
    drawn = rng.random() * (before + behind)
    return low + drawn if drawn < before else first + distance + drawn - before


def spread_windows(
    video: Span | None, audio: Span | None, *, video_seconds: float, audio_seconds: float, clip: int, num_clips: int
) -> tuple[float, float]:
    """Starts of the `clip`-th of `num_clips` windows spread evenly over the video (one: the middle), for evaluation.

    The audio window has the same center, moved inside its track. Audio alone is spread over its own.
    """
    if video is None:
        room = max(audio.end - audio_seconds - audio.start, 0.0)
        audio_start = audio.start + room * (clip + 0.5) / num_clips
        return audio_start, audio_start
    room = max(video.end - video_seconds - video.start, 0.0)
    video_start = video.start + room * (clip + 0.5) / num_clips
    audio_start = video_start + (video_seconds - audio_seconds) / 2
    return video_start, audio_start if audio is None else audio.clamp(audio_start, audio_seconds)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in [low, high]; `low` when the interval is empty (the track is shorter than the window)."""
    return float(low + rng.random() * max(high - low, 0.0))


def _around(
    outer: float, outer_seconds: float, inner_seconds: float, offset: float, track: Span
) -> tuple[float, float]:
    """Range of starts for a shorter window around a longer one, inside its own track."""
    low = track.clamp(outer - offset, inner_seconds)
    return low, max(low, track.clamp(outer + outer_seconds + offset - inner_seconds, inner_seconds))
