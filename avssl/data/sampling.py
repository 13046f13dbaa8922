"""Which clips, in which order, and which seconds of them: pure functions of (seed, epoch, step) and of a row of the
manifest.

Nothing here has state or reads a file, so that any number of workers and ranks draws the same clips, and a resumed
run continues in the middle of an epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class Key(NamedTuple):
    """Names one drawn clip; everything random about it follows from (seed, epoch, id, clip)."""

    epoch: int
    id: int
    clip: int  # which of the video's clips of this epoch


class Span(NamedTuple):
    """Seconds [start, end] of a track on the container's clock."""

    start: float
    end: float

    def clamp(self, start: float, duration: float) -> float:
        """The start nearest to `start` at which a window of `duration` lies inside; the span's start when it is too
        short.
        """
        return max(self.start, min(start, self.end - duration))


@dataclass(frozen=True)
class Clips:
    """How many clips of one video a sample holds (views video, video.1, ...), and where the further ones start.

    Laws, each given the start of the first clip:
        uniform: anywhere in the video, each by itself. The interval between two clips is then linearly decreasing, with
            density 2 / M (1 - interval / M) over the M seconds of possible starts: CVRL's law, and SlowFast's and
            VINCE's draws.
        radii: at most `max_seconds` from the first one, but the last `num_far` at least `min_far_seconds` from it
            (TCN); where a video is too short for that, they lie anywhere.
        halves: the next one starts with the first; the rest lie in the other half of the video, in order (SeCo).
    """

    num: int = 1
    law: Literal["uniform", "radii", "halves"] = "uniform"
    max_seconds: float | None = None  # radii
    num_far: int = 0  # radii
    min_far_seconds: float | None = None  # radii


ONE_CLIP = Clips()


