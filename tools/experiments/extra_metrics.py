"""Metrics and baselines that only the experiments use: recall within one set, the grouped probe, shortcut features.

Letters: n videos, D embedding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from avssl.data.manifest import Manifest
from avssl.evaluate.classify import linear_predict
from avssl.evaluate.metrics import chance_of_any
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.transforms.audio import log_mel

SAMPLE_RATE = 16_000
FPS = 5.0
RANKS = (1, 5)


def shortcut_features(
    manifest: Manifest, ids: Sequence[int] | np.ndarray, *, progress: str | None = None
) -> np.ndarray:
    """Mean of R, G, B and mean over time of a 64-band log-mel spectrogram, over the whole clip: (n, 67) float32. A set
    that these already classify well says little about learned features.

    Raises:
        DecodeError: a clip cannot be read.
    """
    rows = []
    for row in tqdm(ids, desc=progress, unit="video", disable=progress is None, mininterval=1):
        start, end = float(manifest.column("video_start")[row]), float(manifest.column("video_end")[row])
        duration = max(end - start, 1 / FPS)
        frames, samples = read_clip(
            manifest.root / manifest.column("path")[row],
            video=[VideoWindow(start, duration, FPS)],
            audio=[AudioWindow(start, duration, SAMPLE_RATE)] if manifest.has_audio[row] else [],
        )
        color = frames[0].data.mean(axis=(0, 1, 2)) / 255
        spectrum = np.zeros(64)
        if samples:
            waveform = torch.from_numpy(samples[0].data)[None]
            spectrum = (
                log_mel(waveform, sample_rate=SAMPLE_RATE, n_fft=512, hop_seconds=0.01, num_mels=64)[0, 0]
                .mean(dim=0)
                .numpy()
            )
        rows.append(np.concatenate([color, spectrum]))
    return np.stack(rows).astype(np.float32)


def grouped_predict(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, num_folds: int = 5) -> np.ndarray:
    """Every clip classified by a linear probe that has seen no clip of its group (scene, source video).

    Args:
        features: (n, D).
        targets: (n,) classes.
        groups: (n,) any labels.
        num_folds: folds of whole groups, with about equal numbers of clips.

    Returns:
        (n,) predicted classes.

    Raises:
        ValueError: fewer groups than folds, or a fold whose training clips have one class only.
    """
    member = np.unique(groups, return_inverse=True)[1]
    if member.max(initial=-1) + 1 < num_folds:
        raise ValueError(f"{member.max(initial=-1) + 1} groups cannot be shared out over num_folds={num_folds}")
    predicted = np.empty_like(targets)
    for train, test in GroupKFold(num_folds).split(features, groups=member):
        predicted[test], _ = linear_predict(features[train], targets[train], features[test], groups=member[train])
    return predicted


def instance_hits(query: np.ndarray, gallery: np.ndarray, *, k: int) -> np.ndarray:
    """(n,) bool: row i has its own gallery row i among the k nearest by cosine; chance is k / n.

    Args:
        query, gallery: (n, D) unit vectors of the same videos.
    """
    scores = query @ gallery.T  # (n, n)
    own = np.diagonal(scores)[:, None]
    better = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1)  # a tie counts against us
    return better < k


def class_hits(query: np.ndarray, gallery: np.ndarray, targets: np.ndarray, *, k: int) -> np.ndarray:
    """(n,) bool: row i has another video of the same class among the k nearest by cosine; the row itself is left out.

    Args:
        query, gallery: (n, D) unit vectors of the same videos.
        targets: (n,) classes.
        k: at most the n - 1 others are looked at.
    """
    scores = query @ gallery.T
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(targets) - 1)]
    return (targets[nearest] == targets[:, None]).any(axis=1)


def chance_class_recall(targets: np.ndarray, *, k: int) -> float:
    """Expected mean of `class_hits` in a random order."""
    same = (targets[:, None] == targets[None, :]).sum(axis=1) - 1  # (n,)
    return float(chance_of_any(same, len(targets) - 1, k).mean())


def recall_hits(video: np.ndarray, audio: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Which queries find what they should at rank 1 and 5, in both directions.

    Args:
        video, audio: (n, D) unit vectors of the same videos.
        targets: (n,) classes.

    Returns:
        (n,) bool each: {v2a, a2v}_r{1, 5}, another clip of the same class; {v2a, a2v}_instance_r{1, 5}, the clip's own
        other modality. Without those whose k is all the other clips or more.
    """
    hits = {}
    for k in (k for k in RANKS if k < len(targets) - 1):
        for name, query, gallery in (("v2a", video, audio), ("a2v", audio, video)):
            hits[f"{name}_r{k}"] = class_hits(query, gallery, targets, k=k)
            hits[f"{name}_instance_r{k}"] = instance_hits(query, gallery, k=k)
    return hits


def recall_metrics(video: np.ndarray, audio: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Means of `recall_hits`, and beside them chance_r{1, 5} and chance_instance_r{1, 5}."""
    metrics = {name: float(hits.mean()) for name, hits in recall_hits(video, audio, targets).items()}
    for k in (k for k in RANKS if k < len(targets) - 1):
        metrics[f"chance_r{k}"] = chance_class_recall(targets, k=k)
        metrics[f"chance_instance_r{k}"] = k / len(targets)
    return metrics
