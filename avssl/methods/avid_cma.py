"""AVID-CMA: AVID with positives expanded by cross-modal agreement (Morgado, Vasconcelos, Misra; CVPR 2021).

Videos that resemble each other in video AND in audio become each other's positives for a discrimination within each
modality, which AVID alone lacks. Until the first sets are mined it is AVID.
"""

import functools
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Count, NotNegative
from avssl.methods.avid import AVID, AVIDOptions, Term
from avssl.mining.agreement import Engine, minable, mine_agreement, overlap
from avssl.mining.background import BackgroundSearch
from avssl.mining.definition import Rule
from avssl.objectives.positives import in_set
from avssl.structs import Embedded, Instances, SameRows


class AVIDCMAOptions(AVIDOptions):
    """Defaults: the released InstX-N1024-PosW-N64-Top32 recipe, started from an AVID checkpoint (model.init)."""

    num_negatives_within: Count | None = 64
    positives_within: NotNegative = 1.0  # weight of a clip against its set within each modality
    positives_cross: NotNegative = 0.0  # weight of a clip's video against its set's audio, and the reverse
    num_positives: Count = 32  # size of a set
    min_score: float = Field(-1.0, ge=-1, le=1)  # least similarity of a member, where classes are smaller than sets
    rule: Rule = "consensus"  # consensus and union: of clips with both modalities; video, audio: with that one
    engine: Engine = "auto"  # of the search: tiles and flat are exact, ivf (FAISS) is for more than some 10^5 clips
    mine_from_epoch: int = Field(0, ge=0)  # AVID alone before
    mine_every: int = Field(5, ge=0)  # epochs between two minings; 0 = mine once
    mine_in_background: bool = False  # search on the CPU while an epoch trains; its sets are used from the next one on


