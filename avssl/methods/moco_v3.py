"""MoCo v3: each of two augmentations has to pick the other one's key, of a slowly moving copy, among those of the batch
(Chen, Xie, He; ICCV 2021). No queue; a predictor on the side of the queries.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, Positive, Probability
from avssl.methods.base import Encode
from avssl.methods.two_views import TwoViewOptions, TwoViews
from avssl.models.heads import mlp
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import Changes


class MoCoV3Options(TwoViewOptions):
    first: Changes = Field({"blur": 1.0})
    second: Changes = Field({"blur": 0.1, "solarize": 0.2})
    layers: Literal["resnet", "vit"] = "resnet"  # two layers and a bare predictor, or three and a normalized one
    hidden_dim: Count = 4096
    embedding_dim: Count = 256
    temperature: Positive = 1.0  # vit: 0.2
    momentum: Probability = 0.99
    momentum_schedule: Literal["constant", "cosine"] = "cosine"


class MoCoV3(TwoViews):
    """See the module. The copy moves after a step; in MoCo v3 before the next one: the same. Keys of another clip of
    the query's own video are positives too. Across modalities video picks among the keys of audio, and the reverse.
    """

    Options = MoCoV3Options
    least = 2

    def __init__(self, options: MoCoV3Options, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        hidden, out, names = options.hidden_dim, options.embedding_dim, self.branches(options)
        is_vit, plain = options.layers == "vit", {"affine_out": False, "bias_out": False}
        dims = [hidden, *[hidden] * is_vit, out]
        self.heads = nn.ModuleDict({m: mlp([self.networks[m].dim, *dims], norm="all", **plain) for m in names})
        norm = "all" if is_vit else "hidden"
        self.predictors = nn.ModuleDict({m: mlp([out, hidden, out], norm=norm, **plain) for m in names})
        self.follow_all(momentum=options.momentum, schedule=options.momentum_schedule)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        predicted, targets = self.predictions(self.outputs(encode)), self.target_outputs(encode)
        q, k = (  # (B, D) each
            [self.embed(view.name, each, batch) for view, each in zip(self.views, outputs, strict=True)]
            for outputs in (predicted, targets)
        )
        loss = self.contrast(q[0], k[1]) + self.contrast(q[1], k[0])
        return Step(loss, embeddings=self.embeddings(predicted, batch))

    def contrast(self, q: Embedded, k: Embedded) -> Tensor:
        """Queries (B, D) against the keys of the other view on all ranks, times 2T as published."""
        temperature, columns = self.options.temperature, in_batch(k.detach())  # (M, D)
        empty = (columns.ids < 0).expand(len(q.ids), -1)
        return 2 * temperature * info_nce(similarity(q, columns) / temperature, same_instance(q, columns), ignore=empty)
