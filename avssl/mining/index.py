"""FAISS for agreement mining: an exact search over fused vectors, and an inverted file where pairs are too many.

For any w in [0, 1], min(v, a) <= w v + (1 - w) a. So an inner product of fused vectors [sqrt(w) v ; sqrt(1 - w) a]
ranks pairs by an upper bound of their agreement.

flat: the best `depth` of each row by that bound are scored by the definition, and a row is proven when its k-th score
    is above the last bound taken; the others are asked deeper, and at last by the definition.
ivf: FAISS divides the fused vectors into cells; a row is compared with those in the few cells nearest to it. Pairs are
    scored by the rule, not by the bound, with a product for each cell and the rows that visit it; FAISS's own scan
    would give candidates by the bound, to be scored again. Rows that find nobody close (clips whose picture and
    sound seldom come together) visit more cells, or are searched by tiles where that is cheaper. How many is chosen on
    a sample; the recall that is reported is measured on another.

Letters: n rows, D dimensions, R rows of a block, M candidates, C cells, P cells that a row visits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np
import torch
from torch import Tensor

from avssl import distributed
from avssl.mining import tiles
from avssl.mining.definition import (
    Rule,
    Search,
    best,
    combine,
    definition,
    map_blocks,
    search_definition,
    search_in_turn,
)

MARGIN = 1e-5  # of a float32 inner product of fused vectors
WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)  # w, of which the best on a sample is taken
SAMPLE_ROWS = 256
RECALL_AIM = 0.99  # of the sets, on the sample that chooses the number of visits
MAX_VISITED = 256
TILES_COST = 0.1  # of scoring a pair by tiles, over that by a visit of a cell
ITERATIONS = 8  # of k-means
TRAINING_PER_CELL = 40
SLACK = 8  # candidates beyond k, for the rounding of float32
BLOCK_ROWS = {"flat": 512, "ivf": 8192}
COLUMNS = 65_536  # per product with a sample


def plan(banks: Sequence[Tensor], rule: Rule, *, k: int) -> Iterator[tuple[Search, int]]:
    """Searches of banks (n, D) by a flat index, in turn while rows are left, each with its rows per block; the last is
    the definition."""
    num_rows = len(banks[0])
    if 8 * k < num_rows:
        flat = _Flat(banks, rule, weight=choose_weight(banks, rule, k=k))
        for depth in (8 * k, 32 * k):
            if depth < num_rows:
                yield partial(flat.search, k=k, depth=depth), BLOCK_ROWS["flat"]
    yield partial(search_definition, banks=[bank.double() for bank in banks], rule=rule, k=k), BLOCK_ROWS["flat"]


class _Flat:
    """A FAISS index for each list of candidates: of fused vectors, or of each space where the rule takes the larger."""

    def __init__(self, banks: Sequence[Tensor], rule: Rule, *, weight: float) -> None:
        self.banks, self.rule = list(banks), rule
        parts = [[bank] for bank in banks] if rule == "union" else [list(banks)]
        self.vectors = [fuse(part, weight) for part in parts]
        self.indices = []
        for x in self.vectors:
            index = faiss.IndexFlatIP(x.shape[1])
            index.add(x)
            self.indices.append(_on_gpu(index, banks[0].device))

    def search(self, rows: Tensor, *, k: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sets of rows (R,): ids (R, k) ascending, scores (R, k), and whether each row is proven (R,)."""
        where = rows.cpu().numpy()
        with faiss_threads(1):  # this thread has a block of its own
            found = [index.search(x[where], depth + 1) for index, x in zip(self.indices, self.vectors, strict=True)]
        bound = torch.from_numpy(np.max([bounds[:, -1] for bounds, _ in found], axis=0)).to(rows.device) + MARGIN
        candidates = torch.from_numpy(np.concatenate([ids for _, ids in found], axis=1)).to(rows.device)
        ids, score = score_again(self.banks, self.rule, rows, candidates, k=k)
        return ids, score, score.amin(dim=1) > bound


