"""LeJEPA: two views of a clip are close, and the embeddings of each are normally distributed, which leaves no room for
a collapse (Balestriero & LeCun 2025). Nothing else: no predictor, target, or stopped gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.config import Count, Share
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.redundancy import mean_squared_difference, sigreg
from avssl.structs import Batch, Instances, Progress, Step


class SIGRegOptions(TwoViewOptions):
    hidden_dim: Count = 2048
    embedding_dim: Count = 64
    weight: Share = 0.05  # of the regularizer; the rest is that of the invariance
    num_directions: Count = 256  # drawn anew in every step


class SIGReg(TwoViews):
    """See the module. Both terms are as in LeJEPA's code: the invariance is the squared distance from the mean of the
    views, the regularizer the mean over views.
    """

    Options = SIGRegOptions
    least = 2

    def __init__(self, options: SIGRegOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out = options.hidden_dim, options.embedding_dim
        self.heads = nn.ModuleDict(
            {m: mlp([self.networks[m].dim, hidden, hidden, out], norm="hidden") for m in self.branches(options)}
        )

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z = self.outputs(encode)  # (B, D) each
        present, directions = self.present_in_both(batch), self.directions(progress).to(z[0].device)
        invariance = mean_squared_difference(*z, present=present) / 4  # both are half of it from their mean
        regularizer = sum(sigreg(each, directions, present=present) for each in z) / 2
        loss = self.options.weight * regularizer + (1 - self.options.weight) * invariance
        logs = {"invariance": invariance.detach(), "sigreg": regularizer.detach()}
        return Step(loss, logs=logs, embeddings=self.embeddings(z, batch))

    def directions(self, progress: Progress) -> Tensor:
        """(D, S) unit columns of a step, the same on every rank."""
        shape = self.options.embedding_dim, self.options.num_directions
        return F.normalize(torch.randn(shape, generator=self.generator(progress)), dim=0)
