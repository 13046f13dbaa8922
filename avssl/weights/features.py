"""Outputs of frozen encoders and heads for several clips per video, in memory or cached on disk.

Letters: n videos, C clips per video, D feature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from avssl import distributed
from avssl.config import DataConfig
from avssl.data.dataset import ClipDataset, check_decoder
from avssl.data.loader import WorkerLost, build_loader, lost_workers_named
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.files import POLL_SECONDS, WriteError, cached_folder, digest
from avssl.media.shards import locate
from avssl.models.heads import describe_maps, side_by_side
from avssl.structs import MODALITIES
from avssl.transforms.views import Spread, View, apply_views

BATCH_CLIPS = 32  # clips per forward pass
CALIBRATION_CLIPS = 128
VIEW_OPTIONS = (  # options of the data section that an evaluation view depends on
    *("decoder", "max_pixels", "max_seconds", "num_frames", "fps", "size", "audio_seconds", "sample_rate"),
    *("spectrogram", "n_fft", "num_mels", "hop_seconds", "pixel_mean", "pixel_std"),
)


class FrozenModel(Protocol):
    """What vectors are of: a `Pretrained`."""

    path: Path
    encoders: nn.ModuleDict  # in evaluation mode, on `device`
    heads: nn.ModuleDict
    data: DataConfig
    device: torch.device
    weights_hash: str


def _has(self: Extracted | ClipVectors, modality: Literal["video", "audio", "both"]) -> np.ndarray:
    """(n,) bool: videos that have this modality."""
    has = {"video": self.has_video, "audio": self.has_audio, "both": self.has_video & self.has_audio}
    return has[modality]


@dataclass(frozen=True)
class Extracted:
    """Outputs for n readable videos; zeros where a video lacks the modality."""

    ids: np.ndarray  # (n,) int64 rows of the manifest
    has_audio: np.ndarray  # (n,) bool
    has_video: np.ndarray  # (n,) bool
    embedding: dict[str, np.ndarray]  # {video, audio: (n, D) float32 unit length}: head outputs
    features: dict[str, np.ndarray]  # {video, audio: (n, dim) float32}: encoder outputs
    errors: dict[int, str]  # {id: reason}

    has = _has

    def __repr__(self) -> str:
        kinds = ("embedding", "features")
        shapes = [f"{kind}[{name!r}]: {each.shape}" for kind in kinds for name, each in getattr(self, kind).items()]
        return f"Extracted({len(self.ids)} videos, {len(self.errors)} not read; {', '.join(shapes)})"


def extract(
    pretrained: FrozenModel,
    manifest: Manifest,
    ids: Sequence[int] | np.ndarray,
    *,
    num_clips: int = 3,
    progress: str | None = None,
) -> Extracted:
    """Outputs averaged over `num_clips` clips spread over each video; arguments and errors as `clip_vectors`."""
    return clip_vectors(pretrained, manifest, ids, num_clips=num_clips, progress=progress).videos()


class Rows:
    """Rows of an array, read from disk when indexed by index, slice or (rows, columns)."""

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
    """Outputs for every view of n videos. V views of a video: its clips; for video each crop of each clip, the crops
    of one clip adjacent. Zeros where a modality is missing or the video could not be read."""

    ids: np.ndarray  # (n,) int64 rows of the manifest, unreadable ones too
    readable: np.ndarray  # (n,) bool
    has_audio: np.ndarray  # (n,) bool; False where the video could not be read
    has_video: np.ndarray  # (n,) bool; likewise
    vectors: dict[str, dict[str, np.ndarray]]  # {video, audio: {pool, other maps: (n, V, d) float32}}: encoder outputs
    embedding: dict[str, np.ndarray]  # {video, audio: (n, V, D) float32 unit length}, where there are heads
    errors: dict[int, str]  # {id: reason}

    has = _has

    def maps(self, modality: Literal["video", "audio", "both"], rows: np.ndarray) -> dict[str, Rows | np.ndarray]:
        """{map: (m, V, d)} at these positions (m,); for both modalities {pool}: pooled outputs concatenated, a clip's
        audio with each of its crops."""
        if modality != "both":
            return {name: Rows(each, rows) for name, each in self.vectors[modality].items()}
        video, audio = (torch.from_numpy(self.vectors[name]["pool"][rows]) for name in MODALITIES)
        audio = audio.repeat_interleave(video.shape[1] // audio.shape[1], dim=1)
        return {"pool": side_by_side(video.flatten(0, 1), audio.flatten(0, 1)).unflatten(0, video.shape[:2]).numpy()}

    def videos(self) -> Extracted:
        """Mean over the views of each readable video; means of unit vectors are normalized again."""
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


def clip_vectors(
    pretrained: FrozenModel,
    manifest: Manifest,
    ids: Sequence[int] | np.ndarray,
    *,
    num_clips: int,
    num_crops: int = 1,
    maps: bool = False,
    folder: Path | None = None,
    progress: str | None = None,
) -> ClipVectors:
    """Outputs for `num_clips` clips spread over each video, in evaluation mode.

    Args:
        ids: (n,) rows of the manifest, unreadable ones too.
        num_clips: C, clips per video.
        num_crops: per clip, spread over the long side of the frames.
        maps: all maps of the encoders as vectors (see `describe_maps`), not only the pooled output.
        folder: cache on disk, filled by all processes together; None = in memory, all by this process.
        progress: label of the progress bar; None = no bar.

    Raises:
        ValueError: num_clips or num_crops < 1, or a worker process died or hung.
        WriteError: the folder cannot be written to.
    """
    for name, number in (("num_clips", num_clips), ("num_crops", num_crops)):
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
    extractor = _Extractor(pretrained, manifest, np.asarray(ids, dtype=np.int64), num_clips, num_crops, maps, progress)
    if folder is None:
        groups = extractor.groups(shard=0, num_shards=1)
        return extractor.collect(groups, lambda _, rows: np.zeros((len(extractor.ids), *rows.shape[1:]), rows.dtype))
    return _cached(extractor, folder)


def calibrated(pretrained: FrozenModel, manifest: Manifest, ids: np.ndarray) -> FrozenModel:
    """The same weights with BatchNorm statistics of one clip each of at most CALIBRATION_CLIPS of these videos, in
    place and equal on all processes: with mean 0 and variance 1 random weights are a weaker baseline than they are."""
    modules = nn.ModuleDict({"encoders": pretrained.encoders, "heads": pretrained.heads})
    norms = [each for each in modules.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # mean over all batches
        norm.train()
    for modality, encoder in pretrained.encoders.items() if norms else ():
        has = manifest.has_video if modality == "video" else manifest.has_audio & manifest.usable()
        rows, views = np.random.default_rng(0).permutation(ids[has[ids]]), [View(modality, recipe=modality)]
        parts = np.array_split(rows[:CALIBRATION_CLIPS], max(1, len(rows[:CALIBRATION_CLIPS]) // BATCH_CLIPS))
        keys = [[Key(0, int(row), 0) for row in part] for part in parts if len(part)]
        dataset = ClipDataset(manifest, pretrained.data, views, num_eval_clips=1)
        head = pretrained.heads[modality] if modality in pretrained.heads else nn.Identity()
        with _wrap_errors(dataset), torch.inference_mode():
            for batch in build_loader(dataset, keys, pretrained.data, device=pretrained.device):
                batch = apply_views(batch.to(pretrained.device), views, pretrained.data)
                x = getattr(batch, modality)[modality][getattr(batch, f"has_{modality}")]
                if len(x) > 1:
                    head(encoder(x))
    modules.eval()
    for value in modules.buffers():
        value.copy_(distributed.broadcast(value))
    return dataclasses.replace(pretrained, weights_hash=distributed.digest(modules.state_dict()))


@dataclass(frozen=True)
class _Extractor:
    """Computes the vectors of videos, one group at a time."""

    pretrained: FrozenModel
    manifest: Manifest
    ids: np.ndarray
    num_clips: int
    num_crops: int
    maps: bool
    progress: str | None

    def groups(self, *, shard: int, num_shards: int) -> Iterator[tuple[slice, dict[str, np.ndarray], dict[int, str]]]:
        """Yield (slice of ids, {name: (g, ...)}, errors) for every group of this shard; groups, and with them vectors,
        do not depend on the number of shards."""
        pretrained, modalities = self.pretrained, tuple(self.pretrained.encoders)
        crops = [View(f"crop {i}", when=Spread(i, self.num_crops)) for i in range(self.num_crops)]
        views = {"video": crops, "audio": [View("audio", recipe="audio")]}
        wanted = [view for modality in modalities for view in views[modality]]
        dataset = ClipDataset(self.manifest, pretrained.data, wanted, num_eval_clips=self.num_clips)
        step = max(1, BATCH_CLIPS // self.num_clips)
        slices = [slice(i, min(i + step, len(self.ids))) for i in range(0, len(self.ids), step)][shard::num_shards]
        keys = ([Key(0, int(row), c) for row in self.ids[part] for c in range(self.num_clips)] for part in slices)
        loader = build_loader(dataset, keys, pretrained.data, device=pretrained.device)
        total = sum(part.stop - part.start for part in slices)
        bar = tqdm(total=total, desc=self.progress, unit="video", disable=self.progress is None, mininterval=1)
        with _wrap_errors(dataset), bar, torch.inference_mode():
            for part, batch in zip(slices, loader, strict=True):
                group = self.ids[part]
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
                    for name, values in seen.items():  # each (g C, d); crops of a clip become adjacent
                        each = torch.stack(values, dim=1).reshape(len(group), -1, values[0].shape[1])  # (g, V, d)
                        found[name] = torch.where(here[:, None, None], each, 0.0)
                        if not found[name].isfinite().all():
                            raise ValueError(
                                f"the {modality} encoder of {pretrained.path} gives NaN or infinity ({name}): its "
                                "weights are broken, go back to an earlier checkpoint"
                            )
                yield part, {name: value.cpu().numpy() for name, value in found.items()}, errors
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
        """Gather groups in arrays for all videos, allocated by make(name, rows of the first group)."""
        arrays: dict[str, np.ndarray] = {}
        errors: dict[int, str] = {}
        for part, found, lost in groups:
            for name, value in found.items():
                if name not in arrays:
                    arrays[name] = make(name, value)
                arrays[name][part] = value
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


def _cached(extractor: _Extractor, folder: Path) -> ClipVectors:
    """Read the vectors from a subfolder of `folder` named by their key; all processes compute them first if missing.
    One call at a time fills a folder, others wait."""
    with_maps = dataclasses.replace(extractor, maps=True)  # its vectors include pool
    homes = [folder / _key(each) for each in (with_maps, extractor)]

    def find() -> Path | None:
        return next((home for home in homes if home.exists() and _is_valid(extractor, home)), None)

    if distributed.any_rank(find() is None):
        filling = cached_folder(homes[-1], is_ready=lambda: find() is not None, wait=_wait_together)
        with filling if distributed.is_main() else contextlib.nullcontext() as begun:  # rank 0 holds the lock
            while not distributed.any_rank(distributed.is_main()):
                pass  # rank 0 waits for it
            if distributed.any_rank(begun is not None):
                try:
                    _compute(extractor, homes[-1].with_name(f".{homes[-1].name}.partial"))
                except OSError as error:
                    raise WriteError(homes[-1], error) from error
        distributed.barrier()
    home = find() or homes[-1]
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in home.glob("*.npy")}
    return extractor.arranged(arrays, {row: why for row, (why, _) in _read_errors(home).items()})


def _wait_together() -> None:
    """A moment of rank 0's wait for a lock, in which the other ranks take part, since a collective that waits as long
    would time out."""
    time.sleep(POLL_SECONDS)
    distributed.any_rank(False)


def _compute(extractor: _Extractor, begun: Path) -> None:
    """Fill a partial cache folder, all processes together."""
    looking = extractor.groups(shard=distributed.rank(), num_shards=distributed.world_size())
    with contextlib.closing(looking) as groups:
        first = []
        if distributed.is_main():
            first = list(itertools.islice(groups, 1))
            for name, value in (first[0][1] if first else {}).items():
                _reserve(begun / f"{name}.npy", (len(extractor.ids), *value.shape[1:]), value.dtype)
            if extractor.progress:
                size = sum(path.stat().st_size for path in begun.glob("*.npy"))
                tqdm.write(f"{extractor.progress}: {size / 1e6:.0f} MB in {begun.parent}", file=sys.stderr)
        distributed.barrier()
        arrays = {path.stem: np.load(path, mmap_mode="r+") for path in begun.glob("*.npy")}
        found = extractor.collect(itertools.chain(first, groups), lambda name, _: arrays[name])
        errors = {row: (why, _stamp(extractor.manifest.path(row))) for row, why in found.errors.items()}
        (begun / f"errors-{distributed.rank()}.json").write_text(json.dumps(errors))
        for array in arrays.values():
            array.flush()
        distributed.barrier()


def _reserve(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create an array file of zeros with its disk space allocated: writing to a map of a full disk kills the
    process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _is_valid(extractor: _Extractor, home: Path) -> bool:
    """Whether the vectors there are whole, and no unreadable file has changed since."""
    try:
        arrays = [np.load(path, mmap_mode="r") for path in home.glob("*.npy")]
        errors = _read_errors(home)
    except (OSError, EOFError, TypeError, ValueError):  # damaged: computed again
        return False
    is_same = all(_stamp(extractor.manifest.path(row)) == stamp for row, (_, stamp) in errors.items())
    return is_same and all(len(each) == len(extractor.ids) for each in arrays)


def _read_errors(home: Path) -> dict[int, tuple[str, list[int] | None]]:
    """{row: (reason, stamp of its file at that time)}."""
    parts = [json.loads(path.read_text()) for path in sorted(home.glob("errors-*.json"))]
    return {int(row): tuple(entry) for part in parts for row, entry in part.items()}


def _stamp(path: Path) -> list[int] | None:
    """Size and modification time; None for a missing file."""
    try:
        part = locate(path)
    except OSError:
        return None
    return [part.size, part.changed]


def _key(extractor: _Extractor) -> str:
    """Digest of everything the vectors depend on."""
    facts = {
        "weights": extractor.pretrained.weights_hash,
        "modalities": list(extractor.pretrained.encoders),
        "manifest": extractor.manifest.hash,
        "data": {name: getattr(extractor.pretrained.data, name) for name in VIEW_OPTIONS},
        "decoder": check_decoder(extractor.pretrained.data),
        "views": (extractor.num_clips, extractor.num_crops, extractor.maps),
    }
    manifest = extractor.manifest  # its entries may change, and with them the windows
    columns = [
        *(manifest.usable(), manifest.has_video, manifest.has_audio, manifest.column("width")),
        *(manifest.column("height"), manifest.bounds("video"), manifest.bounds("audio")),
    ]
    values = [np.nan_to_num(each[extractor.ids].astype("<f8")).tobytes() for each in columns]
    return digest(json.dumps(facts, sort_keys=True), extractor.ids.astype("<i8").tobytes(), *values, num_bytes=12)


@contextmanager
def _wrap_errors(dataset: ClipDataset) -> Iterator[None]:
    """Turn a lost worker into a ValueError that names its clips and the fix."""
    try:
        with lost_workers_named(dataset, dataset.data):
            yield
    except WorkerLost as error:
        files = ", ".join(str(dataset.manifest.path(row)) for row in error.ids) or "no clip that could be named"
        raise ValueError(
            f"{error.reason} at {files}: avssl check with --fix-manifest finds such files and marks them in the "
            "manifest, which leaves them out"
        ) from error
