"""Clips as samples: which seconds and which parameters (drawn), then the pictures and sounds (decoded). Runs in
worker processes.

A file that cannot be read becomes an empty place: zeros with id -1 that match nothing, and its name and reason
travel with the batch.
It is never replaced by another clip. Differs from AVID-CMA, where the next file takes its place silently.
A clip that lacks one side keeps its id: zeros stand for that side, and has_audio or has_video says so.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from avssl.config import ConfigError, DataConfig
from avssl.data.manifest import Manifest
from avssl.data.sampling import ONE_CLIP, Clips, Key, Patches, Span, draw_windows, further_starts, spread_windows
from avssl.data.tracks import Tracks
from avssl.media.cache import ClipCache
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.decoders import DecoderMissingError, describe
from avssl.media.reader import DecodeError, Limits
from avssl.structs import SMALL_BYTES, Batch, Sample
from avssl.transforms.video import spread_crops
from avssl.transforms.views import number_of, numbered, view_of

CLOSED = "the manifest marks it"  # begins the reason why a file is not even opened


class ClipNote(NamedTuple):
    """What a worker process is doing."""

    pid: int
    id: int  # row of the manifest, -1 between clips
    since: float  # seconds since the epoch


class Place(NamedTuple):
    """Where in a clip a view lies."""

    start: float  # seconds
    box: tuple[float, float, float, float] | None = None  # top, left, height, width as fractions; None = drawn
    track: int = -1  # number of the track that the box is of


class ClipDataset(Dataset[Sample]):
    """Maps a Key (epoch, id, clip) to a Sample.

    Args:
        manifest: its rows are the instances.
        data: lengths, rates and augmentation.
        views: names of views that are wanted. All of a sample comes out of one opened file; sound overlaps the first
            clip.
        clips: how many clips of a video a sample holds, and where they lie.
        patches: which tracked patches it holds, and
        tracks: the tracks that they are cut out of.
        seed: of the run.
        num_eval_clips: None = training, seconds and parameters drawn at random; a number = evaluation: that many
            clips spread evenly over the video, no augmentation. Views video, video.1, ... are then crops of one clip,
            spread over the long side of the picture; one alone is the centre.

    Raises:
        ConfigError: data.decoder cannot be used.
        ValueError: a value of `data` is out of range (TracksError, which is one: the tracks do not fit the manifest).
    """

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        views: Sequence[str],
        *,
        clips: Clips = ONE_CLIP,
        patches: Patches | None = None,
        tracks: Tracks | None = None,
        seed: int = 0,
        num_eval_clips: int | None = None,
    ) -> None:
        check_decoder(data)
        self.data = data
        self.views = tuple(views)
        self.clips, self.patches, self.tracks = clips, patches, tracks
        self._hears = any(view_of(view).modality == "audio" for view in self.views)
        self.seed = seed
        self.num_eval_clips = num_eval_clips
        self.limits = Limits(max_pixels=data.max_pixels, max_seconds=data.max_seconds)
        self.opener = ClipCache(data.cache_gigabytes * 1e9, limits=self.limits).open if data.cache_gigabytes else None
        self._notes: torch.Tensor | None = None  # (workers, 3) process, row of the manifest, since when
        self.root = manifest.root
        self.paths = manifest.column("path")
        self.has_video = manifest.has_video
        self.has_audio = manifest.has_audio & manifest.usable()  # nothing is read of a row in quarantine
        self.status, self.reasons = manifest.column("status"), manifest.column("reason")
        self.sizes = np.stack([manifest.column("width"), manifest.column("height")], axis=1)
        self.bounds = {track: manifest.bounds(track) for track in ("video", "audio")}
        self._check_views()
        if tracks is not None:
            tracks.check_rows(self.bounds["video"], path=patches.tracks)

    def _check_views(self) -> None:
        """Raise ValueError for values of `data` that no view can be drawn with, before any worker starts."""
        rng = None if self.num_eval_clips is not None else np.random.default_rng(0)
        for view in self.views:
            view_of(view).draw(rng, self.data, width=self.data.size, height=self.data.size, number=number_of(view))

    def note_clips(self, num_workers: int) -> None:
        """From now on each of so many worker processes notes which clip it is at, where the main process can read it:
        see `notes`."""
        self._notes = torch.full((num_workers, 3), -1.0, dtype=torch.float64).share_memory_()

    def notes(self) -> list[ClipNote]:
        """What the worker processes noted last, also those that are dead."""
        if self._notes is None:
            return []
        return [ClipNote(int(pid), int(id), since) for pid, id, since in self._notes.tolist()]

    def __getitem__(self, key: Key) -> Sample:
        worker = get_worker_info()
        if worker is None or self._notes is None:
            return self._sample(key)
        self._notes[worker.id] = torch.tensor([os.getpid(), key.id, time.time()], dtype=torch.float64)
        sample = self._sample(key)
        self._notes[worker.id, 1] = -1
        return sample

    def _sample(self, key: Key) -> Sample:
        rng = self._generator(key)
        has_audio, has_video = bool(self.has_audio[key.id]), bool(self.has_video[key.id])
        starts = self._starts(rng, key)
        places = self._places(rng, key, starts)
        # without a picture there is nothing to crop: any size does
        width, height = (int(value) for value in self.sizes[key.id]) if has_video else (self.data.size, self.data.size)
        params = {
            view: view_of(view).draw(rng, self.data, width=width, height=height, number=number_of(view))
            for view in self.views
        }
        if not (has_audio or has_video):
            why = f"{CLOSED} {self.status[key.id]}, {self.reasons[key.id]}"
            return self._empty(params, f"{self.root / self.paths[key.id]}: {why}")
        videos = [view for view in self.views if view in places and view_of(view).modality == "video"]
        audios = [view for view in self.views if view in places and view_of(view).modality == "audio"]
        try:
            frames, samples = read_clip(
                self.root / self.paths[key.id],
                video=[self._video_window(view, params[view], places[view]) for view in videos],
                audio=[
                    AudioWindow(
                        start=places[view].start,
                        duration=self.data.audio_seconds,
                        sample_rate=self.data.sample_rate,
                        follows=videos.index("video") if "video" in videos else None,
                    )
                    for view in audios
                ],
                decoder=self.data.decoder,
                opener=self.opener,
                limits=self.limits,
            )
        except DecodeError as error:
            return self._empty(params, str(error))
        reads = dict(zip(videos + audios, [*frames, *samples], strict=True))
        return Sample(
            id=key.id,
            video={
                view: reads[view].data if view in reads else self._darkness(view)
                for view in self.views
                if view_of(view).modality == "video"
            },
            audio={
                view: reads[view].data if view in reads else self._silence()
                for view in self.views
                if view_of(view).modality == "audio"
            },
            start={view: reads[view].start if view in reads else starts[1] for view in self.views},
            has_audio=has_audio,
            has_video=has_video,
            params=params,
            padded={view: view in reads and reads[view].padded for view in self.views},
            target=self._track_numbers(places),
        )

    def _places(self, rng: np.random.Generator | None, key: Key, starts: tuple[float, float]) -> dict[str, Place]:
        """Where each view lies that the clip can fill."""
        places = {}
        if self.has_video[key.id]:
            first = starts[0]
            places |= {view: Place(first) for view in self.views if view in ("video", "walk")}
            if rng is None:
                places |= self._crops(key.id, first)
            if self.clips.num > 1:
                seconds, video = self.data.num_frames / self.data.fps, self._span(key.id, "video")
                further = further_starts(rng, first, video, seconds=seconds, clips=self.clips)
                places |= {numbered("video", number): Place(start) for number, start in enumerate(further, 1)}
            if self.patches is not None:
                tracks = self.tracks.of(key.id)
                picked = self.patches.draw(rng, [len(track.times) for track in tracks])
                for number, (track, frame) in enumerate(picked):
                    found = tracks[track]
                    box = tuple(found.boxes[frame].tolist())
                    places[numbered("patch", number)] = Place(float(found.times[frame]), box, found.number)
        if self.has_audio[key.id]:
            places |= {view: Place(starts[1]) for view in self.views if view_of(view).modality == "audio"}
        return places

    def _crops(self, id: int, start: float) -> dict[str, Place]:
        """Where the crops of an evaluation clip lie."""
        names = [view for view in self.views if view.partition(".")[0] == "video"]
        width, height = self.sizes[id].tolist()
        boxes = spread_crops(width=int(width), height=int(height), num=len(names)) if names else []
        return {name: Place(start, tuple(box)) for name, box in zip(names, boxes, strict=True)}

    def _video_window(self, view: str, params: Mapping[str, np.ndarray], place: Place) -> VideoWindow:
        size = self._shape(view)[1]
        return VideoWindow(
            start=place.start,
            duration=self._shape(view)[0] / self.data.fps,
            fps=self.data.fps,
            crop=tuple(float(edge) for edge in params["crop"]) if place.box is None else place.box,
            size=(size, size),
        )

    def _track_numbers(self, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
        """Number of each track that a sample shows, -1 where its clip has no more."""
        if self.patches is None:
            return {}
        shown = [places.get(numbered("patch", 2 * i)) for i in range(self.patches.num)]
        return {"track": np.array([-1 if place is None else place.track for place in shown])}

    def starts(self, key: Key) -> tuple[float, float]:
        """Seconds at which the picture's and the sound's window begin, as far as the manifest knows."""
        return self._starts(self._generator(key), key)

    def _generator(self, key: Key) -> np.random.Generator | None:
        return (
            None if self.num_eval_clips is not None else np.random.default_rng((self.seed, key.epoch, key.id, key.clip))
        )

    def _starts(self, rng: np.random.Generator | None, key: Key) -> tuple[float, float]:
        hears = self._hears and self.has_audio[key.id]
        spans = (
            self._span(key.id, "video") if self.has_video[key.id] else None,
            self._span(key.id, "audio") if hears else None,
        )
        if spans == (None, None):
            return 0.0, 0.0
        lengths = {"video_seconds": self.data.num_frames / self.data.fps, "audio_seconds": self.data.audio_seconds}
        if rng is None:
            return spread_windows(*spans, **lengths, clip=key.clip, num_clips=self.num_eval_clips or 1)
        return draw_windows(rng, *spans, **lengths, max_offset_seconds=self.data.max_offset_seconds)

    def _span(self, id: int, track: Literal["video", "audio"]) -> Span:
        """Picture or sound of a row."""
        return Span(*self.bounds[track][id].tolist())

    def _shape(self, view: str) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of a view of pictures."""
        if view.startswith("patch"):
            return 1, self.data.patch_size, self.data.patch_size, 3
        return self.data.num_frames, self.data.size, self.data.size, 3

    def _silence(self) -> np.ndarray:
        return np.zeros(round(self.data.audio_seconds * self.data.sample_rate), dtype=np.float32)

    def _darkness(self, view: str) -> np.ndarray:
        return np.zeros(self._shape(view), dtype=np.uint8)

    def _empty(self, params: dict[str, dict[str, np.ndarray]], error: str) -> Sample:
        return Sample(
            id=-1,
            video={view: self._darkness(view) for view in self.views if view_of(view).modality == "video"},
            audio={view: self._silence() for view in self.views if view_of(view).modality == "audio"},
            start={view: 0.0 for view in self.views},
            has_audio=False,
            has_video=False,
            params=params,
            padded={view: False for view in self.views},
            target=self._track_numbers({}),
            error=error,
        )


