"""What agreement is: the similarity of two rows under a rule, and the k best of a row.

A cosine is the inner product accumulated in float64 and rounded to float32, so it depends neither on block sizes,
threads nor on how a candidate was found.

Letters: N rows, D dimensions, R rows of a block, M candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

T = TypeVar("T")
Rule = Literal["consensus", "union", "video", "audio"]
RULES: tuple[Rule, ...] = get_args(Rule)
Search = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # rows (R,) -> ids (R, k), scores (R, k), proven (R,)

_BLOCK_ROWS = 256  # larger blocks allocate pages anew on every use, which is slower than the product
_BLOCK_BYTES = 2**26  # per score buffer (a thread has two), whatever N
_GATHERED_VALUES = 2**20  # vectors gathered at once when candidates are scored again


def spaces(video: Tensor, audio: Tensor, rule: Rule) -> dict[str, Tensor]:
    """The spaces that a rule uses."""
    return {"video": {"video": video}, "audio": {"audio": audio}}.get(rule, {"video": video, "audio": audio})


def combine(scores: list[Tensor], rule: Rule, *, out: Tensor | None = None) -> Tensor:
    """One or two spaces' cosines -> the similarity of the rule."""
    match rule:
        case "consensus":
            return torch.minimum(*scores, out=out)
        case "union":
            return torch.maximum(*scores, out=out)
        case "video" | "audio":
            return scores[0]


def definition(banks: list[Tensor], rule: Rule, rows: Tensor, ids: Tensor) -> Tensor:
    """Similarity of each row to its own ids: rows (R,), ids (R, M) -> (R, M) float32."""
    parts = []
    dim = banks[0].shape[1]
    step = max(1, _GATHERED_VALUES // (ids.shape[1] * dim))
    for block, block_ids in zip(rows.split(step), ids.split(step), strict=True):
        scores = [
            torch.bmm(
                bank.index_select(0, block_ids.flatten()).double().view(*block_ids.shape, dim),
                bank[block, :, None].double(),
            )
            for bank in banks
        ]
        parts.append(combine(scores, rule))  # (r, M, 1)
    return torch.cat(parts).squeeze(2).float()


def search_definition(rows: Tensor, *, banks: list[Tensor], rule: Rule, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sets of rows (R,) by scoring all pairs: ids (R, k) ascending, scores (R, k), and all proven (R,)."""
    score = combine([torch.mm(bank[rows], bank.T) for bank in banks], rule).float()  # (R, n)
    score[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    columns = torch.arange(score.shape[1], device=rows.device).expand_as(score)
    return *best(columns, score, k), torch.ones_like(rows, dtype=torch.bool)


def best(ids: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest per row, ties to the smaller id: ids (R, M) ascending, score (R, M) -> (R, k) each, by id."""
    kth = score.topk(k, dim=1).values[:, -1:]
    above, tied = score > kth, score == kth
    keep = above | (tied & (tied.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    return ids[keep].view(-1, k), score[keep].view(-1, k)


def map_blocks(function: Callable[[Tensor], T], blocks: Sequence[Tensor]) -> list[T]:
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


def block_rows(num_columns: int, dtype: torch.dtype) -> int:
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (num_columns * dtype.itemsize)))


def search_in_turn(plan: Iterable[tuple[Search, int]], rows: Tensor, *, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ask the searches of a plan in turn, each about those of the rows (R,) that the ones before have not proven, in
    blocks of so many; the last proves all. Returns ids and scores (R, k), and how many searches it took (R,) uint8."""
    ids = torch.zeros(len(rows), k, dtype=torch.int64, device=rows.device)
    score = torch.zeros(len(rows), k, device=rows.device)
    passes = torch.zeros(len(rows), dtype=torch.uint8, device=rows.device)
    pending = torch.arange(len(rows), device=rows.device)
    for num_passes, (search, block_rows) in enumerate(plan, start=1):
        if len(pending) == 0:
            break
        blocks = map_blocks(search, rows[pending].split(block_rows))
        block_ids, block_score, proven = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        done = pending[proven]
        ids[done], score[done], passes[done] = block_ids[proven], block_score[proven], num_passes
        pending = pending[~proven]
    return ids, score, passes
