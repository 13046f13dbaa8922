"""SwAV: crops of a clip are assigned to prototypes that the batch has to fill evenly, and each crop predicts the code
of the others (Caron et al., NeurIPS 2020).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from avssl import distributed
from avssl.config import Count, Options, Positive
from avssl.methods.base import Encode, Method, check_videos
from avssl.models.heads import mlp
from avssl.objectives.clustering import sinkhorn, swapped_prediction
from avssl.objectives.negatives import Queue
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Same, Uniform, multi_crop


class SwAVOptions(Options):
    num_large: int = Field(2, ge=1)  # crops that get a code
    num_small: int = Field(6, ge=0)
    # fields of the data section that differ for the small crops
    small: dict[str, Any] = Field({"size": 96, "min_crop_area": 0.05, "max_crop_area": 0.14})
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


class SwAV(Method):
    """See the module. Differs from SwAV: the prototypes are made unit after each step instead of before it; the queue
    is one over all ranks, of which each takes its share.
    """

    Options = SwAVOptions
    modalities = ("video",)

    def __init__(self, options: SwAVOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_videos(instances)
        when = Same("video") if options.interval == "same" else Uniform()
        self.views = multi_crop(options.num_large, options.num_small, small=options.small, when=when)
        self.large = [view.name for view in self.views[: options.num_large]]
        dims = [encoders["video"].dim, options.hidden_dim, options.embedding_dim]
        self.heads = nn.ModuleDict({"video": mlp(dims, norm="hidden", bias_hidden=True)})
        self.prototypes = nn.Parameter(F.normalize(torch.randn(options.num_prototypes, options.embedding_dim), dim=1))
        self.find_unused_parameters = options.freeze_steps > 0
        queues = [Queue(options.queue_size, options.embedding_dim) for _ in self.large if options.queue_size]
        self.queues = nn.ModuleList(queues)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        options, present = self.options, self.present(batch, "video")  # (B,)
        prototypes = self.prototypes.detach() if progress.step < options.freeze_steps else self.prototypes  # (K, D)
        raw = {view.name: self.heads["video"](encode(view.name)) for view in self.views}
        embedded = {name: self.embed(name, x, batch) for name, x in raw.items()}
        with torch.autocast(prototypes.device.type, enabled=False):
            scores = {name: x.z @ prototypes.T for name, x in embedded.items()}  # (B, K)
        uses_queue = progress.epoch >= options.queue_from_epoch and bool(self.queues)
        codes = {}
        for i, name in enumerate(self.large):
            filled, valid = scores[name].detach(), present
            if uses_queue:
                ids, own = self.queues[i].ids, slice(distributed.rank(), None, distributed.world_size())
                with torch.autocast(prototypes.device.type, enabled=False):
                    filled = torch.cat([self.queues[i].z[own] @ prototypes.detach().T, filled])  # (L / W + B, K)
                valid = torch.cat([(ids[own] >= 0) & (ids >= 0).all(), present])  # none of it before it is full
            both = sinkhorn(filled, epsilon=options.epsilon, num_iterations=options.num_iterations, valid=valid)
            codes[name] = both[-len(present) :]
        loss = swapped_prediction(scores, codes, temperature=options.temperature, valid=present)
        memo = {name: embedded[name].detach() for name in self.large}
        return Step(loss, memo=memo, embeddings={"video": memo[self.large[0]]})

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        for name, queue in zip(self.large, self.queues, strict=False):
            queue.push(step.memo[name])