def check_decoder(data: DataConfig) -> dict[str, str]:
    """Name and version of data.decoder, and the version of the FFmpeg in it.

    Raises:
        ConfigError: it is not installed, or does not go with the other settings.
    """
    if data.decoder != "pyav" and data.cache_gigabytes:
        raise ConfigError(
            f"data.cache_gigabytes={data.cache_gigabytes} keeps clips that PyAV has decoded, and data.decoder="
            f"{data.decoder}: set data.decoder=pyav, or data.cache_gigabytes=0"
        )
    try:
        return describe(data.decoder)
    except DecoderMissingError as error:
        raise ConfigError(f"data.decoder={data.decoder}: {error}") from error


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch: tensors with a leading B; in a worker process straight into shared memory."""

    def stacked(groups: Sequence[Mapping[str, np.ndarray | float | int | bool]]) -> dict[str, torch.Tensor]:
        return {name: _stacked([np.asarray(group[name]) for group in groups]) for name in groups[0]}

    def gathered(name: str) -> dict[str, torch.Tensor]:
        return stacked([getattr(sample, name) for sample in samples])

    return Batch(
        video=gathered("video"),
        audio=gathered("audio"),
        ids=torch.tensor([sample.id for sample in samples]),
        start={view: value.double() for view, value in gathered("start").items()},
        has_audio=torch.tensor([sample.has_audio for sample in samples]),
        has_video=torch.tensor([sample.has_video for sample in samples]),
        params={view: stacked([sample.params[view] for sample in samples]) for view in samples[0].params},
        padded=gathered("padded"),
        target=gathered("target"),
        errors=tuple(sample.error for sample in samples if sample.error),
    )


def _stacked(values: Sequence[np.ndarray]) -> torch.Tensor:
    is_small = len(values) * values[0].nbytes <= SMALL_BYTES
    return torch.from_numpy(np.stack(values)) if is_small else default_collate(values)


def apply_views(batch: Batch, data: DataConfig) -> Batch:
    """The batch as the encoders take it: every view's recipe applied on the batch's device.

    Returns:
        video {view: (B, 3, T, H, W)} and audio {view: (B, 1, S, F)}, float32.
    """
    return dataclasses.replace(
        batch,
        video={view: view_of(view).apply(value, batch.params[view], data) for view, value in batch.video.items()},
        audio={view: view_of(view).apply(value, batch.params[view], data) for view, value in batch.audio.items()},
    )