@dataclass(frozen=True)
class Patches:
    """Which tracked patches a sample holds: views patch and patch.1 are two frames of one track, patch.2 and patch.3 of
    another one of the same clip."""

    tracks: str  # parquet file of tools/track.py
    num: int = 1  # tracks of one clip
    frames: Literal["ends", "any"] = "ends"  # the first and the last, or any two

    def draw(self, rng: np.random.Generator, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """(track, frame) of every patch view that a clip with tracks of these lengths can fill."""
        picked = []
        for track in rng.permutation(len(lengths))[: self.num].tolist():
            last = lengths[track] - 1
            pair = (0, last) if self.frames == "ends" else sorted(rng.choice(last + 1, 2, replace=False).tolist())
            picked += [(track, frame) for frame in pair]
        return picked


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
        batch_size: over all ranks; rank r takes the r-th block of each batch, as gathering puts them together.
        first_step: where a resumed run continues.
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
        if batch_size % world_size:
            raise ValueError(f"data.batch_size={batch_size} must be a multiple of the {world_size} processes")
        self.ids = ids
        self.clips_per_video = clips_per_video
        self.batch_size = batch_size
        self.seed = seed
        self.rows = batch_size // world_size
        self.offset = rank * self.rows
        self.steps_per_epoch = num_steps_per_epoch(len(ids), clips_per_video=clips_per_video, batch_size=batch_size)
        self.num_steps = num_epochs * self.steps_per_epoch
        self.first_step = first_step

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        keys, drawn_epoch = np.empty((0, 2), dtype=np.int64), -1
        for step in range(self.first_step, self.num_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != drawn_epoch:
                keys = epoch_keys(self.ids, clips_per_video=self.clips_per_video, seed=self.seed, epoch=epoch)
                drawn_epoch = epoch
            first = place * self.batch_size + self.offset
            yield [Key(epoch, int(row), int(clip)) for row, clip in keys[first : first + self.rows]]


def draw_windows(
    rng: np.random.Generator,
    video: Span | None,
    audio: Span | None,
    *,
    video_seconds: float,
    audio_seconds: float,
    max_offset_seconds: float,
) -> tuple[float, float]:
    """Starts of a picture window and of a sound window that overlap, drawn at random.

    The longer window is drawn first, anywhere inside its track; the shorter one then lies inside it, or up to
    `max_offset_seconds` before or after it, and inside its own track. A track shorter than its window begins with it.
    Of a clip without sound, or without picture, only the other window is drawn, and both start there.

    Source: AVID-CMA datasets/video_db.py, for sound longer than picture. Differs from AVID-CMA: the shorter window
    stays inside its track, and a clip that is too short is looped and padded instead of being replaced by the next
    file.
    """
    if audio is None or video is None:
        track, seconds = (video, video_seconds) if audio is None else (audio, audio_seconds)
        start = _uniform(rng, track.start, track.end - seconds)
        return start, start
    both = Span(max(video.start, audio.start), min(video.end, audio.end))
    if audio_seconds >= video_seconds:
        sound = _uniform(rng, both.start, both.end - audio_seconds)
        picture = _uniform(rng, *_around(sound, audio_seconds, video_seconds, max_offset_seconds, video))
    else:
        picture = _uniform(rng, both.start, both.end - video_seconds)
        sound = _uniform(rng, *_around(picture, video_seconds, audio_seconds, max_offset_seconds, audio))
    return picture, sound


def further_starts(rng: np.random.Generator, first: float, video: Span, *, seconds: float, clips: Clips) -> list[float]:
    """Starts of the clips behind the first one, clips.num - 1 of them, inside the track.

    A video shorter than a clip has one start only, its beginning: its clips differ by augmentation alone.

    Args:
        first: where the first clip starts.
        video: track of the pictures.
        seconds: length of a clip.
    """
    low, high = video.start, max(video.start, video.end - seconds)
    match clips.law:
        case "uniform":
            return [_uniform(rng, low, high) for _ in range(clips.num - 1)]
        case "radii":
            num_near = clips.num - 1 - clips.num_far
            near = Span(max(low, first - clips.max_seconds), min(high, first + clips.max_seconds))
            starts = [_uniform(rng, near.start, near.end) for _ in range(num_near)]
            return starts + [_far(rng, first, low, high, clips.min_far_seconds) for _ in range(clips.num_far)]
        case "halves":
            middle = (low + high) / 2
            other = (middle, high) if first < middle else (low, middle)
            return [first, *sorted(_uniform(rng, *other) for _ in range(clips.num - 2))][: clips.num - 1]


def _far(rng: np.random.Generator, first: float, low: float, high: float, distance: float) -> float:
    """Uniform over the starts at least `distance` from the first; over all when there are none."""
    before, behind = max(first - distance - low, 0.0), max(high - first - distance, 0.0)
    if before + behind == 0:
        return _uniform(rng, low, high)
    place = rng.random() * (before + behind)
    return low + place if place < before else first + distance + place - before


def spread_windows(
    video: Span | None, audio: Span | None, *, video_seconds: float, audio_seconds: float, clip: int, num_clips: int
) -> tuple[float, float]:
    """Starts of the `clip`-th of `num_clips` windows spread evenly over the picture (one clip: the middle), for
    evaluation.

    The sound window has the same centre as the picture's, moved inside its track. Sound alone is spread over its own.
    """
    if video is None:
        room = max(audio.end - audio_seconds - audio.start, 0.0)
        sound = audio.start + room * (clip + 0.5) / num_clips
        return sound, sound
    room = max(video.end - video_seconds - video.start, 0.0)
    picture = video.start + room * (clip + 0.5) / num_clips
    sound = picture + (video_seconds - audio_seconds) / 2
    return picture, sound if audio is None else audio.clamp(sound, audio_seconds)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in [low, high]; `low` when the interval is empty (the track is shorter than the window)."""
    return float(low + rng.random() * max(high - low, 0.0))


def _around(
    outer: float, outer_seconds: float, inner_seconds: float, offset: float, track: Span
) -> tuple[float, float]:
    """Range of starts for a shorter window around a longer one, inside its own track."""
    low = track.clamp(outer - offset, inner_seconds)
    return low, max(low, track.clamp(outer + outer_seconds + offset - inner_seconds, inner_seconds))