class AVIDCMA(AVID):
    """See the module.

    Differs from AVID-CMA: negatives contain neither the instance nor its set (there, the instance can be among them);
    self is left out of a set by id, not by rank; `within` scores within the modality (there it stores cross-modal
    scores and is always 0); rows without a set (they lack a modality that the rule looks at) drop out of the set's
    terms, and so does a member that lacks the modality a term compares with.
    """

    Options = AVIDCMAOptions
    options: AVIDCMAOptions
    sets: Tensor
    set_scores: Tensor

    def __init__(self, options: AVIDCMAOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        if self.banks["video"].num_shards > 1 and not options.mine_in_background:
            raise ValueError("method.shard_bank=true: rank 0 alone can mine, set method.mine_in_background=true")
        self.register_buffer("sets", torch.full((instances.num, options.num_positives), -1))
        self.register_buffer("set_scores", torch.zeros(instances.num, options.num_positives))
        if options.mine_in_background:  # found already, used from the next epoch on
            self.register_buffer("next_sets", torch.full_like(self.sets, -1))
            self.register_buffer("next_scores", torch.zeros_like(self.set_scores))
            self.register_buffer("next_facts", torch.full((2,), -1.0))  # share proven, and recall; -1 = there are none
        self._is_searching = False  # on some rank
        self._search: BackgroundSearch | None = None
        self._mined: bool | None = None
        self.register_load_state_dict_post_hook(AVIDCMA._ask_sets_again)

    def terms(self, video: Embedded, audio: Embedded, ids: Tensor) -> list[Term]:
        terms = super().terms(video, audio, ids)
        if not self.mined:
            return terms
        cross, within = self.options.positives_cross / 2, self.options.positives_within / 2
        few, members, rule = (
            self.options.num_negatives_within,
            self.sets[ids],
            functools.partial(in_set, sets=self.sets),
        )
        return [
            *terms,
            Term("pos_v2a", cross, video, "audio", members, None, rule),
            Term("pos_a2v", cross, audio, "video", members, None, rule),
            Term("pos_v2v", within, video, "video", members, few, rule),
            Term("pos_a2a", within, audio, "audio", members, few, rule),
        ]

    def avoid(self, ids: Tensor) -> Tensor:
        return torch.cat([ids[:, None], self.sets[ids]], dim=1)

    @property
    def mined(self) -> bool:
        """Asked of the sets once after they changed: on a GPU each time is a host sync."""
        if self._mined is None:
            self._mined = bool((self.sets >= 0).any())
        return self._mined

    def _ask_sets_again(self, incompatible: object) -> None:
        self._mined = None

    def of_rows(self, given: dict[str, Tensor], rows: SameRows) -> dict[str, Tensor]:
        """Entries of another run for this one: sets of rows that are trained on here, without members that are not."""
        if "sets" not in given:
            return {}
        there = rows.there.clamp(min=0)
        members = given["sets"][there]
        is_gone = (members < 0) | (rows.here[there] != torch.arange(len(there)))[:, None]
        return {
            "sets": rows.here[members.clamp(min=0)].masked_fill(is_gone, -1),
            "set_scores": given["set_scores"][there],
            **({"next_facts": torch.full((2,), -1.0)} if "next_facts" in given else {}),
        }

    def check_start(self) -> None:
        if self.options.mine_from_epoch == 0 and not self.log_z_is_set:
            raise ValueError(
                "method.mine_from_epoch=0 would mine random vectors: start from a run of AVID (model.init=RUN), "
                "or mine from epoch 1 or later"
            )
        if self.options.mine_from_epoch < self.options.in_batch_epochs:
            raise ValueError(
                f"method.mine_from_epoch={self.options.mine_from_epoch} is earlier than the end of "
                f"method.in_batch_epochs={self.options.in_batch_epochs}, and sets are used from there on: mine from "
                f"epoch {self.options.in_batch_epochs} or later"
            )

    def on_epoch(self, epoch: int) -> dict[str, float]:
        since = epoch - self.options.mine_from_epoch
        due = since == 0 or (since > 0 and self.options.mine_every > 0 and since % self.options.mine_every == 0)
        if not self.options.mine_in_background:
            return self.mine() if due else {}
        figures = self.adopt()
        if due:
            self._is_searching = True
            asked = self._asked()
            self._search = BackgroundSearch(**asked) if distributed.is_main() else None
        return figures

    def mine(self) -> dict[str, float]:
        """Refresh the sets from the banks: each rank searches for a share of the rows, all get all sets."""
        asked = self._asked()
        found = mine_agreement(**asked, over_ranks=True)
        return self._take(found.ids, found.score, float(found.exact[asked["valid"]].float().mean()), found.recall)

    def settle(self) -> None:
        """Wait for a search in the background; afterwards all ranks have its sets."""
        if not self._is_searching:
            return
        if self._search is not None:
            found = self._search.result()
            valid = found.passes > 0
            self.next_sets.copy_(found.ids)
            self.next_scores.copy_(found.score)
            self.next_facts.copy_(torch.tensor([found.exact[valid].float().mean(), found.recall]))
        for buffer in (self.next_sets, self.next_scores, self.next_facts):
            buffer.copy_(distributed.broadcast(buffer))
        self._is_searching, self._search = False, None

    def adopt(self) -> dict[str, float]:
        """Use the sets that were found in the background, if there are any."""
        self.settle()
        exact, recall = self.next_facts.tolist()
        if exact < 0:
            return {}
        self.next_facts.fill_(-1)
        return self._take(self.next_sets, self.next_scores, exact, recall)

    def _asked(self) -> dict[str, Any]:
        """Arguments of `mine_agreement`."""
        options = self.options
        return {
            "video": self.banks["video"].whole().float(),
            "audio": self.banks["audio"].whole().float(),
            "k": options.num_positives,
            "rule": options.rule,
            "min_score": options.min_score,
            "valid": minable(**{modality: bank.valid for modality, bank in self.banks.items()}, rule=options.rule),
            "engine": options.engine,
        }

    @torch.no_grad()
    def _take(self, ids: Tensor, score: Tensor, exact: float, recall: float) -> dict[str, float]:
        before = self.sets.clone()
        self.sets.copy_(ids)
        self.set_scores.copy_(score)
        self._mined = None
        in_sets = self.sets >= 0
        return {
            "mining/exact": exact,
            **({"mining/recall": recall} if exact < 1 else {}),
            **({"mining/score": float(self.set_scores[in_sets].mean())} if in_sets.any() else {}),
            "mining/rows_with_set": float(in_sets.any(dim=1).float().mean()),
            **({"mining/overlap": overlap(before, self.sets)} if (before >= 0).any() else {}),
        }

    def agreement_sets(self) -> dict[str, Tensor]:
        return {"mining": self.sets}

    def check_clips(self, instances: Instances) -> None:
        """Raise ValueError unless there are sets to mine, and negatives beside them."""
        options = self.options
        num_usable = int(minable(**instances.usable, rule=options.rule).sum())
        needed = options.rule if options.rule in ("video", "audio") else "both video and audio"
        if num_usable == 0:
            others = [rule for rule in ("video", "audio") if instances.usable[rule].any()]
            raise ValueError(
                f"no clip of this split has {needed}, which method.rule={options.rule} mines: check the manifest's "
                "summary (status, has_audio) and data.split"
                + (f", or mine one modality alone with method.rule={others[0]} and method.within=1" if others else "")
            )
        if not 1 <= options.num_positives <= num_usable - 2:
            raise ValueError(
                f"method.num_positives={options.num_positives}, but {num_usable} usable clips have {needed}: expected "
                f"1 to {num_usable - 2}, so that each clip has negatives too; lower it or train on more clips"
            )
        if options.mine_from_epoch > 0 and not (options.cross or options.within):
            raise ValueError(
                f"method.cross=0 and method.within=0 leave nothing to learn from before sets are mined in epoch "
                f"{options.mine_from_epoch}: set one of them to 1, or method.mine_from_epoch=0"
            )
        if not options.positives_within:  # such sets train clips without pairs, all else needs pairs
            super().check_clips(instances)
