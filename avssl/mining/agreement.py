"""Agreement mining: for each clip, the k others that are most similar in video and audio (AVID-CMA, section 3.3).

Definition: similarity(i, j) = min, max or one of the two cosines, the k largest without i, ties to the smaller id. A
cosine is the inner product accumulated in float64 and rounded to float32, so it depends neither on block sizes, threads
nor on how a candidate was found. As this is slow for all pairs, rows are searched at rising precision:

    all pairs are scored in a fast type, and the best `depth` per row are scored again by the definition. If each fast
    score is within e of the true one, no other pair can exceed (last fast score kept) + e; a row whose k-th score is
    above that bound is proven and done.

e is a bound: |<x, y> - <x', y'>| <= |x| |y - y'| + |x - x'| |y'| for rounded x', y' (Cauchy-Schwarz, with the measured
rounding |x - x'|), plus the rounding of the sum and of the stored result. bfloat16 proves nearly all rows of a trained
bank; the others are searched deeper, then in float32, and finally by the definition.

One FAISS search for the upper bound w v + (1 - w) a would do too: the bound taken here, the rounded agreement itself,
is tighter (no w to choose, depth 1.5k instead of 4k on a trained bank) and cheaper (`tools/benchmarks/mining.py`).

Letters: N rows, D dimensions, R rows of a block, M candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")
Rule = Literal["consensus", "union", "video", "audio"]
RULES: tuple[Rule, ...] = get_args(Rule)
Search = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # rows (R,) -> ids (R, k), scores (R, k), proven (R,)

_BLOCK_ROWS = 256  # larger blocks allocate pages anew on every use, which is slower than the product
_BLOCK_BYTES = 2**26  # per score buffer (a thread has two), whatever N
_GATHERED_VALUES = 2**20  # vectors gathered at once when candidates are scored again
_GROUP_SIZE = 16  # columns that share one maximum, so that the top-k runs over N / 16 values
_SAMPLE_ROWS = 256
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class AgreementSets:
    """The sets of N rows."""

    ids: Tensor  # (N, k) int64, ascending, without the row itself; -1 where a row is not valid or lacks such others
    score: Tensor  # (N, k) float32, the similarity of each id; 0 where the id is -1
    exact: Tensor  # (N,) bool, the set is that of the definition: always true here
    passes: Tensor  # (N,) uint8, searches until it was proven: 1 = the first, fast one; 0 = no set


@torch.no_grad()
def mine_agreement(
    video: Tensor,
    audio: Tensor,
    *,
    k: int,
    rule: Rule = "consensus",
    min_score: float = -1.0,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> AgreementSets:
    """Find the k rows most similar to each row, exactly.

    Memory beside the inputs: 1.5 GB at N = 250,000, D = 128, k = 32 and 2 threads; it grows with N (D + k), not N x N.

    Args:
        video: (N, D), rows of unit length.
        audio: (N, D), rows of unit length, on the device of `video`; the search runs there.
        k: ids per row, 1 to the number of valid rows less one.
        rule: the smaller cosine (consensus), the larger (union), or one space only.
        min_score: least similarity of a member: sets of clips with few alike get smaller instead of wrong.
        valid: (N,) bool; the other rows get no set and are in nobody's set. None: all rows.
        generator: draws the rows (on the CPU) on which the search depth is chosen; changes the speed, not the result.
            None: evenly spaced rows.

    Raises:
        ValueError: k, rule, a shape, or a valid row that is not finite and of unit length.

    Source: Morgado et al., "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021, eq. 5;
        the dense search of avid_cma.py. Differs from AVID-CMA: self is removed by id, not by rank.
    """
    _check(video, audio, k=k, rule=rule, valid=valid)
    if valid is None:
        valid = torch.ones(len(video), dtype=torch.bool, device=video.device)
    rows = valid.to(video.device).nonzero().squeeze(1)  # (n,) ascending, so that ties and order survive the mapping
    sets = AgreementSets(
        ids=torch.full((len(video), k), -1, device=video.device),
        score=torch.zeros(len(video), k, device=video.device),
        exact=torch.ones(len(video), dtype=torch.bool, device=video.device),
        passes=torch.zeros(len(video), dtype=torch.uint8, device=video.device),
    )
    if k >= len(rows):
        raise ValueError(
            f"k is {k}, but each of the {len(rows)} usable rows has only {max(len(rows) - 1, 0)} others: lower k "
            "(method.num_positives, --k), or mine more clips with video and audio"
        )
    # the definition's vectors, each (n, D)
    banks = [space[rows].double() for space in _spaces(video, audio, rule).values()]
    ids, score, passes = _search(banks, rule, k=k, generator=generator)
    is_unlike = score < min_score - 1e-6  # for rounding
    ids, order = rows[ids].masked_fill(is_unlike, -1).sort(dim=1)
    sets.ids[rows], sets.score[rows], sets.passes[rows] = ids, score.masked_fill(is_unlike, 0).gather(1, order), passes
    return sets


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


def _spaces(video: Tensor, audio: Tensor, rule: Rule) -> dict[str, Tensor]:
    """The spaces that a rule uses."""
    return {"video": {"video": video}, "audio": {"audio": audio}}.get(rule, {"video": video, "audio": audio})


def _check(video: Tensor, audio: Tensor, *, k: int, rule: str, valid: Tensor | None) -> None:
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
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
    for name, bank in _spaces(video, audio, rule).items():
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


def _search(
    banks: list[Tensor], rule: Rule, *, k: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sets of n > k rows from banks (n, D) float64: ids (n, k) ascending, scores (n, k), passes (n,) uint8."""
    num_rows, device = len(banks[0]), banks[0].device
    ids = torch.zeros(num_rows, k, dtype=torch.int64, device=device)
    score = torch.zeros(num_rows, k, device=device)
    passes = torch.zeros(num_rows, dtype=torch.uint8, device=device)
    pending = torch.arange(num_rows, device=device)
    for num_passes, (search, block_rows) in enumerate(_plan(banks, rule, k=k, generator=generator), start=1):
        blocks = _map_blocks(search, pending.split(block_rows))
        block_ids, block_score, proven = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        done = pending[proven]
        ids[done], score[done], passes[done] = block_ids[proven], block_score[proven], num_passes
        pending = pending[~proven]
        if len(pending) == 0:
            break
    return ids, score, passes


