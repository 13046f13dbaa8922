"""Temporal-neighbor contrast: clips (or single frames) of one video that lie near each other in time are related,
those of other videos are not, and far ones of the same video need not be.

One table holds the family: where the clips lie (`interval`), how near is near, what far ones count as, and where other
videos come from. rho-MoCo, CVRL, VINCE and SeCo's inter and intra terms are settings of it, see configs/kinetics.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from avssl.config import Count, NotNegative, Positive, Probability
from avssl.methods.base import BankOptions, Encode, HeadOptions, Method, build_heads, check_usable
from avssl.objectives.contrast import info_nce, info_nce_pairs, similarity
from avssl.objectives.negatives import Queue, hardest, in_batch
from avssl.objectives.positives import ROUNDING, neighbor, same_crop, same_instance
from avssl.objectives.triplet import semi_hard
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import Beyond, Changes, OtherHalf, Same, Uniform, View, Within, clips


class NeighbourOptions(HeadOptions, BankOptions):
    num_clips: int = Field(2, ge=2)  # of each video (rho); with data.num_frames=1 they are frames
    num_queries: Count | None = None  # so many of them ask, the others are their keys; null = each is both
    # uniform: anywhere | radii: within max_seconds of the first | halves: one with the first, others in the other half
    interval: Literal["uniform", "radii", "halves"] = "uniform"
    further: Changes = Field({})  # fields of the data section that differ for the clips behind the first
    num_far: int = Field(0, ge=0)  # radii: clips beyond min_far_seconds, the others within max_seconds
    max_seconds: NotNegative | None = None  # largest interval of a positive; null = every clip of the video is one
    min_far_seconds: NotNegative | None = None  # an interval above it is far, in between is ignored; null = max_seconds
    far: Literal["negative", "ignore"] = "ignore"
    contrast: Literal["info_nce", "triplet"] = "info_nce"  # triplet: TCN's, of near clips against semi-hard far ones
    margin: Positive = 0.2  # triplet: of squared distances
    # where other videos come from
    negatives: Annotated[tuple[Literal["batch", "queue", "bank"], ...], Field(min_length=1)] = ("batch",)
    queue_size: Count = 65536
    num_negatives: Count = 1024  # drawn from the bank
    temperature: Positive = 0.1
    momentum: Probability | None = None  # of the copy that encodes the keys; null = the encoder itself does
    momentum_schedule: Literal["constant", "cosine"] = "constant"  # cosine: rises to 1 over the run
    intra: NotNegative = 0.0  # weight of SeCo's intra term, which has a head of its own
    intra_seconds: NotNegative = 0.0  # there, an interval up to this is positive, any other clip of the video negative
    intra_temperature: Positive = 0.1

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        least, far, near = self.num_far + 2, self.min_far_seconds, self.max_seconds
        for wrong, message in (
            (
                self.num_queries is not None and self.num_queries >= self.num_clips,
                f"num_queries={self.num_queries} of num_clips={self.num_clips}: expected 1 to {self.num_clips - 1}, or "
                "null for clips that are both",
            ),
            (
                far is not None and (near is None or far < near),
                f"min_far_seconds={far} with max_seconds={near}: far begins where near ends or later: set max_seconds "
                "at most as large",
            ),
            (self.interval == "radii" and near is None, "interval=radii draws clips within max_seconds: set it"),
            (
                self.interval == "uniform" and near == 0,
                "max_seconds=0 leaves clips drawn anywhere without a near one: expected above 0, or interval=halves",
            ),
            (
                self.num_far and (self.interval != "radii" or self.num_clips < least),
                f"num_far={self.num_far} needs interval=radii and, beside the first clip and a near one, num_clips of "
                f"at least {least}",
            ),
            (
                self.interval == "halves" and self.num_clips < 3,
                f"interval=halves with num_clips={self.num_clips} has no clip in the other half: expected at least 3",
            ),
            (
                self.momentum_schedule == "cosine" and self.momentum is None,
                "momentum_schedule=cosine needs momentum: set it, such as 0.994",
            ),
            (
                self.contrast == "triplet"
                and (near is None or (self.momentum, self.num_queries, self.negatives) != (None, None, ("batch",))),
                "contrast=triplet compares the clips of a batch: set max_seconds, and leave momentum and num_queries "
                "null and negatives=[batch]",
            ),
            (
                self.far == "negative" and near is None,
                "far=negative needs max_seconds: with null every clip of a video is near",
            ),
        ):
            if wrong:
                raise ValueError(message)
        return self

    @property
    def far_seconds(self) -> float | None:
        return self.max_seconds if self.min_far_seconds is None else self.min_far_seconds

    def views(self) -> tuple[View, ...]:
        """The clips of a video."""
        num = self.num_clips - 1
        match self.interval:
            case "uniform":
                when = [Uniform()] * num
            case "radii":
                when = [Within(self.max_seconds)] * (num - self.num_far) + [Beyond(self.far_seconds)] * self.num_far
            case "halves":
                when = [Same("video"), *[OtherHalf()] * (num - 1)]
        return clips(self.num_clips, when=when, changes=self.further)


class Neighbour(Method):
    """See the module. A video that is too short for a far clip has none: its rows keep their other negatives. One that
    is shorter than a clip gives the same seconds under two augmentations.

    Sources: Qian et al. 2021 (CVRL), eq. 1; Feichtenhofer et al. 2021 (rho-MoCo), eq. 1; Gordon et al. 2020 (VINCE),
    eq. 3; Yao et al. 2021 (SeCo), eq. 1 and 2; Sermanet et al. 2018 (TCN) for the radii.
    Differs from SlowFast: a step averages over pairs of clips, where it sums. Differs from MoCo, VINCE and SeCo:
    vectors of the query's own video in the queue are left out; there they are negatives. Differs from MoCo: keys are
    not shuffled over ranks; their BatchNorm sees other clips than the queries' in any case.
    """

    Options = NeighbourOptions
    modalities = ("video",)

    def __init__(self, options: NeighbourOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_usable(instances, "video")
        self.views = options.views()
        names = [view.name for view in self.views]
        self.queries = names[: options.num_queries]
        self.keys = names if options.num_queries is None else names[options.num_queries :]
        self.heads = build_heads(encoders, options, self.modalities)
        if options.intra:
            self.heads["intra"] = build_heads(encoders, options, self.modalities)["video"]
        if options.momentum is not None:
            heads = {f"head {name}": head for name, head in self.heads.items()}
            networks = {"video": encoders["video"], **heads}
            self.follow(networks, momentum=options.momentum, schedule=options.momentum_schedule)
        if "queue" in options.negatives:
            self.queue = Queue(options.queue_size, options.embedding_dim)
        if "bank" in options.negatives:
            generator = torch.Generator().manual_seed(seed)
            self.bank = options.build_bank(
                instances.usable["video"], options.embedding_dim, view=0, generator=generator
            )

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        raw = {view: encode(view) for view in self.queries}
        raw_keys = {
            view: encode(view) if self.target is None else self.encode_target(encode, view) for view in self.keys
        }

        def embedded(head: str) -> tuple[Embedded, Embedded]:
            """Queries (B n, D) and keys (B m, D), those of a row together."""
            own = self.heads[head]
            other = own if self.target is None else self.target[f"head {head}"]

            def through(network: nn.Module, view: str, x: Tensor) -> Embedded:
                with encode.statistics(network, [view]):
                    return self.embed(view, network(x), batch)

            queries = {view: through(own, view, x) for view, x in raw.items()}
            both = queries if other is own else {}  # what has been through this head already
            keys = [both[view] if view in both else through(other, view, x) for view, x in raw_keys.items()]
            return Embedded.interleave(list(queries.values())), Embedded.interleave(keys)

        queries, keys = embedded("video")
        if self.options.contrast == "triplet":
            logs = {"inter": self.contrast_triplets(queries)}
        else:
            logs = {"inter": self.contrast(queries, keys, progress)}
        loss = logs["inter"]
        if self.options.intra:
            logs["intra"] = self.contrast_intra(*embedded("intra"))
            loss = loss + self.options.intra * logs["intra"]
        return Step(
            loss=loss,
            logs={name: value.detach() for name, value in logs.items()},
            memo={"keys": keys.detach()},
            embeddings={"video": queries.detach()},
        )

    def contrast(self, queries: Embedded, keys: Embedded, progress: Progress) -> Tensor:
        """Queries (Q, D) against keys of all ranks, queue and bank: near clips positive, other videos negative."""
        options = self.options
        columns = in_batch(keys)  # (M, D)
        same, near, far = self.relations(queries, columns)
        others = ~same & (columns.ids >= 0) if "batch" in options.negatives else torch.zeros_like(same)
        tables = [(columns, near, others | far if options.far == "negative" else others)]
        if "queue" in options.negatives:
            columns = self.queue.columns()  # (M, D)
            others = ~same_instance(queries, columns) & (columns.ids >= 0)
            tables.append((columns, torch.zeros_like(others), others))
        if "bank" in options.negatives:
            drawn = self.bank.draw(
                options.num_negatives, avoid=queries.ids[:, None], generator=self.generator(progress)
            )
            columns = self.bank.lookup(drawn)  # (Q, K, D)
            tables.append((columns, torch.zeros_like(columns.ids, dtype=torch.bool), columns.ids >= 0))
        logits = torch.cat([similarity(queries, columns) for columns, _, _ in tables], dim=1) / options.temperature
        positive = torch.cat([positive for _, positive, _ in tables], dim=1)
        negative = torch.cat([negative for _, _, negative in tables], dim=1)
        negative = hardest(logits, negative, share=options.hardest)
        return info_nce(logits, positive, ignore=~positive & ~negative)

    def contrast_triplets(self, queries: Embedded) -> Tensor:
        """Each near clip against the semi-hard one of the far clips (far=negative) and those of other videos."""
        every, options = in_batch(queries), self.options  # (M, D) of all ranks
        far = options.far_seconds if options.far == "negative" else torch.inf
        how = {"near": options.max_seconds + ROUNDING, "far": far + ROUNDING, "margin": options.margin}
        return semi_hard(every.z, every.start, sequence=every.ids, **how)

    def relations(self, queries: Embedded, columns: Embedded) -> tuple[Tensor, Tensor, Tensor]:
        """(Q, M) bool: columns of the same video, those near in time other than the query itself, and the far ones."""
        same = same_instance(queries, columns)
        largest = self.options.max_seconds
        if largest is None:
            return same, same & ~same_crop(queries, columns), torch.zeros_like(same)
        near = neighbor(queries, columns, max_seconds=largest)
        far = same & ~neighbor(queries, columns, max_seconds=self.options.far_seconds)
        return same, near & ~same_crop(queries, columns), far

    def contrast_intra(self, queries: Embedded, keys: Embedded) -> Tensor:
        """SeCo's intra term: each near clip of a video against each other clip of it, one pair at a time.

        Args:
            queries: (B n, D).
            keys: (B m, D), of the same videos in the same order; only those of its own sample meet a query.
        """
        options = self.options
        num = len(self.queries)
        own = keys.own(len(queries.ids) // num).repeat(num)  # (B n, m, D)
        logits = similarity(queries, own) / options.intra_temperature  # (B n, m)
        near = neighbor(queries, own, max_seconds=options.intra_seconds)
        positive = near & ~same_crop(queries, own)
        far = same_instance(queries, own) & ~near
        return info_nce_pairs(logits, positive, far)

    @torch.no_grad()
    def after_step(self, step: Step, progress: Progress) -> None:
        if "queue" in self.options.negatives:
            self.queue.push(step.memo["keys"])
        if "bank" in self.options.negatives:
            self.bank.update(step.embeddings["video"], momentum=self.options.bank_momentum)
        super().after_step(step, progress)
