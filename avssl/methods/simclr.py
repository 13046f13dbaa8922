"""SimCLR: among all augmentations in the batch, each has to pick the other one of its clip (Chen et al., ICML 2020)."""

import torch
from torch import Tensor, nn

from avssl.config import Count, Positive
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_crop, same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step


class SimCLROptions(TwoViewOptions):
    hidden_dim: Count = 2048
    embedding_dim: Count = 128
    temperature: Positive = 0.1


class SimCLR(TwoViews):
    """See the module. BatchNorm sees both augmentations together. Another clip of the same video is a positive too.

    Source: Chen et al. 2020, eq. 1 (NT-Xent), averaged over both views. Differs from SimCLR: its code adds the means of
    the views, which is twice this. With video and audio each has a network of its own; unlike `infonce`, the other
    clips of a query's own modality are negatives too.
    """

    Options = SimCLROptions
    least = 2

    def __init__(self, options: SimCLROptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        dims = [options.hidden_dim, options.hidden_dim, options.embedding_dim]
        names, layers = self.branches(options), {"norm": "all", "affine_out": "scale"}
        self.heads = nn.ModuleDict({m: mlp([self.networks[m].dim, *dims], **layers) for m in names})

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        raw = self.together(encode) if len(self.heads) == 1 else self.outputs(encode)  # (B, D) each
        z = Embedded.cat([self.embed(view.name, each, batch) for view, each in zip(self.views, raw, strict=True)])
        columns = in_batch(z)  # (M, D) of all ranks
        itself = same_crop(z, columns)
        positive = same_instance(z, columns) & ~itself
        logits = similarity(z, columns) / self.options.temperature  # (2 B, M)
        loss = info_nce(logits, positive, ignore=itself | (columns.ids < 0))
        return Step(loss, embeddings=self.embeddings(raw, batch))

    def together(self, encode: Encode) -> tuple[Tensor, ...]:
        """`outputs` of two augmentations that pass as one batch."""
        names = [view.name for view in self.views]
        (head,) = self.heads.values()
        features = torch.cat(encode.together(names))
        with encode.statistics(head, names):
            return head(features).chunk(2)
