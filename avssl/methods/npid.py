"""NPID: every clip is a class of its own, whose vector in a memory bank it has to pick among those of other clips (Wu,
Xiong, Yu, Lin; CVPR 2018). On frames, on sound, or on each by itself.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from avssl.config import Count, Positive
from avssl.methods.base import BankOptions, Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.contrast import info_nce, log_mean_exp, nce, similarity
from avssl.objectives.negatives import Bank, hardest
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import View


class NPIDOptions(BankOptions):
    modality: Literal["video", "audio", "both"] = "video"
    embedding_dim: Count = 128
    num_negatives: Count = 4096
    temperature: Positive = 0.07


class NPID(Method):
    """See the module. The constant Z of each modality is the mean exponentiated score of the first step, positives
    included, for the whole run.

    Differs from NPID: the bank starts from unit vectors, and moves after the step, not in its backward pass; negatives
    never contain the clip itself.
    """

    Options = NPIDOptions
    modalities = ("video",)  # unless the options say audio or both

    def __init__(self, options: NPIDOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        names, dim, generator = self.needs(options), options.embedding_dim, torch.Generator().manual_seed(seed)
        for name in names:
            check_usable(instances, name)
        self.views = tuple(View(name, recipe=name) for name in names)
        self.heads = nn.ModuleDict({name: mlp([encoders[name].dim, dim]) for name in names})
        self.banks = nn.ModuleDict(
            {n: options.build_bank(instances.usable[n], dim, view=i, generator=generator) for i, n in enumerate(names)}
        )
        self.register_buffer("log_z", torch.full((len(names),), float("nan")))  # of each modality, unset at first

    @classmethod
    def needs(cls, options: NPIDOptions) -> tuple[str, ...]:
        return ("video", "audio") if options.modality == "both" else (options.modality,)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        z = {name: self.embed(name, self.project(encode, name), batch) for name in self.heads}  # (B, D) each
        terms, log_z = {}, []
        for number, (name, query) in enumerate(z.items()):
            drawn = self.banks[name].draw(
                self.options.num_negatives, avoid=query.ids[:, None], generator=self.generator(progress)
            )
            terms[name], each = against_bank(
                query,
                drawn,
                self.banks[name],
                log_z=self.log_z[number],
                temperature=self.options.temperature,
                hardest_share=self.options.hardest,
            )
            log_z.append(each)
        logs = {name: term.detach() for name, term in terms.items()} if len(terms) > 1 else {}
        embeddings = {name: query.detach() for name, query in z.items()}
        return Step(sum(terms.values()) / len(terms), logs, {"log_z": torch.stack(log_z)}, embeddings)

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        self.log_z.copy_(step.memo["log_z"])
        for name, bank in self.banks.items():
            bank.update(step.embeddings[name], momentum=self.options.bank_momentum)


def against_bank(
    query: Embedded,
    drawn: Tensor,
    bank: Bank,
    *,
    log_z: Tensor,
    temperature: float,
    hardest_share: float = 1.0,
    contrast: Literal["nce", "info_nce"] = "nce",
) -> tuple[Tensor, Tensor]:
    """The loss of embeddings (B, D) against their own vectors in a bank and drawn negatives (B, K), and log Z as it was
    or, where it was NaN, as this batch sets it, positives included.
    """
    columns = bank.columns(query.ids[:, None], drawn)  # (B, 1 + K, D)
    empty = columns.ids < 0
    positive = torch.zeros_like(empty)
    positive[:, 0] = query.ids >= 0
    logits = similarity(query, columns) / temperature
    log_z = torch.where(torch.isnan(log_z), log_mean_exp(logits, ~empty & (query.ids >= 0)[:, None]), log_z)
    ignore = ~positive & ~hardest(logits, ~positive & ~empty, share=hardest_share)
    if contrast == "info_nce":
        return info_nce(logits, positive, ignore=ignore), log_z
    return nce(logits, positive, log_z=torch.nan_to_num(log_z), ignore=ignore), log_z
