"""BYOL: each of two views of a clip predicts what a momentum copy of the network makes of the other one
(Grill et al., NeurIPS 2020). No negatives: the predictor and the slow target keep it from collapsing.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from avssl.config import Count, Probability
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.distillation import negative_cosine
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Changes


class BYOLOptions(TwoViewOptions):
    first: Changes = Field({"blur": 1.0})
    second: Changes = Field({"blur": 0.1, "solarize": 0.2})
    hidden_dim: Count = 4096
    embedding_dim: Count = 256
    momentum: Probability = 0.996  # of the target
    momentum_schedule: Literal["constant", "cosine"] = "cosine"


class BYOL(TwoViews):
    """See the module. Differs from BYOL: the target starts equal to the online network, not from weights of its own.
    Across modalities the video's prediction is compared with the target's audio, and the reverse.
    """

    Options = BYOLOptions

    def __init__(self, options: BYOLOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out, names = options.hidden_dim, options.embedding_dim, self.branches(options)
        layers = {"norm": "hidden", "bias_hidden": True, "bias_out": False}
        self.heads = nn.ModuleDict({m: mlp([self.networks[m].dim, hidden, out], **layers) for m in names})
        self.predictors = nn.ModuleDict({m: mlp([out, hidden, out], **layers) for m in names})
        self.follow_all(momentum=options.momentum, schedule=options.momentum_schedule)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z = self.outputs(encode)  # (B, D) each
        (p1, p2), (t1, t2) = self.predictions(z), self.target_outputs(encode)
        present = self.present_in_both(batch)  # (B,)
        # ||p1 - t2||^2 + ||p2 - t1||^2 of unit vectors
        loss = 4 + 2 * negative_cosine(p1, t2, present=present) + 2 * negative_cosine(p2, t1, present=present)
        return Step(loss, embeddings=self.embeddings(z, batch))
