"""What a classifier can tell without looking or listening: the mean color and the mean spectrum of whole clips.

A set on which these features already classify well says little about features that were learned.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from avssl.data.manifest import Manifest
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.transforms.audio import log_mel

SAMPLE_RATE = 16_000
FPS = 5.0


def shortcut_features(
    manifest: Manifest, ids: Sequence[int] | np.ndarray, *, progress: str | None = None
) -> np.ndarray:
    """Mean of R, G, B and mean over time of a 64-band log-mel spectrogram, over the whole clip: (n, 67) float32.

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
            sound = torch.from_numpy(samples[0].data)[None]
            spectrum = (
                log_mel(sound, sample_rate=SAMPLE_RATE, n_fft=512, hop_seconds=0.01, num_mels=64)[0, 0]
                .mean(dim=0)
                .numpy()
            )
        rows.append(np.concatenate([color, spectrum]))
    return np.stack(rows).astype(np.float32)
