"""AVID: audio-visual instance discrimination (Morgado, Vasconcelos, Misra; CVPR 2021).

Every video is a class of its own. A clip's picture has to pick the memory of its own sound among those of other
videos, and its sound the memory of its own picture; memories are running means of earlier embeddings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Count, NotNegative, Positive, Probability
from avssl.methods.base import HeadOptions, Method, build_heads
from avssl.objectives.contrast import log_mean_exp, nce, similarity
from avssl.objectives.negatives import Bank, draw_negatives
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step


class AVIDOptions(HeadOptions):
    """Defaults: the released Cross-N1024 recipe."""

    cross: NotNegative = 1.0  # weight of picture against sounds and sound against pictures
    within: NotNegative = 0.0  # weight of picture against pictures and sound against sounds
    num_negatives: Count = 1024
    num_negatives_within: Count | None = None  # negatives of the within-modal terms; null = all
    temperature: Positive = 0.07
    bank_momentum: Probability = 0.5  # weight of the old vector


@dataclass(frozen=True)
class Term:
    """One direction of the loss: its queries, its own columns and which of them are positive."""

    weight: float
    query: Embedded  # (B, D)
    columns: Embedded  # (B, M, D)
    positive: Tensor  # (B, M) bool

    @staticmethod
    def of_instance(weight: float, query: Embedded, columns: Embedded) -> "Term":
        return Term(weight, query, columns, same_instance(query, columns))


class AVID(Method):
    """See the module. Differs from AVID-CMA: the temperature is an option; a side that a clip lacks stays in the batch
    as an empty place, is never stored, and the clip learns through the terms that do not need it (`within`).
    """

    views = ("video", "audio")
    log_z: Tensor

    def __init__(self, options: AVIDOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(encoders, seed=seed)
        self.options = options
        self.check_clips(instances)
        usable = instances.usable
        generator = torch.Generator().manual_seed(seed)
        self.heads = build_heads(encoders, options, self.modalities)
        self.banks = nn.ModuleDict(
            {
                view: Bank(usable[view], options.embedding_dim, view=self.views.index(view), generator=generator)
                for view in self.views
            }
        )
        self.register_buffer("log_z", torch.tensor(float("nan")))  # unset until the first step
        self._log_z_is_set = False
        self.register_load_state_dict_post_hook(AVID._ask_log_z_again)

    def loss(self, features: dict[str, Tensor], batch: Batch, progress: Progress) -> Step:
        video = self.embed("video", self.heads["video"](features["video"]), batch)  # (B, D)
        audio = self.embed("audio", self.heads["audio"](features["audio"]), batch)  # (B, D)
        return self.contrast(video, audio, batch.ids, self.draw(batch.ids, progress))

    def draw(self, ids: Tensor, progress: Progress) -> dict[str, Tensor]:
        """Negatives (B, K) of each bank for instances ids (B,), once per step for all terms.

        Each bank draws from the clips it holds, with the same random numbers: when all clips have picture and sound the
        ids are the same for both, as in AVID-CMA; else clips without sound are negatives among pictures, and files of
        sound alone among sounds.
        """
        avoid = self.avoid(ids)  # (B, P)
        return {
            view: draw_negatives(
                bank.valid_ids,
                self.options.num_negatives,
                avoid=avoid,
                generator=self.generator(progress),
                first_row=distributed.rank() * len(ids),
                num_rows=distributed.world_size() * len(ids),
            )
            for view, bank in self.banks.items()
        }

    def contrast(self, video: Embedded, audio: Embedded, ids: Tensor, negative_ids: dict[str, Tensor]) -> Step:
        """The loss of embeddings (B, D) of instances ids (B,) against given negatives {view: (B, K)}."""
        terms = self.terms(video, audio, ids, negative_ids)
        log_z, is_set = self.log_z, self.log_z_is_set
        total, weights, logs = 0.0, 0.0, {}
        for name, term in terms.items():
            logits = similarity(term.query, term.columns) / self.options.temperature  # (B, M)
            empty = term.columns.ids < 0
            if not is_set and torch.isnan(log_z):  # the first scored term of the first step sets it for the whole run
                scored = term.positive.any(dim=1, keepdim=True)
                log_z = log_mean_exp(logits, scored & ~term.positive & ~empty)
            logs[name] = nce(logits, term.positive, log_z=torch.nan_to_num(log_z), ignore=empty)
            total = total + term.weight * logs[name]
            weights += term.weight
        return Step(
            loss=total / weights,
            logs={name: value.detach() for name, value in logs.items()},
            memo={"video": video.detach(), "audio": audio.detach(), "log_z": log_z},
        )

    def avoid(self, ids: Tensor) -> Tensor:
        """Ids (B, P) that the rows of `ids` (B,) must not draw as negatives."""
        return ids[:, None]

    def terms(self, video: Embedded, audio: Embedded, ids: Tensor, negative_ids: dict[str, Tensor]) -> dict[str, Term]:
        """The directions that are switched on, in the order in which the reference scores them."""
        return self.cross_terms(video, audio, ids, negative_ids) | self.within_terms(video, audio, ids, negative_ids)

    def cross_terms(
        self, video: Embedded, audio: Embedded, ids: Tensor, negative_ids: dict[str, Tensor]
    ) -> dict[str, Term]:
        if not self.options.cross:
            return {}
        columns = {
            view: bank.lookup(torch.cat([ids[:, None], negative_ids[view]], dim=1)) for view, bank in self.banks.items()
        }
        weight = self.options.cross / 2
        return {
            "v2a": Term.of_instance(weight, video, columns["audio"]),
            "a2v": Term.of_instance(weight, audio, columns["video"]),
        }

    def within_terms(
        self, video: Embedded, audio: Embedded, ids: Tensor, negative_ids: dict[str, Tensor]
    ) -> dict[str, Term]:
        if not self.options.within:
            return {}
        num_columns = self.options.num_negatives_within
        columns = {
            view: bank.lookup(torch.cat([ids[:, None], negative_ids[view][:, :num_columns]], dim=1))
            for view, bank in self.banks.items()
        }
        weight = self.options.within / 2
        return {
            "v2v": Term.of_instance(weight, video, columns["video"]),
            "a2a": Term.of_instance(weight, audio, columns["audio"]),
        }

    def check_clips(self, instances: Instances) -> None:
        """Raise ValueError unless some term can tell some clip of the split apart from another one."""
        if not (self.options.cross or self.options.within):
            raise ValueError("method.cross=0 and method.within=0 leave nothing to learn from: set one of them to 1")
        if not self.options.within:
            self.check_pairs(instances)
        if max(int(rows.sum()) for rows in instances.usable.values()) < 2:
            raise ValueError(
                f"data.split leaves {int(instances.valid.sum())} usable clips, and a clip is told apart from others: "
                "train on at least 2"
            )

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        for view, bank in self.banks.items():
            bank.update(step.memo[view], momentum=self.options.bank_momentum)
        if not self.log_z_is_set:
            self.log_z.copy_(step.memo["log_z"])

    @property
    def log_z_is_set(self) -> bool:
        """Asked of the buffer only until it is: on a GPU the host has to wait for the answer."""
        self._log_z_is_set = self._log_z_is_set or not torch.isnan(self.log_z)
        return self._log_z_is_set

    def _ask_log_z_again(self, incompatible: object) -> None:
        self._log_z_is_set = False
