"""SwAV: crops of a clip are assigned to prototypes that the batch has to fill evenly, and each crop predicts the code
of the others (Caron et al., NeurIPS 2020).
"""

import copy
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avssl.config import Count, Options, Positive
from avssl.methods.base import Encode, Method, check_pairs, check_usable
from avssl.models.heads import mlp
from avssl.objectives.clustering import power_law, prototype_scores, queue_scores, sinkhorn, swapped_prediction
from avssl.objectives.negatives import Queue
from avssl.structs import MODALITIES, Batch, Instances, Progress, Step
from avssl.transforms.views import Changes, First, Same, Uniform, View, multi_crop


class SwAVOptions(Options):
    # with two modalities, the other is one crop more, with a code; differences: what changes from frame to frame
    views: Literal["video", "audio", "video+audio", "video+differences"] = "video"
    num_large: Count = 2  # crops that get a code
    num_small: int = Field(6, ge=0)
    small: Changes = Field({"size": 96, "min_crop_area": 0.05, "max_crop_area": 0.14})  # data of small crops
    interval: Literal["same", "uniform"] = "same"  # of the crops: the same seconds, or anywhere (rho-SwAV)
    num_prototypes: Count = 3000
    head_layers: int = Field(2, ge=2)  # SEER: 3
    hidden_dim: Count = 2048
    embedding_dim: Count = 128
    epsilon: Positive = 0.05
    num_iterations: Count = 3
    temperature: Positive = 0.1
    freeze_steps: int = Field(313, ge=0)  # steps in which the prototypes stay as they are
    codes: Literal["soft", "hard"] = "soft"  # hard: one prototype alone
    marginals: Literal["uniform", "power_law"] = "uniform"  # shares of the prototypes in a batch
    queue_size: int = Field(0, ge=0)  # vectors of earlier batches that fill the prototypes too, over all ranks
    queue_from_epoch: int = Field(15, ge=0)

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        if self.num_large + self.num_small + ("+" in self.views) < 2:
            raise ValueError(f"num_large={self.num_large} and num_small={self.num_small}: expected two crops or more")
        if self.views == "audio" and self.num_small:
            raise ValueError(f"num_small={self.num_small}: sound has no small crops, so views=audio needs num_small=0")
        return self


class SwAV(Method):
    """See the module. Across modalities prototypes are shared: the code of the picture is predicted from the sound, or
    from its frame differences (whose network begins as a copy of the video's and is not exported), and the reverse. A
    row that lacks a modality is left out where it is asked for, in codes as in the loss.

    Differs from SwAV: prototypes are made unit after each step, not before; one queue over ranks. From SeLaVi and XDC,
    its relatives across modalities: codes come anew from each batch, not from the whole set between epochs, and those
    of a modality from it alone (SeLaVi: from both together).
    """

    Options = SwAVOptions
    modalities = ("video",)  # unless the options say otherwise

    def __init__(self, options: SwAVOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        name, *others = options.views.split("+")
        if "audio" in others:
            check_pairs(instances)
        check_usable(instances, name)
        if "differences" in others:
            self.own_encoders["differences"] = copy.deepcopy(encoders[name])
        self.views = self.crops(options)
        names = [view.name for view in self.views]
        self.coded = names[: options.num_large] + names[-1:] * len(others)
        out = options.embedding_dim
        dims = [*[options.hidden_dim] * (options.head_layers - 1), out]
        self.heads = nn.ModuleDict(
            {m: mlp([self.networks[m].dim, *dims], norm="hidden", bias_hidden=True) for m in (name, *others)}
        )
        self.prototypes = nn.Parameter(F.normalize(torch.randn(options.num_prototypes, out), dim=1))
        self.find_unused_parameters = options.freeze_steps > 0
        num_queues = len(self.coded) if options.queue_size else 0
        self.queues = nn.ModuleList(Queue(options.queue_size, out) for _ in range(num_queues))

    @classmethod
    def needs(cls, options: SwAVOptions) -> tuple[str, ...]:
        return tuple(name for name in options.views.split("+") if name in MODALITIES)

    @staticmethod
    def crops(options: SwAVOptions) -> tuple[View, ...]:
        """Those that get a code stand before the small ones, and that of the second modality last."""
        name, *others = options.views.split("+")
        when = Same(name) if options.interval == "same" else Uniform()
        if name == "audio":
            more = (View(f"audio.{i}", recipe="audio", when=when) for i in range(1, options.num_large))
            return View("audio", recipe="audio"), *more
        crops = multi_crop(options.num_large, options.num_small, small=options.small, when=when)
        return *crops, *(View(other, recipe=other, when=First() if other == "audio" else when) for other in others)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        options = self.options
        prototypes = self.prototypes.detach() if progress.step < options.freeze_steps else self.prototypes  # (K, D)
        embedded = {view.name: self.embed(view.name, self.project(encode, view.name), batch) for view in self.views}
        present = {name: x.ids >= 0 for name, x in embedded.items()}  # (B,)
        scores = {name: prototype_scores(x.z, prototypes) for name, x in embedded.items()}  # (B, K)
        uses_queue = len(self.queues) > 0 and progress.epoch >= options.queue_from_epoch
        earlier = [queue_scores(queue, prototypes) if uses_queue else None for queue in self.queues]
        earlier = dict(zip(self.coded, earlier or [None] * len(self.coded), strict=True))
        codes = {name: self.code(scores[name], present[name], earlier[name]) for name in self.coded}
        loss = swapped_prediction(scores, codes, temperature=options.temperature, valid=present)
        memo = {name: embedded[name].detach() for name in codes}
        return Step(loss, memo=memo, embeddings={modality: memo[modality] for modality in self.heads})

    def code(self, scores: Tensor, present: Tensor, earlier: tuple[Tensor, Tensor] | None) -> Tensor:
        """Codes (B, K) of scores (B, K), of the rows that are present (B,)."""
        options, num = self.options, scores.shape[1]
        how = {"epsilon": options.epsilon, "num_iterations": options.num_iterations}
        how["shares"] = power_law(num, device=scores.device) if options.marginals == "power_law" else None
        codes = sinkhorn(scores, earlier=earlier, valid=present, **how)
        return codes if options.codes == "soft" else F.one_hot(codes.argmax(dim=1), num) * present[:, None].float()

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        for new, queue in zip(step.memo.values(), self.queues, strict=False):
            queue.push(new)