def _plan(
    banks: list[Tensor], rule: Rule, *, k: int, generator: torch.Generator | None
) -> Iterator[tuple[Search, int]]:
    """The searches, in turn while rows are left, each with its rows per block; the last is the definition."""
    device, num_rows = banks[0].device, len(banks[0])
    deepest = 8 * k
    if deepest < num_rows:
        if device.type == "cpu" and _has_fast_bfloat16():
            fast = _Rounded(banks, rule, dtype=torch.bfloat16)
            depth = _choose_depth(fast, k=k, deepest=deepest, generator=generator)
            if depth is not None:
                yield partial(fast.search, k=k, depth=depth), fast.block_rows
                yield partial(fast.search, k=k, depth=deepest), fast.block_rows
        if _has_true_float32(device):
            fast = _Rounded(banks, rule, dtype=torch.float32)
            yield partial(fast.search, k=k, depth=2 * k), fast.block_rows
    yield partial(_search_definition, banks=banks, rule=rule, k=k), _block_rows(num_rows, torch.float64)


def _has_fast_bfloat16() -> bool:
    """Whether bfloat16 is multiplied natively and summed in float32, as the proof needs and oneDNN does."""
    return torch.backends.mkldnn.enabled and torch.cpu.get_capabilities().get("avx512_bf16", False)


def _has_true_float32(device: torch.device) -> bool:
    """Whether float32 products are computed in float32, without TF32 or bfloat16 inside."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("none", "ieee")


def _choose_depth(fast: _Rounded, *, k: int, deepest: int, generator: torch.Generator | None) -> int | None:
    """The depth that proves 95 % of the sampled rows that `deepest` proves; None if these are less than half, as with
    cosines so similar that rounding hides their order."""
    size = min(_SAMPLE_ROWS, fast.num_rows)
    if generator is None:
        sample = torch.arange(size) * fast.num_rows // size
    else:
        sample = torch.randperm(fast.num_rows, generator=generator)[:size]
    blocks = sample.split(min(fast.block_rows, -(-size // torch.get_num_threads())))
    needed = torch.cat(_map_blocks(partial(fast.depth_needed, k=k, depth=deepest), blocks))
    provable = needed[needed <= deepest]
    return int(provable.double().quantile(0.95).ceil()) if 2 * len(provable) >= size else None


def _map_blocks(function: Callable[[Tensor], T], blocks: Sequence[Tensor]) -> list[T]:
    """[function(block) for block in blocks]; on the CPU each thread takes whole blocks: splitting each of the thirty
    short operations of a block over threads is several times slower as soon as another process needs a core.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(blocks) < 2 or blocks[0].device.type != "cpu":
        return [function(block) for block in blocks]
    torch.set_num_threads(1)  # inside an operation
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, blocks))
    finally:
        torch.set_num_threads(num_threads)


def _block_rows(num_columns: int, dtype: torch.dtype) -> int:
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (num_columns * dtype.itemsize)))


