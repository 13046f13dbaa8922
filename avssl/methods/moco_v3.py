"""MoCo v3: each of two augmentations has to pick the other one's key, of a slowly moving copy, among those of the batch
(Chen, Xie, He; ICCV 2021). No queue; a predictor on the side of the queries.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, Options, Positive, Probability
from avssl.methods.base import Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import Changes, Same, Uniform, two_views


class MoCoV3Options(Options):
    modality: Literal["video", "audio"] = "video"
    heads: Literal["resnet", "vit"] = "resnet"  # two layers and a bare predictor, or three and a normalized one
    interval: Literal["same", "uniform"] = "same"  # of the two augmentations: the same seconds, or anywhere
    first: Changes = Field({"blur": 1.0})  # fields of the data section that differ for one
    second: Changes = Field({"blur": 0.1, "solarize": 0.2})  # and for the other
    hidden_dim: Count = 4096
    embedding_dim: Count = 256
    temperature: Positive = 1.0  # vit: 0.2
    momentum: Probability = 0.99
    momentum_schedule: Literal["constant", "cosine"] = "cosine"


class MoCoV3(Method):
    """See the module. The copy moves after a step; in MoCo v3 before the next one: the same. Keys of another clip of
    the query's own video are positives too.
    """

    Options = MoCoV3Options
    modalities = ("video",)  # unless the options say audio

    def __init__(self, options: MoCoV3Options, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        modality, hidden, out = options.modality, options.hidden_dim, options.embedding_dim
        check_usable(instances, modality)
        when = Same(modality) if options.interval == "same" else Uniform()
        self.views = two_views(options.first, options.second, when=when, modality=modality)
        is_vit, plain = options.heads == "vit", {"affine_out": False, "bias_out": False}
        dims = [encoders[modality].dim, hidden, *[hidden] * is_vit, out]
        self.heads = nn.ModuleDict({modality: mlp(dims, norm="all", **plain)})
        self.predictor = mlp([out, hidden, out], norm="all" if is_vit else "hidden", **plain)
        networks = {modality: encoders[modality], "head": self.heads[modality]}
        self.follow(networks, momentum=options.momentum, schedule=options.momentum_schedule)

    @classmethod
    def needs(cls, options: MoCoV3Options) -> tuple[str, ...]:
        return (options.modality,)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        names = [view.name for view in self.views]
        q = [self.embed(name, self.predictor(self.project(encode, name)), batch) for name in names]  # (B, D) each
        k = [self.embed(name, self.target["head"](self.encode_target(encode, name)), batch) for name in names]
        loss = self.contrast(q[0], k[1]) + self.contrast(q[1], k[0])
        return Step(loss, embeddings={self.options.modality: q[0].detach()})

    def contrast(self, q: Embedded, k: Embedded) -> Tensor:
        """Queries (B, D) against the keys of the other view on all ranks, times 2T as published."""
        temperature, columns = self.options.temperature, in_batch(k.detach())  # (M, D)
        empty = (columns.ids < 0).expand(len(q.ids), -1)
        return 2 * temperature * info_nce(similarity(q, columns) / temperature, same_instance(q, columns), ignore=empty)