def search_cells(
    banks: Sequence[Tensor], rule: Rule, rows: Tensor, *, k: int, over_ranks: bool
) -> tuple[Tensor, Tensor]:
    """Sets of rows (R,) of banks (n, D) by an inverted file: ids (R, k) ascending, -1 last where fewer were met, and
    scores (R, k). over_ranks: the cells are those of rank 0."""
    sample = _even_sample(len(banks[0]), 2 * SAMPLE_ROWS)[::2].to(rows.device)
    weight = choose_weight(banks, rule, k=k)
    parts: list[tuple[Rule, list[Tensor]]] = [(rule, list(banks))]
    if rule == "union":  # the k best of each space hold the k best of both
        parts = [("video", [banks[0]]), ("audio", [banks[1]])]
    lists = []
    for own_rule, own in parts:
        cells = Cells(own, own_rule, weight=weight, over_ranks=over_ranks)
        visits = cells.choose_visits(sample, k=k)
        search = partial(cells.search_twice, k=k, visits=visits)
        order = cells.cell[rows].argsort(stable=True)  # neighbors visit the same cells
        blocks = map_blocks(search, rows[order].split(BLOCK_ROWS["ivf"]))
        found = torch.cat(blocks) if blocks else rows.new_zeros(0, k)
        alone = (found[:, 0] < 0).nonzero()[:, 0]
        if visits.many == len(cells.centers) and len(alone):
            plan = tiles.plan(own, own_rule, k=k, generator=None)
            found[alone, :k], _, _ = search_in_turn(plan, rows[order][alone], k=k)
        lists.append(torch.empty_like(found).index_copy_(0, order, found))
    candidates = torch.cat(lists, dim=1)
    again = partial(_score_block, banks=list(banks), rule=rule, rows=rows, candidates=candidates, k=k)
    blocks = map_blocks(again, torch.arange(len(rows), device=rows.device).split(BLOCK_ROWS["ivf"]))
    ids, score = (torch.cat(each) for each in zip(*blocks, strict=True))
    return ids, score


@dataclass(frozen=True)
class Visits:
    """How many cells a row visits: `few`, and `many` where its k-th score is then below the threshold; all cells are
    no visits but a search by tiles."""

    few: int
    many: int
    threshold: float


