"""AVID: audio-visual instance discrimination (Morgado, Vasconcelos, Misra; CVPR 2021).

Every video is a class of its own. A clip's frames have to pick the bank's vector of its own sound among those of other
videos, and its sound that of its own frames; the banks hold running means of earlier embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, NotNegative, Positive
from avssl.methods.base import BankOptions, Encode, HeadOptions, Method, build_heads, check_pairs
from avssl.methods.infonce import contrast_pairs
from avssl.objectives.contrast import info_nce, log_mean_exp, nce, similarity
from avssl.objectives.negatives import hardest
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import View


class AVIDOptions(HeadOptions, BankOptions):
    """Defaults: the released Cross-N1024 recipe."""

    cross: NotNegative = 1.0  # weight of video against audio and audio against video
    within: NotNegative = 0.0  # weight of video against video and audio against audio
    num_negatives: Count = 1024
    num_negatives_within: Count | None = None  # negatives of the within-modal terms; null = all
    temperature: Positive = 0.07
    contrast: Literal["nce", "info_nce"] = "nce"  # a positive against a constant log Z | against its query's negatives
    in_batch_epochs: int = Field(0, ge=0)  # first epochs that contrast the clips of a batch, while the banks fill


@dataclass(frozen=True)
class Term:
    """One direction of the loss: queries against the bank's vectors of their positives and of the drawn negatives."""

    name: str
    weight: float
    query: Embedded  # (B, D)
    bank: str
    positives: Tensor  # (B, P) ids
    num_negatives: int | None  # the first of the drawn ones; None = all
    rule: Callable[[Embedded, Embedded], Tensor]  # marks the positive columns


class AVID(Method):
    """See the module. Differs from AVID-CMA: the temperature is an option; a modality that a clip lacks stays in the
    batch as a masked row, is never stored, and the clip learns through the terms that do not need it (`within`);
    `in_batch_epochs`: heads that start almost equal for all clips stay so against a bank that is as old as an epoch,
    and log Z, set on random vectors, is too small for trained ones. In-batch InfoNCE leaves that plateau, and log Z is
    set in the first step after it. `contrast: info_nce`: one log Z for all terms, as in the reference, is that of video
    against audio, and embeddings of one modality are closer to each other than that.
    """

    Options = AVIDOptions
    views = (View("video"), View("audio", recipe="audio"))
    log_z: Tensor

    def __init__(self, options: AVIDOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        self.check_clips(instances)
        generator = torch.Generator().manual_seed(seed)
        self.heads = build_heads(encoders, options, self.modalities)
        self.banks = nn.ModuleDict(
            {
                modality: options.build_bank(
                    instances.usable[modality], options.embedding_dim, view=number, generator=generator
                )
                for number, modality in enumerate(self.modalities)
            }
        )
        self.register_buffer("log_z", torch.tensor(float("nan")))  # unset until the first step against the banks
        self._log_z_is_set = False
        self.register_load_state_dict_post_hook(AVID._ask_log_z_again)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        video = self.embed("video", self.project(encode, "video"), batch)  # (B, D)
        audio = self.embed("audio", self.project(encode, "audio"), batch)  # (B, D)
        if progress.epoch < self.options.in_batch_epochs:
            return contrast_pairs(video, audio, temperature=self.options.temperature)
        return self.contrast(video, audio, batch.ids, self.draw(batch.ids, progress))

    def terms(self, video: Embedded, audio: Embedded, ids: Tensor) -> list[Term]:
        """The table of the loss, in the order in which the reference scores it."""
        cross, within, few = self.options.cross / 2, self.options.within / 2, self.options.num_negatives_within
        own = ids[:, None]
        return [
            Term("v2a", cross, video, "audio", own, None, same_instance),
            Term("a2v", cross, audio, "video", own, None, same_instance),
            Term("v2v", within, video, "video", own, few, same_instance),
            Term("a2a", within, audio, "audio", own, few, same_instance),
        ]

    def contrast(self, video: Embedded, audio: Embedded, ids: Tensor, negative_ids: dict[str, Tensor]) -> Step:
        """The loss of embeddings (B, D) of instances ids (B,) against given negatives {modality: (B, K)}."""
        log_z, is_set = self.log_z, self.log_z_is_set
        total, weights, logs = 0.0, 0.0, {}
        for term in self.terms(video, audio, ids):
            if not term.weight:
                continue
            negatives = negative_ids[term.bank][:, : term.num_negatives]
            columns = self.banks[term.bank].columns(term.positives, negatives)  # (B, P + K, D)
            positive, empty = term.rule(term.query, columns), columns.ids < 0  # (B, P + K)
            logits = similarity(term.query, columns) / self.options.temperature  # (B, P + K)
            if not is_set and torch.isnan(log_z):  # the first scored term of the first step sets it for the whole run
                scored = positive.any(dim=1, keepdim=True)
                log_z = log_mean_exp(logits, scored & ~positive & ~empty)
            ignore = ~positive & ~hardest(logits, ~positive & ~empty, share=self.options.hardest)
            if self.options.contrast == "nce":
                logs[term.name] = nce(logits, positive, log_z=torch.nan_to_num(log_z), ignore=ignore)
            else:
                logs[term.name] = info_nce(logits, positive, ignore=ignore)
            total = total + term.weight * logs[term.name]
            weights += term.weight
        return Step(
            loss=total / weights,
            logs={name: value.detach() for name, value in logs.items()},
            memo={"log_z": log_z},
            embeddings={"video": video.detach(), "audio": audio.detach()},
        )

    def draw(self, ids: Tensor, progress: Progress) -> dict[str, Tensor]:
        """Negatives (B, K) of each bank for instances ids (B,), once per step for all terms.

        Each bank draws from the clips it holds, with the same random numbers: when all clips have both modalities the
        ids are the same for both, as in AVID-CMA.
        """
        num, avoid = self.options.num_negatives, self.avoid(ids)
        return {
            modality: bank.draw(num, avoid=avoid, generator=self.generator(progress))
            for modality, bank in self.banks.items()
        }

    def avoid(self, ids: Tensor) -> Tensor:
        """Ids (B, P) that the rows of `ids` (B,) must not draw as negatives."""
        return ids[:, None]

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        for modality, bank in self.banks.items():
            bank.update(step.embeddings[modality], momentum=self.options.bank_momentum)
        if "log_z" in step.memo and not self.log_z_is_set:
            self.log_z.copy_(step.memo["log_z"])

    def check_clips(self, instances: Instances) -> None:
        """Raise ValueError unless some term can tell some clip of the split apart from another one."""
        if not (self.options.cross or self.options.within):
            raise ValueError("method.cross=0 and method.within=0 leave nothing to learn from: set one of them to 1")
        if self.options.in_batch_epochs and not self.options.cross:
            raise ValueError("method.in_batch_epochs contrasts video with audio: leave it 0 where method.cross=0")
        if not self.options.within or self.options.in_batch_epochs:
            check_pairs(instances)
        if max(int(rows.sum()) for rows in instances.usable.values()) < 2:
            raise ValueError(
                f"data.split leaves {int(instances.valid.sum())} usable clips, and a clip is told apart from others: "
                "train on at least 2"
            )

    @property
    def log_z_is_set(self) -> bool:
        """Asked of the buffer only until it is: on a GPU each time is a host sync."""
        self._log_z_is_set = self._log_z_is_set or not torch.isnan(self.log_z)
        return self._log_z_is_set

    def _ask_log_z_again(self, incompatible: object) -> None:
        self._log_z_is_set = False