class _Rounded:
    """All pairs scored on rounded vectors, with a bound for the definition."""

    def __init__(self, banks: list[Tensor], rule: Rule, *, dtype: torch.dtype) -> None:
        self.banks, self.rule = banks, rule
        self.num_rows = len(banks[0])
        width = -(-self.num_rows // _GROUP_SIZE) * _GROUP_SIZE
        self.rounded = [F.pad(bank.to(dtype), (0, 0, 0, width - self.num_rows)) for bank in banks]  # (width, D)
        self.margin = max(_rounding_margin(bank, bank.to(dtype)) for bank in banks)
        self.block_rows = _block_rows(width, dtype)
        self.local = threading.local()  # each thread's score buffers

    def search(self, rows: Tensor, *, k: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sets of rows (R,): ids (R, k) ascending, scores (R, k), and whether each row is proven (R,)."""
        candidates, bound = self._candidates(rows, depth)
        candidates = candidates.sort(dim=1).values
        ids, score = _best(candidates, _definition(self.banks, self.rule, rows, candidates), k)
        return ids, score, score.amin(dim=1) > bound[:, -1]

    def depth_needed(self, rows: Tensor, *, k: int, depth: int) -> Tensor:
        """The smallest depth that proves each row, (R,); more than `depth` if that does not."""
        candidates, bound = self._candidates(rows, depth)
        kth = _definition(self.banks, self.rule, rows, candidates).topk(k, dim=1).values[:, -1:]
        return (bound >= kth).sum(dim=1) + 1

    def _candidates(self, rows: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """The best `depth` others per row, best first, and a bound of the true score of all after each, (R, depth)."""
        scores = self._scores(rows)  # (R, width)
        width, group_size = scores.shape[1], 1
        maxima = scores
        # The best `depth` lie in the `depth` groups with the best maxima. A group is every stride-th column, so that
        # maxima are taken over halves, quarters, ... of the matrix.
        while group_size < _GROUP_SIZE and width // group_size >= 2 * depth:
            group_size *= 2
            maxima = torch.maximum(*maxima.chunk(2, dim=1))
        groups = maxima.float().topk(depth, dim=1, sorted=False).indices
        offsets = width // group_size * torch.arange(group_size, device=rows.device)
        columns = (groups[:, :, None] + offsets).flatten(1)  # (R, depth * group_size)
        value, position = scores.gather(1, columns).float().topk(depth, dim=1)
        stored = value.abs() * (torch.finfo(scores.dtype).eps / 2)  # rounding of the stored score: half a unit
        return columns.gather(1, position), value + stored + self.margin

    def _scores(self, rows: Tensor) -> Tensor:
        """Similarity on the rounded vectors, (R, width), -inf for self and padding."""
        if not hasattr(self.local, "buffers"):
            self.local.buffers = [bank.new_empty(self.block_rows, len(bank)) for bank in self.rounded]
        scores = [  # a product with `out` also keeps its type under autocast
            torch.mm(bank[rows], bank.T, out=buffer[: len(rows)])
            for bank, buffer in zip(self.rounded, self.local.buffers, strict=True)
        ]
        combined = _combine(scores, self.rule, out=scores[0])
        combined[:, self.num_rows :] = -torch.inf
        combined[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        return combined


def _rounding_margin(exact: Tensor, rounded: Tensor) -> float:
    """How far an inner product of two rows of `rounded`, summed in float32, can be from that of `exact`."""
    largest = torch.linalg.vector_norm(exact, dim=1).max()
    largest_rounded = torch.linalg.vector_norm(rounded.double(), dim=1).max()
    rounding = torch.linalg.vector_norm(exact - rounded.double(), dim=1).max()
    summing = exact.shape[1] * torch.finfo(torch.float32).eps * largest_rounded**2  # twice the worst case
    return (rounding * (largest + largest_rounded) + summing + 1e-6).item()  # 1e-6: float32 results and comparisons


def _search_definition(rows: Tensor, *, banks: list[Tensor], rule: Rule, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sets of rows (R,) by scoring all pairs: ids (R, k) ascending, scores (R, k), and all proven (R,)."""
    score = _combine([torch.mm(bank[rows], bank.T) for bank in banks], rule).float()  # (R, n)
    score[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    columns = torch.arange(score.shape[1], device=rows.device).expand_as(score)
    return *_best(columns, score, k), torch.ones_like(rows, dtype=torch.bool)


def _definition(banks: list[Tensor], rule: Rule, rows: Tensor, ids: Tensor) -> Tensor:
    """Similarity of each row to its own ids: rows (R,), ids (R, M) -> (R, M) float32."""
    parts = []
    dim = banks[0].shape[1]
    step = max(1, _GATHERED_VALUES // (ids.shape[1] * dim))
    for block, block_ids in zip(rows.split(step), ids.split(step), strict=True):
        scores = [
            torch.bmm(bank.index_select(0, block_ids.flatten()).view(*block_ids.shape, dim), bank[block, :, None])
            for bank in banks
        ]
        parts.append(_combine(scores, rule))  # (r, M, 1)
    return torch.cat(parts).squeeze(2).float()


def _combine(scores: list[Tensor], rule: Rule, *, out: Tensor | None = None) -> Tensor:
    """One or two spaces' cosines -> the similarity of the rule."""
    match rule:
        case "consensus":
            return torch.minimum(*scores, out=out)
        case "union":
            return torch.maximum(*scores, out=out)
        case "video" | "audio":
            return scores[0]


def _best(ids: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest per row, ties to the smaller id: ids (R, M) ascending, score (R, M) -> (R, k) each, by id."""
    kth = score.topk(k, dim=1).values[:, -1:]
    above, tied = score > kth, score == kth
    keep = above | (tied & (tied.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    return ids[keep].view(-1, k), score[keep].view(-1, k)
