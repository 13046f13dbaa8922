"""SwAV: crops of a clip are assigned to prototypes that the batch has to fill evenly, and each crop predicts the code
of the others (Caron et al., NeurIPS 2020).
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from avssl.config import Count, Options, Positive
from avssl.methods.base import Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.clustering import prototype_scores, queue_scores, sinkhorn, swapped_prediction
from avssl.objectives.negatives import Queue
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Changes, Same, Uniform, multi_crop


class SwAVOptions(Options):
    num_large: Count = 2  # crops that get a code
    num_small: int = Field(6, ge=0)
    small: Changes = Field({"size": 96, "min_crop_area": 0.05, "max_crop_area": 0.14})  # data of small crops
    interval: Literal["same", "uniform"] = "same"  # of the crops: the same seconds, or anywhere (rho-SwAV)
    num_prototypes: Count = 3000
    hidden_dim: Count = 2048
    embedding_dim: Count = 128
    epsilon: Positive = 0.05
    num_iterations: Count = 3
    temperature: Positive = 0.1
    freeze_steps: int = Field(313, ge=0)  # steps in which the prototypes stay as they are
    queue_size: int = Field(0, ge=0)  # vectors of earlier batches that fill the prototypes too, over all ranks
    queue_from_epoch: int = Field(15, ge=0)

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        if self.num_large + self.num_small < 2:
            raise ValueError(f"num_large={self.num_large} and num_small={self.num_small}: expected two crops or more")
        return self


class SwAV(Method):
    """See the module. Differs from SwAV: prototypes are made unit after each step, not before; one queue over ranks."""

    Options = SwAVOptions
    modalities = ("video",)

    def __init__(self, options: SwAVOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_usable(instances, "video")
        when = Same("video") if options.interval == "same" else Uniform()
        self.views = multi_crop(options.num_large, options.num_small, small=options.small, when=when)
        dims = [encoders["video"].dim, options.hidden_dim, options.embedding_dim]
        self.heads = nn.ModuleDict({"video": mlp(dims, norm="hidden", bias_hidden=True)})
        self.prototypes = nn.Parameter(F.normalize(torch.randn(options.num_prototypes, options.embedding_dim), dim=1))
        self.find_unused_parameters = options.freeze_steps > 0
        num_queues = options.num_large if options.queue_size else 0
        self.queues = nn.ModuleList(Queue(options.queue_size, options.embedding_dim) for _ in range(num_queues))

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        options, present = self.options, self.present(batch, "video")  # (B,)
        prototypes = self.prototypes.detach() if progress.step < options.freeze_steps else self.prototypes  # (K, D)
        names = [view.name for view in self.views]
        embedded = {name: self.embed(name, self.project(encode, name), batch) for name in names}
        scores = {name: prototype_scores(x.z, prototypes) for name, x in embedded.items()}  # (B, K)
        uses_queue = len(self.queues) > 0 and progress.epoch >= options.queue_from_epoch
        earlier = [queue_scores(queue, prototypes) if uses_queue else None for queue in self.queues]
        earlier = earlier or [None] * options.num_large
        how = {"epsilon": options.epsilon, "num_iterations": options.num_iterations, "valid": present}
        codes = {name: sinkhorn(scores[name], earlier=each, **how) for name, each in zip(names, earlier, strict=False)}
        loss = swapped_prediction(scores, codes, temperature=options.temperature, valid=present)
        memo = {name: embedded[name].detach() for name in codes}
        return Step(loss, memo=memo, embeddings={"video": memo["video"]})

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        for new, queue in zip(step.memo.values(), self.queues, strict=False):
            queue.push(new)
