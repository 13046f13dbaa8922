"""Frozen features of a trained run: encoders and heads in evaluation mode, several clips of a video averaged.

Letters: n videos, C clips per video, D feature.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from avssl.data.dataset import ClipDataset, apply_views
from avssl.data.loader import WorkerLost, build_loader, lost_workers_named
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.pretrained import Pretrained

MODALITIES = ("video", "audio")  # each looked at through the view of the same name
BATCH_CLIPS = 32  # clips that go through the towers together


@dataclass(frozen=True)
class Extracted:
    """What the towers say of n videos. Rows of sound are zeros where `has_audio` is False, rows of pictures where
    `has_video` is False; videos that could not be read are left out and stand in `errors` instead."""

    ids: np.ndarray  # (n,) int64 rows of the manifest
    has_audio: np.ndarray  # (n,) bool
    has_video: np.ndarray  # (n,) bool
    embedding: dict[str, np.ndarray]  # {video, audio: (n, D) float32 unit length}: outputs of the heads
    features: dict[str, np.ndarray]  # {video, audio: (n, dim) float32}: outputs of the trunks
    errors: dict[int, str]  # {id: reason}
    towers: tuple[str, ...] = MODALITIES  # that the run has; the other side counts as lacking in every video

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

    def has(self, side: Literal["video", "audio", "both"]) -> np.ndarray:
        """(n,) bool: videos that have this side."""
        return {"video": self.has_video, "audio": self.has_audio, "both": self.has_video & self.has_audio}[side]

    def both(self) -> np.ndarray:
        """Trunk features of picture and sound side by side, each of unit length so that neither outweighs the other:
        (n, dim_video + dim_audio)."""
        lengths = {name: np.linalg.norm(value, axis=1, keepdims=True) for name, value in self.features.items()}
        return np.concatenate([self.features[name] / np.maximum(lengths[name], 1e-12) for name in MODALITIES], axis=1)


@torch.inference_mode()
def extract(
    towers: Pretrained,
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
    if num_clips < 1:
        raise ValueError(f"num_clips={num_clips} must be at least 1")
    names = tuple(towers.encoders)
    dataset = ClipDataset(manifest, towers.data, names, num_eval_clips=num_clips)
    rows = max(1, BATCH_CLIPS // num_clips)
    groups = [[int(row) for row in ids[i : i + rows]] for i in range(0, len(ids), rows)]
    keys = [[Key(0, row, clip) for row in group for clip in range(num_clips)] for group in groups]
    loader = build_loader(dataset, keys, towers.data, device=towers.device)
    parts: dict[str, list[np.ndarray]] = {}
    kept: list[np.ndarray] = []
    sides: dict[str, list[np.ndarray]] = {modality: [] for modality in MODALITIES}
    errors: dict[int, str] = {}
    bar = tqdm(total=len(ids), desc=progress, unit="video", disable=progress is None, mininterval=1)
    with _lost_explained(dataset), bar:
        for group, batch in zip(groups, loader, strict=True):
            batch = apply_views(batch.to(towers.device), towers.data)
            found = batch.ids.reshape(len(group), num_clips)
            readable = (found >= 0).all(dim=1)
            reasons = iter(batch.errors)
            for row, lost in zip(group, (found < 0).sum(dim=1).tolist(), strict=True):
                for _ in range(lost):
                    errors.setdefault(row, next(reasons))
            present = {"video": batch.has_video, "audio": batch.has_audio}
            for modality in names:
                trunk = towers.encoders[modality](getattr(batch, modality)[modality])  # (n * C, dim)
                head = F.normalize(towers.heads[modality](trunk), dim=1)  # (n * C, D)
                for kind, values in (("features", trunk), ("embedding", head)):
                    mean = values.reshape(len(group), num_clips, -1).mean(dim=1)  # (n, ...)
                    mean = F.normalize(mean, dim=1) if kind == "embedding" else mean
                    mean = mean * present[modality].reshape(len(group), num_clips)[:, :1]
                    parts.setdefault(f"{kind}.{modality}", []).append(mean[readable].cpu().numpy())
                sides[modality].append(present[modality].reshape(len(group), num_clips)[:, 0][readable].cpu().numpy())
            kept.append(np.asarray(group, dtype=np.int64)[readable.cpu().numpy()])
            bar.update(len(group))

    def joined(kind: str) -> dict[str, np.ndarray]:
        found = {modality: np.concatenate(parts[f"{kind}.{modality}"]) for modality in names}
        return {modality: found.get(modality, np.zeros_like(found[names[0]])) for modality in MODALITIES}

    none = np.zeros(sum(map(len, kept)), dtype=bool)
    has = {modality: np.concatenate(sides[modality]) if modality in names else none for modality in MODALITIES}
    return Extracted(
        ids=np.concatenate(kept),
        has_audio=has["audio"],
        has_video=has["video"],
        embedding=joined("embedding"),
        features=joined("features"),
        errors=errors,
        towers=names,
    )


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
