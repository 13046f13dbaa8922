"""Prediction in latent space: the earlier of two clips predicts what a momentum copy of the network makes of the later
one, and of its sound. The way forward as the lecture sees it: predict representations, not pixels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from avssl.config import Count, Options, Positive, Probability
from avssl.methods.base import Encode, Method, check_pairs, check_usable
from avssl.models.heads import mlp
from avssl.objectives.distillation import negative_cosine
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Same, Uniform, View

PERIODS = tuple(2.0**k for k in range(-1, 7))  # seconds of the sines by which a predictor is told an interval


class PredictOptions(Options):
    targets: Literal["video", "video+audio"] = "video"  # of the later clip
    hidden_dim: Count = 2048
    embedding_dim: Count = 256
    across_weight: Positive = 1.0  # of the two terms between picture and sound, of the video's
    momentum: Probability = 0.996  # of the copy
    momentum_schedule: Literal["constant", "cosine"] = "cosine"


class Predict(Method):
    """See the module. Two clips lie anywhere in the video, and the predictor knows the seconds between them. The sound
    is that of the second: the earlier clip predicts it (the second clip itself, where that one is earlier), and it
    predicts the second clip's picture, or nothing would train its encoder.

    Source: predictor, target and loss are BYOL's (Grill et al. 2020, eq. 2; here 1 less than half of it), the
    prediction of other times as V-JEPA's (Bardes et al. 2024). Differs from V-JEPA: a clip is one vector, not a mask of
    places; the cosine instead of L1.
    """

    Options = PredictOptions
    modalities = ("video",)  # unless the options say otherwise

    def __init__(self, options: PredictOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out, names = options.hidden_dim, options.embedding_dim, self.needs(options)
        check_usable(instances, "video", least=1)
        self.views = (View("video"), View("video.1", when=Uniform()))
        if "audio" in names:
            check_pairs(instances)
            self.views += (View("audio", recipe="audio", when=Same("video.1")),)
        layers = {"norm": "hidden", "bias_hidden": True, "bias_out": False}
        self.heads = nn.ModuleDict({m: mlp([encoders[m].dim, hidden, out], **layers) for m in names})
        kinds = ("later", "sound", "picture") if "audio" in names else ("later",)
        self.predictors = nn.ModuleDict({kind: mlp([out + 2 * len(PERIODS), hidden, out], **layers) for kind in kinds})
        self.register_buffer("periods", torch.tensor(PERIODS), persistent=False)
        self.follow_all(momentum=options.momentum, schedule=options.momentum_schedule)

    @classmethod
    def needs(cls, options: PredictOptions) -> tuple[str, ...]:
        return tuple(options.targets.split("+"))

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z = {view.name: self.project(encode, view.name) for view in self.views}  # (B, D) each
        target = {view.name: self.project_target(encode, view.name) for view in self.views}  # (B, D) each
        gap = (batch.start["video.1"] - batch.start["video"]).float()  # (B,) seconds
        forward = (gap >= 0)[:, None]  # (B, 1) the second clip is the later one
        earlier, later = (
            torch.where(forward, first, second)
            for first, second in ((z["video"], z["video.1"]), (target["video.1"], target["video"]))
        )
        present = self.present(batch, "video")  # (B,)
        logs = {"later": negative_cosine(self.predict("later", earlier, gap.abs()), later, present=present)}
        loss = logs["later"]
        if "audio" in z:
            both = present & self.present(batch, "audio")
            sound, picture = (
                self.predict("sound", earlier, gap.clamp(min=0)),
                self.predict("picture", z["audio"], 0 * gap),
            )
            logs["sound"] = negative_cosine(sound, target["audio"], present=both)
            logs["picture"] = negative_cosine(picture, target["video.1"], present=both)
            loss = loss + self.options.across_weight * (logs["sound"] + logs["picture"]) / 2
        embeddings = {view: self.embed(view, z[view].detach(), batch) for view in self.heads}
        return Step(loss, logs={name: each.detach() for name, each in logs.items()}, embeddings=embeddings)

    def predict(self, kind: str, z: Tensor, seconds: Tensor) -> Tensor:
        """What a predictor makes of outputs (B, D) and intervals (B,): (B, D)."""
        angles = 2 * torch.pi * seconds[:, None] / self.periods
        return self.predictors[kind](torch.cat([z, angles.sin(), angles.cos()], dim=1))
