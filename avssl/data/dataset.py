"""Clips as samples: all views of a clip are planned, then its file is read once. Runs in worker processes.

A file that cannot be read becomes a masked row: zeros with id -1 that match nothing; its name and reason are in
batch.errors. Differs from AVID-CMA, which silently takes the next file. A clip without one modality keeps its id, with
zeros and has_audio or has_video false.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from avssl.config import ConfigError, DataConfig
from avssl.data.manifest import EXCHANGED, Manifest
from avssl.data.sampling import NO_CLIP, Key, plan_windows
from avssl.data.tracks import Tracks
from avssl.media.cache import ClipCache
from avssl.media.decode import Frames, Samples, read_clip
from avssl.media.decoders import DecoderMissingError, describe
from avssl.media.probe import content_key
from avssl.media.reader import DecodeError, Limits
from avssl.structs import MODALITIES, SMALL_BYTES, Batch, Sample
from avssl.transforms.recipes import Clip, Plan, Window
from avssl.transforms.views import First, Same, Spread, TrackFrame, View, check_views
from avssl.windows import Span

CLOSED = "the manifest marks it"  # begins the reason of a file that is not opened


class ClipNote(NamedTuple):
    """The clip that a worker process reads."""

    pid: int
    id: int  # row of the manifest, -1 between clips
    number: int  # of clips that the worker has begun


class ClipDataset(Dataset[Sample]):
    """Maps a Key (epoch, id, clip) to a Sample.

    Args:
        manifest: its rows are the instances.
        data: lengths, rates and augmentation.
        views: of each clip; all are read from one opened file.
        tracks: for views of tracked patches.
        num_eval_clips: None = training, windows and parameters are drawn; a number = evaluation: that many clips spread
            evenly over the video, no augmentation.

    Raises:
        ConfigError: data.decoder cannot be used.
        ValueError: a view cannot be planned (TracksError, which is one: the tracks do not fit the manifest).
    """

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        views: Sequence[View],
        *,
        tracks: Tracks | None = None,
        seed: int = 0,
        num_eval_clips: int | None = None,
    ) -> None:
        check_decoder(data)
        check_views(views, data, evaluation=num_eval_clips is not None)
        self.data = data
        self.views = tuple(views)
        self.tracks = tracks
        self._uses_audio = any(view.modality == "audio" for view in self.views)
        self.seed = seed
        self.num_eval_clips = num_eval_clips
        self.limits = Limits(max_pixels=data.max_pixels, max_seconds=data.max_seconds)
        self.opener = ClipCache(data.cache_gigabytes * 1e9, limits=self.limits).open if data.cache_gigabytes else None
        self._notes: torch.Tensor | None = None  # (workers, 3) int64 ClipNote
        self.manifest = manifest  # text stays in Arrow: workers that touch Python objects get copies of their pages
        self._unchanged = np.zeros(len(manifest), dtype=bool)  # files that this process has seen to be the manifest's
        self.has_video = manifest.has_video
        self.has_audio = manifest.has_audio & manifest.usable()  # nothing is read of a row in quarantine
        self.sizes = np.stack([manifest.column("width"), manifest.column("height")], axis=1)
        self.holes = manifest.holes
        self.bounds = {track: manifest.bounds(track) for track in MODALITIES}
        if tracks is not None:
            tracks.check_rows(self.bounds["video"], path=track_table(self.views))

    def note_clips(self, num_workers: int) -> None:
        """From now on each worker process records its clip in shared memory, for `notes`."""
        self._notes = torch.full((num_workers, 3), -1).share_memory_()

    def notes(self) -> list[ClipNote]:
        """The last note of each worker process, also of dead ones."""
        if self._notes is None:
            return []
        return [ClipNote(*note) for note in self._notes.tolist()]

    def __getitem__(self, key: Key) -> Sample:
        worker = get_worker_info()
        if worker is None or self._notes is None:
            return self._sample(key)
        note = self._notes[worker.id]
        note.copy_(torch.tensor([os.getpid(), key.id, int(note[2]) + 1]))
        sample = self._sample(key)
        note[1] = -1
        return sample

    def _sample(self, key: Key) -> Sample:
        if key.id == NO_CLIP:  # zeros in the shapes that row 0 would have
            _, windows, plans = self._planned(key._replace(id=0))
            return self._assemble(key, windows, plans, {})
        clip, windows, plans = self._planned(key)
        path = self.manifest.path(key.id)
        if clip.video is None and not self.has_audio[key.id]:
            why = f"{CLOSED} {self._fact('status', key.id)}, {self._fact('reason', key.id)}"
            return self._assemble(key, windows, plans, {}, error=f"{path}: {why}")
        wanted = [view for view in self.views if windows[view.name].present]
        videos = [
            (view.name, window) for view in wanted if view.modality == "video" for window in plans[view.name].windows
        ]
        audios = [(view, window) for view in wanted if view.modality == "audio" for window in plans[view.name].windows]
        order = [name for name, _ in videos]
        try:
            self._check_content(key.id, path)
            frames, samples = read_clip(
                path,
                video=[window for _, window in videos],
                audio=[dataclasses.replace(window, follows=self._followed(view, order)) for view, window in audios],
                decoder=self.data.decoder,
                opener=self.opener,
                limits=self.limits,
            )
        except DecodeError as error:
            return self._assemble(key, windows, plans, {}, error=str(error))
        reads: dict[str, list[Frames | Samples]] = {}
        for name, read in zip([*order, *(view.name for view, _ in audios)], [*frames, *samples], strict=True):
            reads.setdefault(name, []).append(read)
        return self._assemble(key, windows, plans, reads)

    def _planned(self, key: Key) -> tuple[Clip, dict[str, Window], dict[str, Plan]]:
        """The clip as the manifest knows it, and {view: where it lies} and {view: what is read and drawn for it}."""
        rng, clip = self._generator(key), self._clip(key.id)
        windows = self._plan_windows(rng, key, clip)
        plans = {
            view.name: view.made.plan(rng, view.settings(self.data), clip, windows[view.name]) for view in self.views
        }
        return clip, windows, plans

    def _fact(self, name: str, id: int) -> str | None:
        return self.manifest.table.column(name)[id].as_py()

    def _check_content(self, id: int, path: Path) -> None:
        """Raise DecodeError unless the file is the one that the manifest was written from; once in each process."""
        if self._unchanged[id]:
            return
        try:
            self._unchanged[id] = self._fact("content_key", id) in (None, "", content_key(path))
        except OSError:
            return  # whoever reads it says why
        if not self._unchanged[id]:
            raise DecodeError(path, EXCHANGED)

    def _assemble(
        self,
        key: Key,
        windows: Mapping[str, Window],
        plans: Mapping[str, Plan],
        reads: Mapping[str, list[Frames | Samples]],
        *,
        error: str | None = None,
    ) -> Sample:
        """A sample with zeros for all that was not read; with an error, for the whole clip."""

        def array(view: View) -> np.ndarray:
            shape = plans[view.name].shape
            if view.name not in reads:
                return np.zeros(shape, dtype=np.uint8 if view.modality == "video" else np.float32)
            parts = [read.data for read in reads[view.name]]
            return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)

        def start(name: str) -> float:
            return reads[name][0].start if name in reads else windows[name].start

        read = error is None and key.id != NO_CLIP
        return Sample(
            id=key.id if read else -1,
            video={view.name: array(view) for view in self.views if view.modality == "video"},
            audio={view.name: array(view) for view in self.views if view.modality == "audio"},
            start={view.name: start(view.name) if read else 0.0 for view in self.views},
            has_audio=read and bool(self.has_audio[key.id]),
            has_video=read and bool(self.has_video[key.id]),
            params={name: plan.params for name, plan in plans.items()},
            padded={view.name: any(each.padded for each in reads.get(view.name, [])) for view in self.views},
            target=self._track_numbers(windows if read else {}),
            error=error,
        )

    def _followed(self, view: View, order: Sequence[str]) -> int | None:
        """Index, among the windows of frames, of the one whose true start the audio of a view follows."""
        named = {each.name: each for each in self.views}
        while isinstance(view.when, Same):
            view = named[view.when.view]
            if view.modality == "video":
                return order.index(view.name) if view.name in order else None
        shared = [each.name for each in self.views if isinstance(each.when, First | Spread)]
        names = shared if isinstance(view.when, First) else []
        return next((order.index(name) for name in names if name in order), None)

    def _track_numbers(self, windows: Mapping[str, Window]) -> dict[str, np.ndarray]:
        """Number of each track in a sample, -1 where its clip has fewer."""
        shown = {view.when.track: view.name for view in self.views if isinstance(view.when, TrackFrame)}
        if not shown:
            return {}
        names = [shown.get(track) for track in range(1 + max(shown))]
        return {"track": np.array([windows[name].track if name in windows else -1 for name in names])}

    def windows(self, key: Key) -> dict[str, Window]:
        """Where each view of a sample lies, as far as the manifest knows."""
        return self._plan_windows(self._generator(key), key, self._clip(key.id))

    def _generator(self, key: Key) -> np.random.Generator | None:
        return (
            None if self.num_eval_clips is not None else np.random.default_rng((self.seed, key.epoch, key.id, key.clip))
        )

    def _clip(self, id: int) -> Clip:
        """Size and spans of a row by the manifest; audio that no view uses is left out."""
        spans = [
            Span(*self.bounds[track][id].tolist()) if present else None
            for track, present in (("video", self.has_video[id]), ("audio", self._uses_audio and self.has_audio[id]))
        ]
        # without video there is nothing to crop: any size does
        width, height = (int(value) for value in self.sizes[id]) if spans[0] else (self.data.size, self.data.size)
        return Clip(width, height, *spans, self.holes.get(id, ()))

    def _plan_windows(self, rng: np.random.Generator | None, key: Key, clip: Clip) -> dict[str, Window]:
        tracks = [] if self.tracks is None else self.tracks.of(key.id)
        return plan_windows(
            rng, self.views, self.data, clip, tracks=tracks, number=key.clip, num_clips=self.num_eval_clips or 1
        )


def track_table(views: Sequence[View]) -> str | None:
    """The file of tracks that views use."""
    return next((view.when.table for view in views if isinstance(view.when, TrackFrame)), None)


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