class Cells:
    """An inverted file over rows of banks (n, D)."""

    def __init__(self, banks: list[Tensor], rule: Rule, *, weight: float, over_ranks: bool = False) -> None:
        self.rule, self.weight = rule, weight
        device, num_rows = banks[0].device, len(banks[0])
        num_cells = max(1, round(2 * math.sqrt(num_rows)))
        training = _even_sample(num_rows, TRAINING_PER_CELL * num_cells)
        dim = sum(bank.shape[1] for bank in banks)
        means = faiss.Kmeans(dim, num_cells, niter=ITERATIONS, spherical=True, seed=0, min_points_per_centroid=1)
        with faiss_threads(torch.get_num_threads()):
            means.train(fuse([bank[training.to(device)] for bank in banks], weight))
        centers = torch.from_numpy(means.centroids)
        self.centers = (distributed.broadcast(centers.to(device)).cpu() if over_ranks else centers).numpy()
        nearest = [self.nearest([bank[rows] for bank in banks], 1)[:, 0] for rows in _blocks(num_rows, device)]
        self.cell = torch.cat(nearest).to(device)  # (n,) of each row
        self.order = self.cell.argsort(stable=True)  # (n,) rows by cell
        self.place = torch.empty_like(self.order).index_copy_(0, self.order, torch.arange(num_rows, device=device))
        self.ends = self.cell.bincount(minlength=num_cells).cumsum(0).tolist()
        self.banks = banks
        self.sorted = [bank[self.order] for bank in banks]

    def nearest(self, vectors: Sequence[Tensor], num: int) -> Tensor:
        """Cells of vectors (R, D), nearest first: (R, num)."""
        with faiss_threads(torch.get_num_threads()):  # one where this thread has a block of its own
            _, cells = faiss.knn(fuse(vectors, self.weight), self.centers, num, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(cells)

    def choose_visits(self, sample: Tensor, *, k: int) -> Visits:
        """The cheapest visits by which RECALL_AIM of the sets of a sample of rows is met (a member is met where its
        cell is visited); the dearest tried where none meets it."""
        most = min(MAX_VISITED, len(self.centers))
        _, members = top_of(self.banks, self.rule, sample, k=k)
        visited = self.nearest([bank[sample] for bank in self.banks], most).to(sample.device)  # (R, most)
        met = (visited[:, :, None] == self.cell[members][:, None]).sum(dim=2).cumsum(dim=1) / k  # (R, most)
        numbers = [2**i for i in range(most.bit_length()) if 2**i < most] + [most]
        every, least, best = len(self.centers), math.inf, Visits(most, most, -math.inf)
        for few in numbers:
            kth = self.search(sample, num=k, num_visited=few)[1][:, -1].clamp(min=-2)  # -inf: fewer than k
            order = kth.argsort()  # from those that find nobody close
            for many in (*(number for number in numbers if number >= few), every):
                then = met[:, many - 1] if many < every else torch.ones_like(kth)
                gained = torch.cat([met.new_zeros(1), (then - met[:, few - 1])[order].cumsum(0)])
                enough = (met[:, few - 1].sum() + gained >= RECALL_AIM * len(sample)).nonzero()
                if not len(enough):
                    continue
                num_again = int(enough[0])  # rows that visit many
                between = kth[order[max(num_again - 1, 0) : num_again + 1]].mean()  # of no row, for rounding
                threshold = float(between) if num_again < len(sample) else math.inf
                cost = few + num_again / len(sample) * (many if many < every else TILES_COST * every)
                if cost < least:
                    least, best = cost, Visits(few, many, threshold if num_again else -math.inf)
        return best

    def search_twice(self, rows: Tensor, *, k: int, visits: Visits) -> Tensor:
        """Candidates of rows (R,): ids (R, k + SLACK), -1 where there are fewer, and for rows that tiles search."""
        found, score = self.search(rows, num=k + SLACK, num_visited=visits.few)
        again = (score[:, k - 1] < visits.threshold).nonzero()[:, 0]
        if visits.many == len(self.centers):
            found[again] = -1
        elif len(again):
            found[again], _ = self.search(rows[again], num=k + SLACK, num_visited=visits.many)
        return found

    def search(self, rows: Tensor, *, num: int, num_visited: int) -> tuple[Tensor, Tensor]:
        """The best `num` others of rows (R,) in the cells that each visits, best first: ids, -1 where there are fewer,
        and float32 scores, (R, num) each."""
        own = [bank[rows] for bank in self.banks]
        score = torch.full((len(rows), num), -torch.inf, device=rows.device)
        found = torch.full((len(rows), num), -1, device=rows.device)
        visited = self.nearest(own, num_visited).to(rows.device)  # (R, P)
        for part in (visited[:, :1], visited[:, 1:]):  # the nearest first: by its scores few of the others matter
            self._visit(part, own, self.place[rows], score, found)
        return found.masked_fill(score == -torch.inf, -1), score

    def _visit(self, visited: Tensor, own: Sequence[Tensor], places: Tensor, score: Tensor, found: Tensor) -> None:
        """Merge what rows (R,) find in the cells `visited` (R, P) into their best so far, `score` and `found`, both
        (R, num) and changed in place."""
        cells, order = visited.flatten().sort(stable=True)
        visitors = order // max(visited.shape[1], 1)
        counts = cells.bincount(minlength=len(self.centers)).tolist()
        first = 0
        for cell, count in enumerate(counts):
            begin, end = (self.ends[cell - 1] if cell else 0), self.ends[cell]
            who = visitors[first : first + count]
            first += count
            if not count or begin == end:
                continue
            scores = combine(
                [x[who] @ columns[begin:end].T for x, columns in zip(own, self.sorted, strict=True)], self.rule
            )
            itself = places[who] - begin
            inside = ((itself >= 0) & (itself < end - begin)).nonzero()[:, 0]
            scores[inside, itself[inside]] = -torch.inf
            better = (scores.amax(dim=1) > score[who, -1]).nonzero()[:, 0]
            if not len(better):
                continue
            who, scores = who[better], scores[better]
            top = scores.topk(min(score.shape[1], end - begin), dim=1)
            merged = torch.cat([score[who], top.values], dim=1).topk(score.shape[1], dim=1)
            ids = torch.cat([found[who], self.order[begin:end][top.indices]], dim=1)
            score[who], found[who] = merged.values, ids.gather(1, merged.indices)


@contextmanager
def faiss_threads(num: int) -> Iterator[None]:
    """FAISS with so many threads inside. It may share OpenMP with torch, whose number must be the same afterwards."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def fuse(vectors: Sequence[Tensor], weight: float) -> np.ndarray:
    """[sqrt(w) v ; sqrt(1 - w) a] of one or two (m, D), as FAISS takes it: float32 (m, D) or (m, 2 D)."""
    if len(vectors) == 1:
        return np.ascontiguousarray(vectors[0].float().cpu().numpy())
    video, audio = (x.float() for x in vectors)
    return torch.cat([video * weight**0.5, audio * (1 - weight) ** 0.5], dim=1).cpu().numpy()


def choose_weight(banks: Sequence[Tensor], rule: Rule, *, k: int) -> float:
    """The w of WEIGHTS by which the fewest pairs of a sample of rows stand above their k-th agreement (95 % of the
    rows): where one space has high cosines everywhere, the other has to decide."""
    if rule != "consensus":
        return 0.5
    sample = _even_sample(len(banks[0]), SAMPLE_ROWS).to(banks[0].device)
    kth = top_of(banks, rule, sample, k=k)[0][:, -1:]  # (R, 1)
    above = torch.zeros(len(WEIGHTS), len(sample), device=kth.device)
    for rows in _blocks(len(banks[0]), kth.device):
        video, audio = (bank[sample] @ bank[rows].T for bank in banks)
        for i, weight in enumerate(WEIGHTS):
            above[i] += (weight * video + (1 - weight) * audio > kth).sum(dim=1)
    return WEIGHTS[int(above.quantile(0.95, dim=1).argmin())]


def top_of(banks: Sequence[Tensor], rule: Rule, rows: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k best others of a few rows (R,) among all, in float32: scores and ids (R, k), best first."""
    score = torch.full((len(rows), k), -torch.inf, device=rows.device)
    ids = torch.full((len(rows), k), -1, device=rows.device)
    own = [bank[rows] for bank in banks]
    for columns in _blocks(len(banks[0]), rows.device):
        scores = combine([x @ bank[columns].T for x, bank in zip(own, banks, strict=True)], rule).float()
        scores.masked_fill_(rows[:, None] == columns, -torch.inf)
        top = torch.cat([score, scores], dim=1).topk(k, dim=1)
        score, ids = top.values, torch.cat([ids, columns.expand(len(rows), -1)], dim=1).gather(1, top.indices)
    return score, ids


def recall_of(banks: Sequence[Tensor], rule: Rule, score: Tensor) -> float:
    """Share of the definition's sets that sets of all rows with these scores (n, k) hold, on a sample that chose
    nothing; ties count."""
    rows = _even_sample(len(score), 2 * SAMPLE_ROWS)[1::2].to(score.device)
    kth = top_of(banks, rule, rows, k=score.shape[1])[0][:, -1:]
    return float((score[rows] >= kth - 1e-6).float().mean())


def score_again(banks: list[Tensor], rule: Rule, rows: Tensor, candidates: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k best of candidates (R, M) by the definition: ids (R, k) ascending, -1 last where there are fewer, and
    scores (R, k). Of equal candidates one counts; the row itself and -1 do not."""
    candidates = candidates.sort(dim=1).values
    wrong = (candidates < 0) | (candidates == rows[:, None])
    wrong[:, 1:] |= candidates[:, 1:] == candidates[:, :-1]
    score = definition(banks, rule, rows, candidates.clamp(min=0)).masked_fill(wrong, -torch.inf)
    ids, score = best(candidates, score, k)
    ids, order = ids.masked_fill(score == -torch.inf, torch.iinfo(torch.int64).max).sort(dim=1)
    score = score.gather(1, order)
    return ids.masked_fill(score == -torch.inf, -1), score


def _score_block(
    places: Tensor, *, banks: list[Tensor], rule: Rule, rows: Tensor, candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return score_again(banks, rule, rows[places], candidates[places], k=k)


def _even_sample(num_rows: int, size: int) -> Tensor:
    """At most `size` of the rows, evenly spaced."""
    size = min(size, num_rows)
    return torch.arange(size) * num_rows // size


def _blocks(num_rows: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.arange(num_rows, device=device).split(COLUMNS)


def _on_gpu(index: faiss.Index, device: torch.device) -> faiss.Index:
    """The index on the GPU of the vectors, where FAISS was built for one."""
    if device.type != "cuda" or not getattr(faiss, "get_num_gpus", lambda: 0)():
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
