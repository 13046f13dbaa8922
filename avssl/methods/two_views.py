"""What methods share that bring two views of a clip together: which views, and which networks see them."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, NotNegative, Options
from avssl.methods.base import Encode, Method, check_pairs, check_usable, still_statistics
from avssl.structs import MODALITIES, Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import Changes, Same, Uniform, View, two_views


class TwoViewOptions(Options):
    # two augmentations of one modality, or one of each of two; differences: what changes from frame to frame
    views: Literal["video", "audio", "video+audio", "video+differences"] = "video"
    interval: Literal["same", "uniform"] = "same"  # of two augmentations: the same seconds, or anywhere
    first: Changes = Field({})  # fields of the data section that differ for the first view
    second: Changes = Field({})  # and for the second
    adversarial: NotNegative = 0.0  # largest change of a normalized pixel or spectrogram value, to make the loss larger
    adversarial_steps: Count = 1


class TwoViews(Method):
    """Base class. Two augmentations pass through one network, one after the other; two modalities have a network each.
    That of frame differences, which stand in for depth or flow, begins as a copy of the video's and is not exported.

    A subclass makes `heads`, and where it wants them `predictors`, of every one of `branches`.
    """

    Options = TwoViewOptions
    modalities = ("video",)  # unless the options say otherwise
    least = 1  # usable clips, without which there is nothing to learn

    def __init__(self, options: TwoViewOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        name, *others = self.branches(options)
        when = Same(name) if options.interval == "same" else Uniform()
        if "audio" in others:
            check_pairs(instances)
            self.views = (View("video", changes=options.first), View("audio", recipe="audio", changes=options.second))
            return
        check_usable(instances, name, least=self.least)
        self.views = two_views(options.first, options.second, when=when, modality=name)
        for other in others:
            self.own_encoders[other] = copy.deepcopy(encoders[name])
            self.views = (self.views[0], View(other, recipe=other, when=when, changes=options.second))

    @classmethod
    def needs(cls, options: TwoViewOptions) -> tuple[str, ...]:
        return tuple(name for name in cls.branches(options) if name in MODALITIES)

    @staticmethod
    def branches(options: TwoViewOptions) -> tuple[str, ...]:
        """Names of the networks that see the views."""
        return tuple(options.views.split("+"))

    def forward(self, batch: Batch, progress: Progress, *, num_parts: int = 1) -> Step:
        if self.options.adversarial:
            batch = self.harder(batch, progress, num_parts=num_parts)
        return super().forward(batch, progress, num_parts=num_parts)

    @torch.enable_grad()
    def harder(self, batch: Batch, progress: Progress, *, num_parts: int = 1) -> Batch:
        """The batch with views that make the loss larger: in each of `adversarial_steps` every value moves by an equal
        part of `adversarial`, along the sign of the loss's gradient.

        Source: Goodfellow et al. 2015, section 4, iterated as by Kurakin et al. 2017.
        """
        options, names = self.options, [view.name for view in self.views]
        for _ in range(options.adversarial_steps):
            inputs = {name: x.detach().requires_grad_() for name, x in {**batch.video, **batch.audio}.items()}
            own = replace(batch, video={n: inputs[n] for n in batch.video}, audio={n: inputs[n] for n in batch.audio})
            with still_statistics(self):
                loss = self.loss(Encode(self.networks, self.views, own, num_parts=num_parts), own, progress).loss
            slopes = torch.autograd.grad(loss, [inputs[name] for name in names])
            part = options.adversarial / options.adversarial_steps
            moved = {name: (inputs[name] + part * x.sign()).detach() for name, x in zip(names, slopes, strict=True)}
            batch = replace(batch, video={n: moved[n] for n in batch.video}, audio={n: moved[n] for n in batch.audio})
        return batch

    def outputs(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """The heads' outputs for both views, (B, D) each."""
        first, second = (self.project(encode, view.name) for view in self.views)
        return first, second

    def predictions(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What the views' predictors make of their outputs, (B, D) each."""
        first, second = (
            self.predictors[view.network](output) for view, output in zip(self.views, outputs, strict=True)
        )
        return first, second

    def target_outputs(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """The momentum copy's outputs for both views, (B, D) each, without gradient."""
        first, second = (self.project_target(encode, view.name) for view in self.views)
        return first, second

    def present_in_both(self, batch: Batch) -> Tensor:
        """(B,) bool: rows that have what both views show."""
        first, second = (self.present(batch, view.modality) for view in self.views)
        return first & second

    def embeddings(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Embedded]:
        """{network: unit vectors of its first view}, for the collapse metrics."""
        found: dict[str, Embedded] = {}
        for view, output in zip(self.views, outputs, strict=True):
            found.setdefault(view.network, self.embed(view.name, output.detach(), batch))
        return found
