"""VICReg: two views of a clip are close, every dimension varies, and no two vary together (Bardes, Ponce, LeCun;
ICLR 2022). Views need neither equal networks nor shared statistics, which suits video and audio.
"""

from torch import nn

from avssl.config import Count, NotNegative
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.redundancy import vicreg_terms
from avssl.structs import Batch, Instances, Progress, Step


class VICRegOptions(TwoViewOptions):
    hidden_dim: Count = 8192
    embedding_dim: Count = 8192
    invariance: NotNegative = 25.0  # weights of the terms
    variance: NotNegative = 25.0
    covariance: NotNegative = 1.0


class VICReg(TwoViews):
    """See the module; eq. 6. Statistics are those of all ranks, with the true gradient."""

    Options = VICRegOptions
    least = 2

    def __init__(self, options: VICRegOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out = options.hidden_dim, options.embedding_dim
        layers = {"norm": "hidden", "bias_hidden": True, "bias_out": False}
        self.heads = nn.ModuleDict(
            {m: mlp([self.networks[m].dim, hidden, hidden, out], **layers) for m in self.branches(options)}
        )

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z = self.outputs(encode)  # (B, D) each
        terms = vicreg_terms(*z, present=self.present_in_both(batch))
        loss = sum(getattr(self.options, name) * term for name, term in terms.items())
        logs = {name: term.detach() for name, term in terms.items()}
        return Step(loss, logs=logs, embeddings=self.embeddings(z, batch))
