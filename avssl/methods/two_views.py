"""What methods share that bring two views of a clip together: which views, and which networks see them."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from avssl.config import Options
from avssl.methods.base import Encode, Method, check_pairs, check_usable
from avssl.structs import Batch, Embedded, Instances
from avssl.transforms.views import Changes, Same, Uniform, View, two_views


class TwoViewOptions(Options):
    views: Literal["video", "audio", "video+audio"] = "video"  # two augmentations of one, or a clip's video and audio
    interval: Literal["same", "uniform"] = "same"  # of two augmentations: the same seconds, or anywhere
    first: Changes = Field({})  # fields of the data section that differ for the first view
    second: Changes = Field({})  # and for the second


class TwoViews(Method):
    """Base class. Two augmentations pass through one network, one after the other; with video and audio each modality
    has a network of its own.

    A subclass makes `heads`, and where it wants them `predictors`, of every modality of `needs`.
    """

    Options = TwoViewOptions
    modalities = ("video",)  # unless the options say otherwise
    least = 1  # usable clips, without which there is nothing to learn

    def __init__(self, options: TwoViewOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        modalities = self.needs(options)
        if len(modalities) == 2:
            check_pairs(instances)
            self.views = (View("video", changes=options.first), View("audio", recipe="audio", changes=options.second))
        else:
            check_usable(instances, modalities[0], least=self.least)
            when = Same(modalities[0]) if options.interval == "same" else Uniform()
            self.views = two_views(options.first, options.second, when=when, modality=modalities[0])

    @classmethod
    def needs(cls, options: TwoViewOptions) -> tuple[str, ...]:
        return tuple(options.views.split("+"))

    def follow_all(self, *, momentum: float, schedule: Literal["constant", "cosine"]) -> None:
        """`follow` encoders and heads."""
        heads = {f"{modality}_head": head for modality, head in self.heads.items()}
        encoders = {modality: self.encoders[modality] for modality in self.heads}
        self.follow(encoders | heads, momentum=momentum, schedule=schedule)

    def outputs(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """The heads' outputs for both views, (B, D) each."""
        first, second = (self.project(encode, view.name) for view in self.views)
        return first, second

    def predictions(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What the views' predictors make of their outputs, (B, D) each."""
        first, second = (
            self.predictors[view.modality](output) for view, output in zip(self.views, outputs, strict=True)
        )
        return first, second

    def target_outputs(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """The momentum copy's outputs for both views, (B, D) each, without gradient."""
        first, second = (
            self.target[f"{view.modality}_head"](self.encode_target(encode, view.name)) for view in self.views
        )
        return first, second

    def present_in_both(self, batch: Batch) -> Tensor:
        """(B,) bool: rows that have what both views show."""
        first, second = (self.present(batch, view.modality) for view in self.views)
        return first & second

    def embeddings(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Embedded]:
        """{modality: unit vectors of its first view}, for the collapse metrics."""
        found: dict[str, Embedded] = {}
        for view, output in zip(self.views, outputs, strict=True):
            found.setdefault(view.modality, self.embed(view.name, output.detach(), batch))
        return found
