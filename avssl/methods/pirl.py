"""PIRL: a clip and its transformed version, shuffled tiles or a rotation, both have to pick the clip's own vector in a
memory bank, which only the plain clip moves (Misra & van der Maaten, CVPR 2020).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Count, Positive, Share
from avssl.methods.base import BankOptions, Encode, Method, check_usable
from avssl.methods.npid import against_bank
from avssl.models.heads import mlp
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.pretext import NUM_TILES
from avssl.transforms.views import Changes, Same, View


class PIRLOptions(BankOptions):
    transform: Literal["jigsaw", "rotation"] = "jigsaw"
    transformed: Changes = Field({})  # fields of the data section that differ for the transformed clip
    head: Literal["linear", "mlp"] = "linear"
    embedding_dim: Count = 128
    contrast: Literal["nce", "info_nce"] = "nce"
    num_negatives: Count = 32000
    temperature: Positive = 0.07
    weight: Share = 0.5  # of the transformed clip's term; the plain clip's has the rest


class PIRL(Method):
    """See the module. Tiles are shuffled by any permutation, those of all frames alike. The constant Z is that of the
    transformed clips in the first step.

    Source: Misra & van der Maaten 2020, eq. 5; vissl's nce_loss_with_memory. Differs from vissl: the bank moves after
    the step; negatives never contain the clip itself.
    """

    Options = PIRLOptions
    modalities = ("video",)

    def __init__(self, options: PIRLOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_usable(instances, "video")
        recipe = "tiles" if options.transform == "jigsaw" else "rotation"
        self.views = (View("video"), View(recipe, recipe=recipe, when=Same("video"), changes=options.transformed))
        dim, out = encoders["video"].dim, options.embedding_dim
        dims = [dim, *[dim] * (options.head == "mlp"), out]
        self.heads = nn.ModuleDict({"video": mlp(dims)})
        self.part = mlp(dims)
        self.join = mlp([NUM_TILES * out, out]) if recipe == "tiles" else nn.Identity()
        generator = torch.Generator().manual_seed(seed)
        self.bank = options.build_bank(instances.usable["video"], out, view=0, generator=generator)
        self.register_buffer("log_z", torch.tensor(float("nan")))  # unset until the first step

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        plain, transformed = (view.name for view in self.views)
        generator, own = self.generator(progress), batch.ids[:, None]
        x = encode(transformed)  # (B, dim), or (B, 9, dim)
        with encode.statistics(self.part, [transformed]):
            parts = self.part(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        if x.dim() == 3:
            parts = shuffled(parts, generator).flatten(1)
        z = {
            "transformed": self.embed(transformed, self.join(parts), batch),
            "plain": self.embed(plain, self.project(encode, plain), batch),
        }
        drawn = {name: self.bank.draw(self.options.num_negatives, avoid=own, generator=generator) for name in z}
        return self.contrast(z, drawn)

    def contrast(self, z: dict[str, Embedded], drawn: dict[str, Tensor]) -> Step:
        """The loss of embeddings (B, D) against drawn negatives (B, K), each {transformed, plain}."""
        options, log_z, terms = self.options, self.log_z, {}
        for name in ("transformed", "plain"):  # the first sets log Z
            terms[name], log_z = against_bank(
                z[name],
                drawn[name],
                self.bank,
                log_z=log_z,
                temperature=options.temperature,
                hardest_share=options.hardest,
                contrast=options.contrast,
            )
        loss = options.weight * terms["transformed"] + (1 - options.weight) * terms["plain"]
        logs = {name: term.detach() for name, term in terms.items()}
        return Step(loss, logs, {"log_z": log_z}, {"video": z["plain"].detach()})

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        self.log_z.copy_(step.memo["log_z"])
        self.bank.update(step.embeddings["video"], momentum=self.options.bank_momentum)


def shuffled(parts: Tensor, generator: torch.Generator) -> Tensor:
    """(B, N, D) with the N of each row in an order of its own, whatever the number of ranks."""
    order = distributed.uniform_rows(*parts.shape[:2], generator=generator, device=parts.device).argsort(dim=1)
    return parts.gather(1, order[..., None].expand_as(parts))
