"""BYOL: each of two augmentations of a clip predicts what a momentum copy of the network makes of the other one
(Grill et al., NeurIPS 2020). No negatives: the predictor and the slow target keep it from collapsing.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from avssl.config import Count, Options, Probability
from avssl.methods.base import Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.distillation import negative_cosine
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Changes, Same, Uniform, two_views


class BYOLOptions(Options):
    hidden_dim: Count = 4096
    embedding_dim: Count = 256
    momentum: Probability = 0.996  # of the target
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    interval: Literal["same", "uniform"] = "same"  # of the two clips: the same seconds, or anywhere (rho-BYOL)
    first: Changes = Field({"blur": 1.0})  # fields of the data section that differ for one view
    second: Changes = Field({"blur": 0.1, "solarize": 0.2})  # and for the other


class BYOL(Method):
    """See the module. Differs from BYOL: the target starts equal to the online network, not from weights of its own."""

    Options = BYOLOptions
    modalities = ("video",)

    def __init__(self, options: BYOLOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_usable(instances, "video", least=1)
        when = Same("video") if options.interval == "same" else Uniform()
        self.views = two_views(options.first, options.second, when=when)
        hidden, out, layers = options.hidden_dim, options.embedding_dim, {"norm": "hidden", "bias_hidden": True}
        self.heads = nn.ModuleDict({"video": mlp([encoders["video"].dim, hidden, out], bias_out=False, **layers)})
        self.predictor = mlp([out, hidden, out], bias_out=False, **layers)
        networks = {"video": encoders["video"], "head": self.heads["video"]}
        self.follow(networks, momentum=options.momentum, schedule=options.momentum_schedule)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z1, z2 = (self.project(encode, view.name) for view in self.views)  # (B, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)  # (B, D)
        t1, t2 = (self.target["head"](self.encode_target(encode, view.name)) for view in self.views)  # (B, D)
        present = self.present(batch, "video")  # (B,)
        # ||p1 - t2||^2 + ||p2 - t1||^2 of unit vectors
        loss = 4 + 2 * negative_cosine(p1, t2, present=present) + 2 * negative_cosine(p2, t1, present=present)
        return Step(loss, embeddings={"video": self.embed("video", z1.detach(), batch)})
