"""Vectors of files and of arrays that no manifest lists; `Pretrained` has these as methods.

Letters: n files, C clips, T frames, H x W pixels.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from avssl.config import DataConfig
from avssl.data.check import manifest_of_files
from avssl.data.dataset import CLOSED
from avssl.data.sampling import plan_windows
from avssl.media.audio import resample
from avssl.transforms.recipes import Clip
from avssl.transforms.views import View, evaluate_view
from avssl.weights.features import Extracted, FrozenModel, extract
from avssl.windows import Span


def encode_files(
    pretrained: FrozenModel, paths: str | Path | Sequence[str | Path], *, num_clips: int, num_workers: int, bar: bool
) -> Extracted:
    """See `Pretrained.encode`."""
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise ValueError("no file was given: give a path or a list of paths")
    pretrained = dataclasses.replace(pretrained, data=pretrained.data.replace(num_workers=num_workers))
    manifest = manifest_of_files(files, num_workers=max(1, num_workers))
    label = "encode" if bar else None
    found = extract(pretrained, manifest, range(len(files)), num_clips=num_clips, progress=label)
    errors = {row: why.replace(f"{CLOSED} ", "it is ") for row, why in found.errors.items()}  # none that a user has
    found = dataclasses.replace(found, errors=errors)
    if len(found.errors) == len(files):
        raise ValueError(found.errors[0])
    return found


def encode_array(
    pretrained: FrozenModel, modality: str, array: np.ndarray, *, rate: float, num_clips: int
) -> Extracted:
    """See `Pretrained.encode_frames` and `Pretrained.encode_samples`."""
    if modality not in pretrained.encoders:
        raise ValueError(f"{pretrained.path} has no {modality} encoder, only {', '.join(pretrained.encoders)}")
    if not (rate > 0 and num_clips >= 1 and len(array)):
        raise ValueError(f"rate={rate}, num_clips={num_clips}, {len(array)} values: each must be above 0")
    cut = _frames if modality == "video" else _samples
    clips = torch.from_numpy(cut(array, rate, pretrained.data, num_clips))
    with torch.no_grad():
        x = pretrained.encoders[modality](
            evaluate_view(modality, clips.to(pretrained.device), pretrained.data)
        )  # (C, dim)
        embedding = {}
        if modality in pretrained.heads:
            mean = F.normalize(pretrained.heads[modality](x), dim=1).mean(dim=0, keepdim=True)
            embedding[modality] = F.normalize(mean, dim=1).cpu().numpy()
    return Extracted(
        ids=np.zeros(1, dtype=np.int64),
        has_audio=np.array([modality == "audio"]),
        has_video=np.array([modality == "video"]),
        embedding=embedding,
        features={modality: x.mean(dim=0, keepdim=True).cpu().numpy()},
        errors={},
    )


def _starts(modality: str, seconds: float, data: DataConfig, num_clips: int, *, size: tuple[int, int]) -> list[float]:
    """Seconds at which evaluation's clips of a track begin."""
    span = Span(0.0, seconds)
    clip = Clip(*size, **{"video": None, "audio": None, modality: span})
    views = [View(modality, recipe=modality)]
    planned = [plan_windows(None, views, data, clip, number=i, num_clips=num_clips) for i in range(num_clips)]
    return [windows[modality].start for windows in planned]


def _frames(array: np.ndarray, fps: float, data: DataConfig, num_clips: int) -> np.ndarray:
    """(C, T, H, W, 3): the frames shown at the times of each clip; where the array ends, from the first of them on."""
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"frames are {array.dtype} {array.shape}: expected uint8 (number, height, width, 3), RGB")
    size, clips = (array.shape[2], array.shape[1]), []
    for start in _starts("video", len(array) / fps, data, num_clips, size=size):
        shown = ((start + np.arange(data.num_frames) / data.fps + 1e-4) * fps).astype(np.int64)
        clips.append(array[np.resize(shown[shown < len(array)], data.num_frames)])
    return np.stack(clips)


def _samples(array: np.ndarray, rate: float, data: DataConfig, num_clips: int) -> np.ndarray:
    """(C, samples of a clip) at data.sample_rate, zeros where the array ends."""
    if array.ndim != 1 or array.dtype != np.float32 or rate != int(rate):
        raise ValueError(
            f"samples are {array.dtype} {array.shape} at {rate:g} Hz: expected float32 (number,) in [-1, 1], mono, at "
            "a whole rate"
        )
    values = resample(array, int(rate), data.sample_rate)
    length, clips = round(data.audio_seconds * data.sample_rate), []
    for start in _starts("audio", len(values) / data.sample_rate, data, num_clips, size=(0, 0)):
        clip = values[round(start * data.sample_rate) :][:length]
        clips.append(np.pad(clip, (0, length - len(clip))))
    return np.stack(clips)
