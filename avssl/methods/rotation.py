"""Rotation: a clip is turned by a multiple of 90 degrees, and the encoder has to say by which (Gidaris, Singh,
Komodakis; ICLR 2018; for video: Jing et al. 2018).
"""

import torch.nn.functional as F
from torch import nn

from avssl.config import Options
from avssl.methods.base import Encode, Method, check_videos
from avssl.models.heads import mlp
from avssl.objectives.contrast import mean_over_rows
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.pretext import NUM_ROTATIONS
from avssl.transforms.views import View


class Rotation(Method):
    """See the module. The turn is drawn with the view `rotation` and travels as its label."""

    Options = Options
    modalities = ("video",)
    views = (View("rotation", recipe="rotation"),)

    def __init__(self, options: Options, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_videos(instances, least=1)
        self.turn = mlp([encoders["video"].dim, NUM_ROTATIONS])

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        logits = self.turn(encode("rotation"))  # (B, 4)
        label = batch.params["rotation"]["label"].to(logits.device, non_blocking=True)  # (B,)
        present = self.present(batch, "video")
        right = (logits.detach().argmax(dim=1) == label) & present
        loss = mean_over_rows(F.cross_entropy(logits, label, reduction="none"), present, logits)
        return Step(loss, logs={"accuracy": right.sum() / present.sum().clamp(min=1)})
