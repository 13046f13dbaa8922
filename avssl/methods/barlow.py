"""Barlow Twins: what two views of a clip say in each dimension agrees, and no two dimensions say the same (Zbontar,
Jing, Misra, LeCun, Deny; ICML 2021).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, NotNegative, Positive
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.redundancy import barlow
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Changes


class BarlowOptions(TwoViewOptions):
    first: Changes = Field({"blur": 1.0})
    second: Changes = Field({"blur": 0.1, "solarize": 0.2})
    hidden_dim: Count = 8192
    embedding_dim: Count = 8192
    off_diagonal_weight: NotNegative = 0.0051
    vector_rate: Positive = 1.0  # times the learning rate: of biases and norms; published with LARS: 0.024
    predictor: bool = False  # of one view's output from the other's: what BYOL needs and this does not
    stop_gradient: bool = False  # at the view that is compared with: likewise


class Barlow(TwoViews):
    """See the module. The correlations are those of all ranks, with the true gradient (`objectives.redundancy.barlow`).
    With a predictor or a stopped gradient the loss is the mean of both directions.
    """

    Options = BarlowOptions
    least = 2

    def __init__(self, options: BarlowOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out, names = options.hidden_dim, options.embedding_dim, self.branches(options)
        layers = {"norm": "hidden", "bias_out": False}
        self.heads = nn.ModuleDict({m: mlp([self.networks[m].dim, hidden, hidden, out], **layers) for m in names})
        if options.predictor:
            self.predictors = nn.ModuleDict({m: mlp([out, hidden, out], **layers) for m in names})

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z1, z2 = self.outputs(encode)  # (B, D) each
        p1, p2 = self.predictions((z1, z2)) if self.options.predictor else (z1, z2)
        t1, t2 = (z1.detach(), z2.detach()) if self.options.stop_gradient else (z1, z2)
        present = self.present_in_both(batch)  # (B,)

        def compared(p: Tensor, t: Tensor) -> Tensor:
            return barlow(p, t, off_diagonal_weight=self.options.off_diagonal_weight, present=present)

        both_ways = self.options.predictor or self.options.stop_gradient
        loss = (compared(p1, t2) + compared(p2, t1)) / 2 if both_ways else compared(z1, z2)
        return Step(loss, embeddings=self.embeddings((z1, z2), batch))

    def lr_scales(self) -> dict[str, float | Literal["constant"]]:
        if self.options.vector_rate == 1:
            return {}
        return {name: self.options.vector_rate for name, value in self.named_parameters() if value.dim() == 1}
