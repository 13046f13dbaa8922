"""Pretext tasks: something is done to a clip, and the encoder has to say what. The label is free.

rotation: by how many quarter turns (Gidaris et al. 2018; for video Jing et al. 2018)
position: where a tile lies beside the middle one (Doersch et al. 2015)
jigsaw: by which of some permutations nine tiles were shuffled (Noroozi & Favaro 2016)
order: in which order segments of a clip or a sound stand (Misra et al. 2016; Xu et al. 2019)
speed: how fast a clip or a sound plays (Wang et al. 2020)
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Count, NotNegative, Options
from avssl.methods.base import Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.contrast import mean_over_rows
from avssl.objectives.permutations import distant_permutations
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.pretext import NUM_ROTATIONS, NUM_TILES, AudioSegments, AudioSpeed, Segments, Speed
from avssl.transforms.views import View

MIDDLE = NUM_TILES // 2


class PretextOptions(Options):
    task: Literal["rotation", "position", "jigsaw", "order", "speed"] = "rotation"
    modality: Literal["video", "audio"] = "video"  # order and speed are tasks on sound too
    num_permutations: Count = 100  # jigsaw: of the nine tiles, far from each other
    num_segments: int = Field(3, ge=2, le=5)  # order: all orders of so many
    gap: NotNegative = 0.5  # order: between two segments, as a fraction of one
    num_speeds: int = Field(4, ge=2)  # speed: 1 to so many times as fast
    hidden_dim: Count = 512  # of the vector of each part, before all are told apart

    @model_validator(mode="after")
    def _check_modality(self) -> Self:
        if self.modality == "audio" and self.task not in ("order", "speed"):
            raise ValueError(f"task={self.task} is one of pictures: with modality=audio expected order or speed")
        return self


class Pretext(Method):
    """See the module. A clip that is too short for its segments counts nowhere: the last ones would repeat its end.

    Differs from Doersch et al. and from Xu et al. (VCOP): parts are told apart from their vectors side by side; there,
    behind further layers, and in pairs. Differs from Doersch: the loss is a mean, there a sum.
    """

    Options = PretextOptions
    modalities = ("video",)  # unless the options say audio

    def __init__(self, options: PretextOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        modality, num_parts, sound = options.modality, 1, options.modality == "audio"
        check_usable(instances, modality, least=1)
        orders = torch.zeros(0, 0, dtype=torch.int64)  # (C, parts) which part stands where, by label
        match options.task:
            case "rotation":
                recipe, num_classes = "rotation", NUM_ROTATIONS
            case "position":  # the middle tile, then one of the eight around it
                recipe = "tiles"
                orders = torch.tensor([[MIDDLE, tile] for tile in range(NUM_TILES) if tile != MIDDLE])
            case "jigsaw":
                first = int(torch.randint(math.factorial(NUM_TILES), (), generator=torch.Generator().manual_seed(seed)))
                recipe = "tiles"
                orders = torch.from_numpy(distant_permutations(NUM_TILES, options.num_permutations, first=first))
            case "order":
                recipe = (AudioSegments if sound else Segments)(options.num_segments, options.gap)
                every = math.factorial(options.num_segments)
                orders = torch.from_numpy(distant_permutations(options.num_segments, every))
            case "speed":
                strides = tuple(range(1, options.num_speeds + 1))
                recipe, num_classes = (AudioSpeed if sound else Speed)(strides), options.num_speeds
        if len(orders):
            num_classes, num_parts = orders.shape
        self.register_buffer("orders", orders)  # in the checkpoint: they are what a label means
        self.views = (View(options.task, recipe=recipe),)
        hidden = options.hidden_dim
        self.part = mlp([encoders[modality].dim, hidden, hidden], norm="all") if num_parts > 1 else nn.Identity()
        self.answer = nn.Linear(num_parts * hidden if num_parts > 1 else encoders[modality].dim, num_classes)

    @classmethod
    def needs(cls, options: PretextOptions) -> tuple[str, ...]:
        return (options.modality,)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        (view,) = self.views
        label = self.labels(batch, progress)  # (B,)
        if len(self.orders):
            parts = getattr(batch, self.options.modality)[view.name]  # (B, 9 or G, ...)
            rows = torch.arange(len(parts), device=parts.device)[:, None]
            each = encode(view.name, x=parts[rows, self.orders[label]])  # (B, parts, dim)
            x = F.relu(self.part(each.flatten(0, 1))).unflatten(0, each.shape[:2]).flatten(1)
        else:
            x = encode(view.name)  # (B, dim)
        logits = self.answer(x)  # (B, C)
        counted = self.present(batch, self.options.modality)
        if self.options.task in ("order", "speed"):
            counted = counted & ~batch.padded[view.name].to(counted.device, non_blocking=True)
        right = (logits.detach().argmax(dim=1) == label) & counted
        loss = mean_over_rows(F.cross_entropy(logits, label, reduction="none"), counted, logits)
        return Step(loss, logs={"accuracy": right.sum() / counted.sum().clamp(min=1)})

    def labels(self, batch: Batch, progress: Progress) -> Tensor:
        """(B,) int64: those that came with the clips, or drawn for the batch of all ranks alike."""
        params = batch.params[self.views[0].name]
        if "label" in params:
            return params["label"].to(batch.ids.device, non_blocking=True)
        generator, device = self.generator(progress), batch.ids.device
        drawn = distributed.uniform_rows(len(batch.ids), generator=generator, device=device)
        return (len(self.orders) * drawn).long()
