"""Weights of avssl in mteb (extra [mteb]), whose tasks on video and sound bring clips and protocols of their own:

    model = MtebEncoder(avssl.load("runs/mine"))
    mteb.evaluate(model, mteb.get_tasks(tasks=["UCF101VideoClustering"]))

Written for mteb 2.26. Its rows hold decoders of torchcodec, so clips are cut out of its frames, not of files.
"""

from typing import Any

import numpy as np
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from avssl.weights.load import Pretrained


class MtebEncoder(AbsEncoder):
    """Encodes rows of video, sound or both.

    Args:
        run: weights with heads, unless `features`.
        features: outputs of the encoders, side by side with zeros for what a row lacks, instead of the heads' mean in
            the space that video and audio share.
        num_clips: clips averaged per video.

    Raises:
        ValueError: the weights have no heads.
    """

    def __init__(self, run: Pretrained, *, features: bool = False, num_clips: int = 3) -> None:
        if not (run.heads or features):
            raise ValueError(
                f"the weights in {run.path.parent} have no heads, which make embeddings: give features=True"
            )
        self.model, self.features, self.num_clips = run, features, num_clips
        facts = {"name": f"avssl/{run.path.parent.name}", "revision": run.weights_hash, "framework": ["PyTorch"]}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=facts | {"modalities": list(run.encoders)})

    def encode(self, inputs: Any, **given: Any) -> np.ndarray:
        """Vectors of a loader's rows: (n, D) float32. The whole of a video is decoded, at `data.fps`.

        Raises:
            ValueError: a row has neither video nor sound that the encoders take.
        """
        inputs.collate_fn = list  # rows as they are: decoders cannot be stacked
        return np.stack([self._row(row) for rows in inputs for row in rows])

    def _row(self, row: dict[str, Any]) -> np.ndarray:
        run, found = self.model, {}
        if "video" in run.encoders and row.get("video") is not None:
            frames = _frames(row["video"], run.data.fps)
            found["video"] = run.encode_frames(frames, run.data.fps, num_clips=self.num_clips)
        if "audio" in run.encoders and row.get("audio") is not None:
            samples = np.asarray(row["audio"]["array"], dtype=np.float32)
            samples = samples.mean(axis=0) if samples.ndim > 1 else samples
            found["audio"] = run.encode_samples(samples, row["audio"]["sampling_rate"], num_clips=self.num_clips)
        if not found:
            raise ValueError(
                f"a row has {', '.join(row)}, the weights in {run.path.parent} take {', '.join(run.encoders)}: choose "
                "tasks on these"
            )
        if not self.features:
            mean = np.mean([each.embedding[modality][0] for modality, each in found.items()], axis=0)
            return mean / max(np.linalg.norm(mean), 1e-12)
        sizes = {modality: encoder.dim for modality, encoder in run.encoders.items()}
        parts = [
            found[modality].features[modality][0] if modality in found else np.zeros(size, np.float32)
            for modality, size in sizes.items()
        ]
        return np.concatenate(parts)


def _frames(video: Any, fps: float) -> np.ndarray:
    """(T, H, W, 3) uint8 of torchcodec's VideoDecoder, at a constant rate."""
    facts = video.metadata
    times = torch.arange(facts.begin_stream_seconds, facts.end_stream_seconds, 1 / fps, dtype=torch.float64)
    times = times[times < facts.end_stream_seconds]  # which the last may equal by rounding
    return video.get_frames_played_at(times.tolist()).data.permute(0, 2, 3, 1).numpy()
