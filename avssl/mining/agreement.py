"""Agreement mining: for each clip, the k others that are most similar in video and audio (AVID-CMA, section 3.3).

The definition (definition.py): similarity(i, j) = min, max or one of the two cosines, the k largest without i, ties to
the smaller id. Three engines search for it: tiles.py scores all pairs and flat asks FAISS for the best by an upper
bound (both prove what they find), ivf visits a few cells of an inverted file and says how much of the sets it found
(index.py).

Letters: N rows, D dimensions, k members of a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed
from avssl.mining import index, tiles
from avssl.mining.definition import RULES, Rule, search_in_turn, spaces

Engine = Literal["auto", "flat", "ivf", "tiles"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

_EXACT_ROWS = {"bfloat16": 150_000, "float32": 50_000}  # what tiles search
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class AgreementSets:
    """The sets of N rows."""

    ids: Tensor  # (N, k) int64, ascending, without the row itself; -1 where a row is not valid or lacks such others
    score: Tensor  # (N, k) float32, the similarity of each id; 0 where the id is -1
    exact: Tensor  # (N,) bool, the set is proven to be that of the definition
    passes: Tensor  # (N,) uint8, searches until it was proven, or found: 1 = the first, fast one; 0 = no set
    engine: Engine  # that was used
    recall: float  # share of the definition's sets that was found: 1 where all is proven, else measured on a sample


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def mine_agreement(
    video: Tensor,
    audio: Tensor,
    *,
    k: int,
    rule: Rule = "consensus",
    min_score: float = -1.0,
    valid: Tensor | None = None,
    engine: Engine = "auto",
    generator: torch.Generator | None = None,
    over_ranks: bool = False,
) -> AgreementSets:
    """Find the k rows most similar to each row.

    Memory beside the inputs: 1.5 GB at N = 250,000, D = 128, k = 32 and 2 threads; it grows with N (D + k), not N x N.

    Args:
        video: (N, D), rows of unit length.
        audio: (N, D), rows of unit length, on the device of `video`; the search runs there.
        k: ids per row, 1 to the number of valid rows less one.
        rule: the smaller cosine (consensus), the larger (union), or one space only.
        min_score: least similarity of a member: sets of clips with few alike get smaller instead of wrong.
        valid: (N,) bool; the other rows get no set and are in nobody's set. None: all rows.
        engine: tiles and flat find the sets of the definition; ivf most of them, and measures the share. auto: tiles up
            to some 10^5 rows (see `choose_engine`), then ivf.
        generator: draws the rows (on the CPU) on which the depth of tiles is chosen; changes the speed, not the result.
            None: evenly spaced rows.
        over_ranks: all ranks call with the same vectors, each searches for its share of the rows, and each gets all
            sets: the same for any number of ranks.

    Raises:
        ValueError: k, rule, engine, a shape, or a valid row that is not finite and of unit length.

    Source: Morgado et al., "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021, eq. 5;
        the dense search of avid_cma.py. Differs from AVID-CMA: self is removed by id, not by rank.
    """
    _check(video, audio, k=k, rule=rule, engine=engine, valid=valid)
    if valid is None:
        valid = torch.ones(len(video), dtype=torch.bool, device=video.device)
    rows = valid.to(video.device).nonzero().squeeze(1)  # (n,) ascending, so that ties and order survive the mapping
    if k >= len(rows):
        raise ValueError(
            f"k is {k}, but each of the {len(rows)} usable rows has only {max(len(rows) - 1, 0)} others: lower k "
            "(method.num_positives, --k), or mine more clips with video and audio"
        )
    banks = [space[rows] for space in spaces(video, audio, rule).values()]  # (n, D) each
    engine = choose_engine(len(rows), video.device) if engine == "auto" else engine
    asked = _share(len(rows), video.device) if over_ranks else torch.arange(len(rows), device=video.device)
    if engine == "ivf":
        ids, score = index.search_cells(banks, rule, asked, k=k, over_ranks=over_ranks)
        passes = torch.ones(len(asked), dtype=torch.uint8, device=video.device)
    else:
        plan = index.plan(banks, rule, k=k) if engine == "flat" else tiles.plan(banks, rule, k=k, generator=generator)
        ids, score, passes = search_in_turn(plan, asked, k=k)
    if over_ranks:
        ids, score, passes = (_whole(part, len(rows)) for part in (ids, score, passes))
    recall = index.recall_of(banks, rule, score) if engine == "ivf" else 1.0
    is_unlike = (score < min_score - 1e-6) | (ids < 0)  # for rounding
    ids, order = rows[ids.clamp(min=0)].masked_fill(is_unlike, -1).sort(dim=1)
    sets = AgreementSets(
        ids=torch.full((len(video), k), -1, device=video.device),
        score=torch.zeros(len(video), k, device=video.device),
        exact=torch.full((len(video),), engine != "ivf", device=video.device),
        passes=torch.zeros(len(video), dtype=torch.uint8, device=video.device),
        engine=engine,
        recall=recall,
    )
    sets.ids[rows], sets.score[rows] = ids, score.masked_fill(is_unlike, 0).gather(1, order)
    sets.passes[rows] = passes
    return sets


def choose_engine(num_rows: int, device: torch.device) -> Engine:
    """tiles where they take about a minute on 2 cores (25 s at 100,000 rows in bfloat16; for float32 and GPUs an
    estimate), else ivf. It depends on the number of rows and the processor alone, so that a resumed run goes on with
    the engine that it had."""
    if device.type == "cuda":
        return "tiles" if num_rows <= 4 * _EXACT_ROWS["bfloat16"] else "ivf"  # not measured on a GPU
    kind = "bfloat16" if tiles.has_fast_bfloat16() else "float32"
    return "tiles" if num_rows <= _EXACT_ROWS[kind] else "ivf"


def mine(
    video: np.ndarray | Tensor,
    audio: np.ndarray | Tensor,
    *,
    k: int,
    rule: Rule = "consensus",
    min_score: float = -1.0,
    engine: Engine = "auto",
    normalize: bool = False,
) -> AgreementSets:
    """`mine_agreement` of anybody's embeddings, arrays or tensors (N, D) of unit length: `avssl.mine`.

    Args:
        normalize: scale the rows to unit length first; without it, others are refused.

    Raises:
        ValueError: k, rule, engine, a shape or a type, or a row that is not finite and of unit length.
    """
    spaces = {name: torch.as_tensor(x) for name, x in (("video", video), ("audio", audio))}
    for name, x in spaces.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} holds {x.dtype}, expected floating point embeddings (N, D)")
    exact = (x if x.dtype == torch.float64 else x.float() for x in spaces.values())
    exact = (F.normalize(x, dim=-1) if normalize else x for x in exact)
    return mine_agreement(*exact, k=k, rule=rule, min_score=min_score, engine=engine)


def minable(*, video: Tensor, audio: Tensor, rule: Rule) -> Tensor:
    """`valid` of `mine_agreement`, (N,) bool: rows with the vectors that the rule uses; `video`, `audio` (N,) bool tell
    which rows have one.
    """
    return {"video": video, "audio": audio}.get(rule, video & audio)


def agreement_precision(ids: Tensor, targets: Tensor) -> float:
    """Fraction of the labeled pairs (row, member of its set) of the same class; NaN if there is none.

    Args:
        ids: (N, k) int64 sets, -1 = empty.
        targets: (N,) int64 classes; negative = unlabeled, left out as row and as member.
    """
    targets = targets.to(ids.device)
    labeled = (ids >= 0) & (targets >= 0)[:, None] & (targets[ids.clamp(min=0)] >= 0)
    same = targets[ids.clamp(min=0)] == targets[:, None]
    return same[labeled].double().mean().item()


def overlap(before: Tensor, after: Tensor) -> float:
    """Fraction of the members that were in their row's set before, over rows with a set both times (NaN if there are
    none); both (N, k) int64, each row ascending, -1 = no member.
    """
    both = (before >= 0).any(dim=1) & (after >= 0).any(dim=1)
    before, after = before[both].contiguous(), after[both].contiguous()
    position = torch.searchsorted(before, after).clamp(max=before.shape[1] - 1)
    return (before.gather(1, position) == after)[after >= 0].double().mean().item()


def chance_precision(targets: Tensor, valid: Tensor | None = None) -> float:
    """`agreement_precision` expected of random sets of the labeled and `valid` (N,) rows; NaN with fewer than two."""
    usable = targets >= 0 if valid is None else (targets >= 0) & valid.to(targets.device)
    count = targets[usable].bincount().double()
    pairs = count.sum() * (count.sum() - 1)
    return ((count * (count - 1)).sum() / pairs).item()


def _check(video: Tensor, audio: Tensor, *, k: int, rule: str, engine: str, valid: Tensor | None) -> None:
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1 id per row")
    if video.ndim != 2 or video.shape != audio.shape:
        raise ValueError(
            f"video has shape {tuple(video.shape)} and audio {tuple(audio.shape)}, expected both (N, D): row i of each "
            "must come from clip i"
        )
    if valid is not None and (valid.shape != video.shape[:1] or valid.dtype != torch.bool):
        raise ValueError(
            f"valid is {valid.dtype} {tuple(valid.shape)}, expected torch.bool ({len(video)},) as in video"
        )
    for name, bank in spaces(video, audio, rule).items():
        length = torch.linalg.vector_norm(bank.float(), dim=1)  # (N,); NaN and infinity fail the comparison below
        wrong = ~((length - 1).abs() <= _UNIT_TOLERANCE)
        if valid is not None:
            wrong &= valid.to(bank.device)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{name} row {row} has length {length[row].item():.6g} ({int(wrong.sum())} such rows), expected unit "
                "length: normalize the rows or mark those without a vector in `valid`"
            )


def _share(num_rows: int, device: torch.device) -> Tensor:
    """Rows of this rank, of `num_rows` dealt to ranks in pieces of a size; the last may have fewer or none."""
    size = -(-num_rows // distributed.world_size())
    return torch.arange(num_rows, device=device)[distributed.rank() * size :][:size]


def _whole(part: Tensor, num_rows: int) -> Tensor:
    """The rows of all ranks out of what each has for its share."""
    size = -(-num_rows // distributed.world_size())
    padded = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
    return distributed.gather(padded)[:num_rows]
