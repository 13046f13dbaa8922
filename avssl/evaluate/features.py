"""Outputs of frozen encoders and heads: several clips of a video, apart or averaged, in memory or kept on disk.

Letters: n videos, C clips per video, D feature.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from avssl import distributed
from avssl.data.dataset import ClipDataset, check_decoder
from avssl.data.loader import WorkerLost, build_loader, lost_workers_named
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.files import WriteError, cached_folder, digest
from avssl.models.heads import describe_maps, side_by_side
from avssl.structs import MODALITIES
from avssl.transforms.views import Spread, View, apply_views
from avssl.weights.load import Pretrained

BATCH_CLIPS = 32  # clips that go through the towers together
VIEWED = (  # what of the data section an evaluation view depends on
    *("decoder", "max_pixels", "max_seconds", "num_frames", "fps", "size", "audio_seconds", "sample_rate"),
    *("spectrogram", "n_fft", "num_mels", "hop_seconds", "pixel_mean", "pixel_std"),
)


def _has(self: "Extracted | ClipVectors", modality: Literal["video", "audio", "both"]) -> np.ndarray:
    """(n,) bool: videos that have this modality."""
    has = {"video": self.has_video, "audio": self.has_audio, "both": self.has_video & self.has_audio}
    return has[modality]


@dataclass(frozen=True)
class Extracted:
    """Outputs for n videos: zeros where a video lacks the modality. Videos that could not be read are left out and
    stand in `errors` instead."""

    ids: np.ndarray  # (n,) int64 rows of the manifest
    has_audio: np.ndarray  # (n,) bool
    has_video: np.ndarray  # (n,) bool
    embedding: dict[str, np.ndarray]  # {video, audio: (n, D) float32 unit length}: outputs of the heads
    features: dict[str, np.ndarray]  # {video, audio: (n, dim) float32}: outputs of the trunks
    errors: dict[int, str]  # {id: reason}

    def take(self, keep: np.ndarray) -> "Extracted":
        """Only the videos marked in `keep` (n,) bool."""
        return dataclasses.replace(
            self,
            ids=self.ids[keep],
            has_audio=self.has_audio[keep],
            has_video=self.has_video[keep],
            embedding={name: value[keep] for name, value in self.embedding.items()},
            features={name: value[keep] for name, value in self.features.items()},
        )

    has = _has


def extract(
    pretrained: Pretrained,
    manifest: Manifest,
    ids: Sequence[int] | np.ndarray,
    *,
    num_clips: int = 3,
    progress: str | None = None,
) -> Extracted:
    """Average the towers' outputs over `num_clips` clips spread over each video. A run that has one tower only sees the
    other side of no clip.

    Args:
        ids: (n,) rows of the manifest, any manifest; files of sound alone too.
        num_clips: C, clips per video.
        progress: words before the progress bar; None = no bar.

    Raises:
        ValueError: num_clips < 1, or a worker process died or hung.
    """
    return clip_vectors(pretrained, manifest, ids, num_clips=num_clips, progress=progress).videos()


class Rows:
    """Some rows of an array, read from disk when they are asked for by index, by slice or by (rows, columns)."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):
            return self.array[(self.rows[index[0]], *index[1:])]
        return self.array[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.rows], dtype=dtype)


