"""The sets of the definition by scoring all pairs, at rising precision:

    all pairs are scored in a fast type, and the best `depth` per row are scored again by the definition. If each fast
    score is within e of the true one, no other pair can exceed (last fast score kept) + e; a row whose k-th score is
    above that bound is proven and done.

e is a bound: |<x, y> - <x', y'>| <= |x| |y - y'| + |x - x'| |y'| for rounded x', y' (Cauchy-Schwarz, with the measured
rounding |x - x'|), plus the rounding of the sum and of the stored result. bfloat16 proves nearly all rows of a trained
bank; the others are searched deeper, then in float32, and finally by the definition.

Letters: N rows, D dimensions, R rows of a block, M candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.mining.definition import Rule, Search, best, block_rows, combine, definition, map_blocks, search_definition

_GROUP_SIZE = 16  # columns that share one maximum, so that the top-k runs over N / 16 values
_SAMPLE_ROWS = 256


def plan(banks: list[Tensor], rule: Rule, *, k: int, generator: torch.Generator | None) -> Iterator[tuple[Search, int]]:
    """Searches of banks (n, D), in turn while rows are left, each with its rows per block; the last is the
    definition."""
    banks = [bank.double() for bank in banks]
    device, num_rows = banks[0].device, len(banks[0])
    deepest = 8 * k
    if deepest < num_rows:
        if device.type == "cpu" and has_fast_bfloat16():
            fast = Rounded(banks, rule, dtype=torch.bfloat16)
            depth = _choose_depth(fast, k=k, deepest=deepest, generator=generator)
            if depth is not None:
                yield partial(fast.search, k=k, depth=depth), fast.block_rows
                yield partial(fast.search, k=k, depth=deepest), fast.block_rows
        if _has_true_float32(device):
            fast = Rounded(banks, rule, dtype=torch.float32)
            yield partial(fast.search, k=k, depth=2 * k), fast.block_rows
    yield partial(search_definition, banks=banks, rule=rule, k=k), block_rows(num_rows, torch.float64)


def has_fast_bfloat16() -> bool:
    """Whether bfloat16 is multiplied natively and summed in float32, as the proof needs and oneDNN does."""
    return torch.backends.mkldnn.enabled and torch.cpu.get_capabilities().get("avx512_bf16", False)


def _has_true_float32(device: torch.device) -> bool:
    """Whether float32 products are computed in float32, without TF32 or bfloat16 inside."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("none", "ieee")


def _choose_depth(fast: Rounded, *, k: int, deepest: int, generator: torch.Generator | None) -> int | None:
    """The depth that proves 95 % of the sampled rows that `deepest` proves; None if these are less than half, as with
    cosines so similar that rounding hides their order."""
    size = min(_SAMPLE_ROWS, fast.num_rows)
    if generator is None:
        sample = torch.arange(size) * fast.num_rows // size
    else:
        sample = torch.randperm(fast.num_rows, generator=generator)[:size]
    blocks = sample.split(min(fast.block_rows, -(-size // torch.get_num_threads())))
    needed = torch.cat(map_blocks(partial(fast.depth_needed, k=k, depth=deepest), blocks))
    provable = needed[needed <= deepest]
    return int(provable.double().quantile(0.95).ceil()) if 2 * len(provable) >= size else None


class Rounded:
    """All pairs scored on rounded vectors, with a bound for the definition."""

    def __init__(self, banks: list[Tensor], rule: Rule, *, dtype: torch.dtype) -> None:
        self.banks, self.rule = banks, rule
        self.num_rows = len(banks[0])
        width = -(-self.num_rows // _GROUP_SIZE) * _GROUP_SIZE
        self.rounded = [F.pad(bank.to(dtype), (0, 0, 0, width - self.num_rows)) for bank in banks]  # (width, D)
        self.margin = max(_rounding_margin(bank, bank.to(dtype)) for bank in banks)
        self.block_rows = block_rows(width, dtype)
        self.local = threading.local()  # each thread's score buffers

    def search(self, rows: Tensor, *, k: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sets of rows (R,): ids (R, k) ascending, scores (R, k), and whether each row is proven (R,)."""
        candidates, bound = self._candidates(rows, depth)
        candidates = candidates.sort(dim=1).values
        ids, score = best(candidates, definition(self.banks, self.rule, rows, candidates), k)
        return ids, score, score.amin(dim=1) > bound[:, -1]

    def depth_needed(self, rows: Tensor, *, k: int, depth: int) -> Tensor:
        """The smallest depth that proves each row, (R,); more than `depth` if that does not."""
        candidates, bound = self._candidates(rows, depth)
        kth = definition(self.banks, self.rule, rows, candidates).topk(k, dim=1).values[:, -1:]
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
        combined = combine(scores, self.rule, out=scores[0])
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
