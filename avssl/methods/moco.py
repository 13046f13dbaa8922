"""MoCo v1 and v2: a clip has to pick its other augmentation, encoded by a slowly moving copy of the network, among the
latest clips that the copy has encoded (He et al., CVPR 2020; Chen et al. 2020).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from avssl.config import Count, Options, Positive, Probability
from avssl.methods.base import Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import Queue, hardest
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import Changes, Same, Uniform, two_views


class MoCoOptions(Options):
    modality: Literal["video", "audio"] = "video"
    head: Literal["linear", "mlp"] = "mlp"  # of v1, of v2
    interval: Literal["same", "uniform"] = "same"  # of the two augmentations: the same seconds, or anywhere
    first: Changes = Field({})  # fields of the data section that differ for the query
    second: Changes = Field({})  # and for the key
    hidden_dim: Count = 2048
    embedding_dim: Count = 128
    queue_size: Count = 65536  # over all ranks
    temperature: Positive = 0.2  # v1: 0.07
    momentum: Probability = 0.999  # of the copy that encodes the keys
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    hardest: float = Field(1.0, gt=0, le=1)  # share of a query's negatives that count, those most like it


class MoCo(Method):
    """See the module. The copy moves after a step; in MoCo before the next one: the same.

    Differs from MoCo: keys are not shuffled over ranks, so set run.sync_batchnorm on several GPUs, or BatchNorm tells
    which query and key come from the same one. The queue starts empty, not with random vectors. Keys of the query's own
    video in the queue are left out; there they are negatives.
    """

    Options = MoCoOptions
    modalities = ("video",)  # unless the options say audio

    def __init__(self, options: MoCoOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        modality = options.modality
        check_usable(instances, modality)
        when = Same(modality) if options.interval == "same" else Uniform()
        self.views = two_views(options.first, options.second, when=when, modality=modality)
        hidden = [options.hidden_dim] if options.head == "mlp" else []
        self.heads = nn.ModuleDict({modality: mlp([encoders[modality].dim, *hidden, options.embedding_dim])})
        networks = {modality: encoders[modality], "head": self.heads[modality]}
        self.follow(networks, momentum=options.momentum, schedule=options.momentum_schedule)
        self.queue = Queue(options.queue_size, options.embedding_dim)

    @classmethod
    def needs(cls, options: MoCoOptions) -> tuple[str, ...]:
        return (options.modality,)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        query, key = (view.name for view in self.views)
        q = self.embed(query, self.project(encode, query), batch)  # (B, D)
        k = self.embed(key, self.target["head"](self.encode_target(encode, key)), batch)  # (B, D), no gradient
        columns = Embedded.cat([k, self.queue.columns()])  # (B + K, D)
        same, empty = same_instance(q, columns), columns.ids < 0
        queued = torch.arange(len(columns.ids), device=empty.device) >= len(k.ids)
        positive, negative = same & ~queued, ~same & queued & ~empty
        logits = similarity(q, columns) / self.options.temperature
        negative = hardest(logits, negative, share=self.options.hardest)
        loss = info_nce(logits, positive, ignore=~positive & ~negative)
        return Step(loss, memo={"keys": k.detach()}, embeddings={self.options.modality: q.detach()})

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        self.queue.push(step.memo["keys"])
        super().after_step(step, progress)
