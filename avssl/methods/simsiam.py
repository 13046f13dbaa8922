"""SimSiam: each of two views of a clip predicts the other one's output of the same network, which gets no gradient
(Chen & He, CVPR 2021). Neither negatives nor a momentum copy: the stopped gradient keeps it from collapsing.
"""

from typing import Literal

from torch import nn

from avssl.config import Count
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.distillation import negative_cosine
from avssl.structs import Batch, Instances, Progress, Step


class SimSiamOptions(TwoViewOptions):
    hidden_dim: Count = 2048
    embedding_dim: Count = 2048
    predictor_dim: Count = 512  # its hidden layer
    constant_predictor_rate: bool = True  # the predictor's learning rate has no schedule


class SimSiam(TwoViews):
    """See the module; eq. 1 and 2, the loss lies between -1 and 1. With video and audio each modality has a network of
    its own, and shared weights are then those of one modality's.
    """

    Options = SimSiamOptions

    def __init__(self, options: SimSiamOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out, names = options.hidden_dim, options.embedding_dim, self.branches(options)
        last = {"norm": "all", "bias_out": False, "affine_out": False}
        self.heads = nn.ModuleDict({m: mlp([self.networks[m].dim, hidden, hidden, out], **last) for m in names})
        self.predictors = nn.ModuleDict({m: mlp([out, options.predictor_dim, out], norm="hidden") for m in names})

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z1, z2 = self.outputs(encode)  # (B, D) each
        p1, p2 = self.predictions((z1, z2))
        present = self.present_in_both(batch)  # (B,)
        loss = (negative_cosine(p1, z2, present=present) + negative_cosine(p2, z1, present=present)) / 2
        return Step(loss, embeddings=self.embeddings((z1, z2), batch))

    def lr_scales(self) -> dict[str, float | Literal["constant"]]:
        return {"predictors.": "constant"} if self.options.constant_predictor_rate else {}
