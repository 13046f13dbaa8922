"""SimCLR: among all augmentations in the batch, each has to pick the other one of its clip (Chen et al., ICML 2020)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, Options, Positive
from avssl.methods.base import Encode, Method, check_pairs, check_usable
from avssl.models.heads import mlp
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_crop, same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import Changes, Same, Uniform, View, two_views


class SimCLROptions(Options):
    views: Literal["video", "audio", "video+audio"] = "video"  # two augmentations of one, or a clip's video and audio
    interval: Literal["same", "uniform"] = "same"  # of two augmentations: the same seconds, or anywhere (rho-SimCLR)
    first: Changes = Field({})  # fields of the data section that differ for one augmentation
    second: Changes = Field({})  # and for the other
    hidden_dim: Count = 2048
    embedding_dim: Count = 128
    temperature: Positive = 0.1


class SimCLR(Method):
    """See the module. BatchNorm sees both augmentations together. Another clip of the same video is a positive too.

    Source: Chen et al. 2020, eq. 1 (NT-Xent), averaged over both views. Differs from SimCLR: its code adds the means of
    the views, which is twice this. With video and audio each has a network of its own; unlike `infonce`, the other
    clips of a query's own modality are negatives too.
    """

    Options = SimCLROptions

    def __init__(self, options: SimCLROptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        modalities = self.needs(options)
        if len(modalities) == 2:
            check_pairs(instances)
            self.views = (View("video", changes=options.first), View("audio", recipe="audio", changes=options.second))
        else:
            check_usable(instances, modalities[0])
            when = Same(modalities[0]) if options.interval == "same" else Uniform()
            self.views = two_views(options.first, options.second, when=when, modality=modalities[0])
        dims = [options.hidden_dim, options.hidden_dim, options.embedding_dim]
        self.heads = nn.ModuleDict(
            {name: mlp([encoders[name].dim, *dims], norm="all", affine_out="scale") for name in modalities}
        )

    @classmethod
    def needs(cls, options: SimCLROptions) -> tuple[str, ...]:
        return tuple(options.views.split("+"))

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        names = [view.name for view in self.views]
        raw = self.together(encode, names) if len(self.heads) == 1 else [self.project(encode, name) for name in names]
        parts = [self.embed(name, each, batch) for name, each in zip(names, raw, strict=True)]  # (B, D) each
        z = Embedded.cat(parts)  # (2 B, D)
        columns = in_batch(z)  # (M, D) of all ranks
        itself = same_crop(z, columns)
        positive = same_instance(z, columns) & ~itself
        logits = similarity(z, columns) / self.options.temperature
        loss = info_nce(logits, positive, ignore=itself | (columns.ids < 0))
        return Step(loss, embeddings={name: part.detach() for name, part in zip(self.heads, parts, strict=False)})

    def together(self, encode: Encode, views: Sequence[str]) -> tuple[Tensor, ...]:
        """The head's outputs for views of one modality that pass as one batch: (B, D) each."""
        (head,) = self.heads.values()
        features = torch.cat(encode.together(views))
        with encode.statistics(head, views):
            return head(features).chunk(len(views))