@dataclass(frozen=True)
class ClipVectors:
    """What the towers say of every clip of n videos, apart. V views of a video: its clips, and of pictures each crop of
    each clip, the crops of one clip together. Rows of a side that a video lacks, or that could not be read, are zeros.
    """

    ids: np.ndarray  # (n,) int64 rows of the manifest, all that were asked for
    readable: np.ndarray  # (n,) bool
    has_audio: np.ndarray  # (n,) bool; False where the video could not be read
    has_video: np.ndarray  # (n,) bool; likewise
    vectors: dict[str, dict[str, np.ndarray]]  # {video, audio: {pool, other maps: (n, V, d) float32}}, trunks
    embedding: dict[str, np.ndarray]  # {video, audio: (n, V, D) float32 unit length}, where there are heads
    errors: dict[int, str]  # {id: reason}

    has = _has

    def maps(self, modality: Literal["video", "audio", "both"], rows: np.ndarray) -> dict[str, "Rows | np.ndarray"]:
        """{map: (m, V, d)} at these positions (m,); of both sides {pool}: pooled outputs side by side, a clip's sound
        beside each of its crops."""
        if modality != "both":
            return {name: Rows(each, rows) for name, each in self.vectors[modality].items()}
        video, audio = (torch.from_numpy(self.vectors[name]["pool"][rows]) for name in MODALITIES)
        audio = audio.repeat_interleave(video.shape[1] // audio.shape[1], dim=1)
        return {"pool": side_by_side(video.flatten(0, 1), audio.flatten(0, 1)).unflatten(0, video.shape[:2]).numpy()}

    def videos(self) -> Extracted:
        """The mean over the views of each video that could be read; the mean of unit vectors is made one again."""
        keep = self.readable

        def mean(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            means = {modality: each[keep].mean(axis=1) for modality, each in views.items()}
            return {
                modality: means.get(modality, np.zeros_like(next(iter(means.values()))))
                for modality in MODALITIES
                if means
            }

        return Extracted(
            ids=self.ids[keep],
            has_audio=self.has_audio[keep],
            has_video=self.has_video[keep],
            embedding={
                modality: each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12)
                for modality, each in mean(self.embedding).items()
            },
            features=mean({modality: maps["pool"] for modality, maps in self.vectors.items()}),
            errors=self.errors,
        )

    def averaged(self) -> "ClipVectors":
        """The mean over the views of each video, as its only view."""

        def mean(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: each.mean(axis=1, keepdims=True) for name, each in views.items()}

        vectors = {modality: mean(maps) for modality, maps in self.vectors.items()}
        return dataclasses.replace(self, vectors=vectors, embedding=mean(self.embedding))


def clip_vectors(
    pretrained: Pretrained,
    manifest: Manifest,
    ids: Sequence[int] | np.ndarray,
    *,
    num_clips: int,
    num_crops: int = 1,
    maps: bool = False,
    folder: Path | None = None,
    progress: str | None = None,
) -> ClipVectors:
    """The towers' outputs for `num_clips` clips spread over each video, in evaluation mode; nothing of a tower changes.

    Args:
        ids: (n,) rows of the manifest, unreadable ones too.
        num_clips: C, clips per video.
        num_crops: of each clip, spread over the long side of the picture.
        maps: all maps of the encoders, as `describe_maps` makes them vectors, not the pooled output alone.
        folder: where to keep them, or to find them from before; they are then read from disk as they are needed. With
            several processes each computes its share and writes it there. None = in memory, all by this process.
        progress: words before the progress bar; None = no bar.

    Raises:
        ValueError: num_clips or num_crops < 1, or a worker process died or hung.
        WriteError: the folder cannot be written to.
    """
    for name, number in (("num_clips", num_clips), ("num_crops", num_crops)):
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
    looks = _Looks(pretrained, manifest, np.asarray(ids, dtype=np.int64), num_clips, num_crops, maps, progress)
    if folder is None:
        groups = looks.look(share=0, num_shares=1)
        return looks.collect(groups, lambda _, rows: np.zeros((len(looks.ids), *rows.shape[1:]), rows.dtype))
    return _cached(looks, folder)


@dataclass(frozen=True)
class _Looks:
    """How to look at videos, a group of them at a time."""

    pretrained: Pretrained
    manifest: Manifest
    ids: np.ndarray
    num_clips: int
    num_crops: int
    maps: bool
    progress: str | None

    def look(self, *, share: int, num_shares: int) -> Iterator[tuple[slice, dict[str, np.ndarray], dict[int, str]]]:
        """Yield (place in ids, {name: (g, ...)}, errors) of every group that is this share's: the same groups for any
        number of shares, so that a vector does not depend on it."""
        pretrained, modalities = self.pretrained, tuple(self.pretrained.encoders)
        crops = [View(f"crop {i}", when=Spread(i, self.num_crops)) for i in range(self.num_crops)]
        views = {"video": crops, "audio": [View("audio", recipe="audio")]}
        wanted = [view for modality in modalities for view in views[modality]]
        dataset = ClipDataset(
            self.manifest,
            pretrained.data,
            wanted,
            num_eval_clips=self.num_clips,
        )
        step = max(1, BATCH_CLIPS // self.num_clips)
        places = [slice(i, min(i + step, len(self.ids))) for i in range(0, len(self.ids), step)][share::num_shares]
        keys = [[Key(0, int(row), c) for row in self.ids[place] for c in range(self.num_clips)] for place in places]
        loader = build_loader(dataset, keys, pretrained.data, device=pretrained.device)
        total = sum(place.stop - place.start for place in places)
        bar = tqdm(total=total, desc=self.progress, unit="video", disable=self.progress is None, mininterval=1)
        with _lost_explained(dataset), bar, torch.inference_mode():
            for place, batch in zip(places, loader, strict=True):
                group = self.ids[place]
                batch = apply_views(batch.to(pretrained.device), wanted, pretrained.data)
                lost = (batch.ids < 0).reshape(len(group), self.num_clips)
                readable = ~lost.any(dim=1)
                reasons, errors = iter(batch.errors), {}
                for row, number in zip(group.tolist(), lost.sum(dim=1).tolist(), strict=True):
                    for _ in range(number):
                        errors.setdefault(row, next(reasons))
                found = {"readable": readable}
                for modality in modalities:
                    present = batch.has_video if modality == "video" else batch.has_audio
                    found[f"has.{modality}"] = here = present.reshape(len(group), -1)[:, 0] & readable
                    seen: dict[str, list[Tensor]] = {}
                    for view in views[modality]:
                        for name, value in self._vectors(modality, getattr(batch, modality)[view.name]).items():
                            seen.setdefault(name, []).append(value)
                    for name, values in seen.items():  # each (g C, d); the crops of a clip become neighbours
                        each = torch.stack(values, dim=1).reshape(len(group), -1, values[0].shape[1])  # (g, V, d)
                        found[name] = torch.where(here[:, None, None], each, 0.0)
                        if not found[name].isfinite().all():
                            raise ValueError(
                                f"the {modality} encoder of {pretrained.path} gives NaN or infinity ({name}): its weights "
                                "are broken, go back to an earlier checkpoint"
                            )
                yield place, {name: value.cpu().numpy() for name, value in found.items()}, errors
                bar.update(len(group))

    def _vectors(self, modality: str, x: Tensor) -> dict[str, Tensor]:
        """{modality.map: (B, d)} of clips, and head.modality: (B, D) where there is a head."""
        encoder = self.pretrained.encoders[modality]
        vectors = describe_maps(encoder.forward_features(x)) if self.maps else {"pool": encoder(x)}
        named = {f"{modality}.{name}": value for name, value in vectors.items()}
        if modality in self.pretrained.heads:
            named[f"head.{modality}"] = F.normalize(self.pretrained.heads[modality](vectors["pool"]), dim=1)
        return named

    def collect(
        self,
        groups: Iterable[tuple[slice, dict[str, np.ndarray], dict[int, str]]],
        make: Callable[[str, np.ndarray], np.ndarray],
    ) -> ClipVectors:
        """Put groups into arrays for all videos, which make(name, rows of the first group) gives."""
        arrays: dict[str, np.ndarray] = {}
        errors: dict[int, str] = {}
        for place, found, lost in groups:
            for name, value in found.items():
                if name not in arrays:
                    arrays[name] = make(name, value)
                arrays[name][place] = value
            errors |= lost
        return self.arranged(arrays, errors)

    def arranged(self, arrays: Mapping[str, np.ndarray], errors: dict[int, str]) -> ClipVectors:
        none = np.zeros(len(self.ids), dtype=bool)
        return ClipVectors(
            ids=self.ids,
            readable=arrays.get("readable", none),
            has_audio=arrays.get("has.audio", none),
            has_video=arrays.get("has.video", none),
            vectors={
                modality: {
                    name: arrays[f"{modality}.{name}"]
                    for name in encoder.feature_dims
                    if f"{modality}.{name}" in arrays
                }
                for modality, encoder in self.pretrained.encoders.items()
            },
            embedding={
                modality: arrays[f"head.{modality}"]
                for modality in self.pretrained.encoders
                if f"head.{modality}" in arrays
            },
            errors=errors,
        )


def _cached(looks: _Looks, folder: Path) -> ClipVectors:
    """The same out of `folder`, where each set of vectors has a folder of its own; computed first when it is not there,
    by all processes together. One call at a time computes into a folder, others wait."""
    homes = [folder / _key(each) for each in (dataclasses.replace(looks, maps=True), looks)]  # all maps do as well

    def find() -> Path | None:
        return next((home for home in homes if home.exists() and not _repaired(looks, home)), None)

    if distributed.any_rank(find() is None):
        filling = cached_folder(homes[-1], is_ready=lambda: find() is not None)
        with filling if distributed.is_main() else contextlib.nullcontext() as begun:  # rank 0 locks it for all
            if distributed.any_rank(begun is not None):
                try:
                    _compute(looks, homes[-1].with_name(f".{homes[-1].name}.partial"))
                except OSError as error:
                    raise WriteError(homes[-1], error) from error
        distributed.barrier()
    home = find() or homes[-1]
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in home.glob("*.npy")}
    return looks.arranged(arrays, {row: why for row, (why, _) in _read_errors(home).items()})


def _compute(looks: _Looks, begun: Path) -> None:
    """Fill a folder that was begun, all processes together."""
    looking = looks.look(share=distributed.rank(), num_shares=distributed.world_size())
    with contextlib.closing(looking) as groups:
        first = []
        if distributed.is_main():
            first = list(itertools.islice(groups, 1))
            for name, value in (first[0][1] if first else {}).items():
                _reserve(begun / f"{name}.npy", (len(looks.ids), *value.shape[1:]), value.dtype)
        distributed.barrier()
        arrays = {path.stem: np.load(path, mmap_mode="r+") for path in begun.glob("*.npy")}
        found = looks.collect(itertools.chain(first, groups), lambda name, _: arrays[name])
        errors = {row: (why, _stamp(looks.manifest.path(row))) for row, why in found.errors.items()}
        (begun / f"errors-{distributed.rank()}.json").write_text(json.dumps(errors))
        for array in arrays.values():
            array.flush()
        distributed.barrier()


def _reserve(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """An array file of zeros whose room on the disk is taken at once: a disk that fills up later would kill the process
    that writes into the map, without a word."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _repaired(looks: _Looks, home: Path) -> bool:
    """Whether a file that could not be read has been changed since."""
    return any(_stamp(looks.manifest.path(row)) != stamp for row, (_, stamp) in _read_errors(home).items())


def _read_errors(home: Path) -> dict[int, tuple[str, list[int] | None]]:
    """{row: reason, and the stamp of its file at that time}."""
    parts = [json.loads(path.read_text()) for path in sorted(home.glob("errors-*.json"))]
    return {int(row): tuple(entry) for part in parts for row, entry in part.items()}


def _stamp(path: Path) -> list[int] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _key(looks: _Looks) -> str:
    """Digest of all that the vectors depend on."""
    facts = {
        "weights": looks.pretrained.weights_hash,
        "sides": list(looks.pretrained.encoders),
        "manifest": looks.manifest.hash,
        "data": {name: getattr(looks.pretrained.data, name) for name in VIEWED},
        "decoder": check_decoder(looks.pretrained.data),
        "views": (looks.num_clips, looks.num_crops, looks.maps),
    }
    manifest = looks.manifest  # what it says of a file may change, and with it where is looked
    columns = [
        *(manifest.usable(), manifest.has_video, manifest.has_audio, manifest.column("width")),
        *(manifest.column("height"), manifest.bounds("video"), manifest.bounds("audio")),
    ]
    values = [np.nan_to_num(each[looks.ids].astype("<f8")).tobytes() for each in columns]
    return digest(json.dumps(facts, sort_keys=True), looks.ids.astype("<i8").tobytes(), *values, num_bytes=12)


@contextmanager
def _lost_explained(dataset: ClipDataset) -> Iterator[None]:
    """Raises ValueError: a worker died or hung; names the clips that it was at, and the way out."""
    try:
        with lost_workers_named(dataset, dataset.data):
            yield
    except WorkerLost as error:
        files = ", ".join(str(dataset.root / dataset.paths[row]) for row in error.ids) or "no clip that could be named"
        raise ValueError(
            f"{error.reason} at {files}: tools/check.py with --fix-manifest finds such files and marks them in the "
            "manifest, which leaves them out"
        ) from error
