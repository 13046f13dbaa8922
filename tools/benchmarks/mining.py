"""Speed of agreement mining beside the dense definition with the same threads, and whether the sets are equal; for
several N also the growth of the seconds with N.

    python tools/benchmarks/mining.py
    python tools/benchmarks/mining.py --n 10000 --data uniform --json mining.json
    python tools/benchmarks/mining.py --n 5000 20000 50000 100000
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import stopwatch
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.mining.agreement import mine_agreement

Data = Literal["clustered", "peaked_audio", "peaked", "uniform"]
DATA: tuple[Data, ...] = get_args(Data)

_NUM_CLASSES = 400  # as in Kinetics
_DENSE_ROWS = 256  # the fastest block of those tried (128 to 2048) at N = 50,000
_SCORE_TOLERANCE = 1e-6  # float32 rounding between the dense products and ours


def make_banks(num_rows: int, dim: int, *, data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Video and audio banks, each (num_rows, dim) of unit length.

    clustered: what a trained bank looks like. Each space has a direction per class; a clip is its class direction plus
        noise of its own in each space, and 10 % of the clips sound like another class. Cosines within a class are about
        0.55, between classes 0 +- 0.09.
    peaked_audio: the same, with a large common part in the audio space: all audio cosines lie within 0.92 to 1.
    peaked: a large common part in both spaces.
    uniform: directions without any structure, so that neighbours are chance.
    """
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randint(_NUM_CLASSES, (num_rows,), generator=generator)
    foreign = torch.rand(num_rows, generator=generator) < 0.1
    sounds = torch.where(foreign, torch.randint(_NUM_CLASSES, (num_rows,), generator=generator), looks)
    common = {"video": 6.0 if data == "peaked" else 0.0, "audio": 6.0 if data in ("peaked", "peaked_audio") else 0.0}
    banks = []
    for space, classes in (("video", looks), ("audio", sounds)):
        own = F.normalize(torch.randn(num_rows, dim, generator=generator), dim=1)
        centers = F.normalize(torch.randn(_NUM_CLASSES, dim, generator=generator), dim=1)
        shared = common[space] * F.normalize(torch.randn(dim, generator=generator), dim=0)
        banks.append(F.normalize(own if data == "uniform" else centers[classes] + 0.9 * own + shared, dim=1))
    return banks[0], banks[1]


def dense_agreement(video: Tensor, audio: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The definition in float32: all cosines in blocks of rows, their minimum, the k largest without self.

    Returns:
        ids (N, k) and scores (N, k), best first.
    """
    num_rows = len(video)
    buffers = [bank.new_empty(_DENSE_ROWS, num_rows) for bank in (video, audio)]
    ids, scores = [], []
    for rows in torch.arange(num_rows).split(_DENSE_ROWS):
        block = slice(int(rows[0]), int(rows[-1]) + 1)
        cosines = [
            torch.mm(bank[block], bank.T, out=buffer[: len(rows)])
            for bank, buffer in zip((video, audio), buffers, strict=True)
        ]
        agreement = torch.minimum(*cosines, out=cosines[0])  # (R, N)
        agreement[torch.arange(len(rows)), rows] = -torch.inf
        best = agreement.topk(k, dim=1)
        ids.append(best.indices)
        scores.append(best.values)
    return torch.cat(ids), torch.cat(scores)


def benchmark_mining(*, num_rows: int, dim: int, k: int, data: Data, seed: int) -> dict[str, Any]:
    """Time the dense search and ours on the same banks, with torch's current number of threads.

    Returns:
        dense_seconds, ours_seconds, speedup (their ratio); recall: the fraction of ours whose dense
        score reaches the k-th dense score of the row (within 1e-6, so that ties count); score_difference: the largest
        gap between the sorted scores; proven: the fraction of rows whose set is proven; n, dim, k, threads, data.

    Raises:
        ValueError: k is not between 1 and num_rows - 1, or dim < 1.
    """
    if not 1 <= k < num_rows or dim < 1:
        raise ValueError(f"n is {num_rows}, k {k}, dim {dim}, expected 1 <= k < n and dim >= 1")
    video, audio = make_banks(num_rows, dim, data=data, seed=seed)
    warm = slice(0, 2048)  # the first call of each library starts its threads and picks its kernels
    for search in (dense_agreement, mine_agreement):
        search(video[warm], audio[warm], k=min(k, 2047))

    start = time.perf_counter()
    _, dense_score = dense_agreement(video, audio, k=k)
    dense_seconds = time.perf_counter() - start
    start = time.perf_counter()
    sets = mine_agreement(video, audio, k=k)
    ours_seconds = time.perf_counter() - start

    reached = _agreement(video, audio, sets.ids) >= dense_score[:, -1:] - _SCORE_TOLERANCE
    difference = (sets.score.sort(dim=1, descending=True).values - dense_score).abs().max()
    return {
        "dense_seconds": dense_seconds,
        "ours_seconds": ours_seconds,
        "speedup": dense_seconds / ours_seconds,
        "recall": reached.double().mean().item(),
        "score_difference": difference.item(),
        "proven": sets.exact.double().mean().item(),
        "n": num_rows,
        "dim": dim,
        "k": k,
        "threads": torch.get_num_threads(),
        "data": data,
    }


def benchmark_mining_growth(*, sizes: Sequence[int], dim: int, k: int, data: Data, seed: int) -> dict[str, Any]:
    """Time both searches for several numbers of instances and fit seconds = constant * N ** exponent.

    Args:
        sizes: N of each measurement, at least two different ones.

    Returns:
        rows: for each N, n, dense_seconds, ours_seconds, speedup, recall and proven as in `benchmark_mining`;
        dense_exponent and ours_exponent, least squares of log seconds over log N; dim, k, threads, data.

    Raises:
        ValueError: fewer than two different sizes, or as `benchmark_mining`.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"n is {list(sizes)}: a growth needs at least two different numbers of instances")
    keys = ("n", "dense_seconds", "ours_seconds", "speedup", "recall", "proven")
    rows = []
    for num_rows in sizes:
        found = benchmark_mining(num_rows=num_rows, dim=dim, k=k, data=data, seed=seed)
        rows.append({key: found[key] for key in keys})
    return {
        "rows": rows,
        "dense_exponent": fit_exponent(sizes, [row["dense_seconds"] for row in rows]),
        "ours_exponent": fit_exponent(sizes, [row["ours_seconds"] for row in rows]),
        "dim": dim,
        "k": k,
        "threads": torch.get_num_threads(),
        "data": data,
    }


def fit_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The exponent a of seconds = c * sizes ** a that fits best in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), deg=1)[0])


def measure(sizes: Sequence[int], **settings: Any) -> dict[str, Any]:
    if len(sizes) == 1:
        return benchmark_mining(num_rows=sizes[0], **settings)
    return benchmark_mining_growth(sizes=sizes, **settings)


def _agreement(video: Tensor, audio: Tensor, ids: Tensor) -> Tensor:
    """Consensus score of each row with its own ids, recomputed from the vectors: (N, k)."""
    parts = []
    for rows in torch.arange(len(video)).split(_DENSE_ROWS):
        cosines = [(bank[ids[rows]] * bank[rows][:, None]).sum(dim=2) for bank in (video, audio)]
        parts.append(torch.minimum(*cosines))
    return torch.cat(parts)


def main() -> int:
    parser = stopwatch.command(__doc__, seed=0)
    parser.add_argument("--n", dest="sizes", type=int, nargs="+", default=[50_000], help="instances; several: growth")
    parser.add_argument("--dim", type=int, default=128, help="embedding dimension (default: 128)")
    parser.add_argument("--k", type=int, default=32, help="positives per instance (default: 32)")
    parser.add_argument("--data", choices=DATA, default="clustered", help="shape of the synthetic banks")
    plan = "the dense search and ours on {data} banks of {sizes} x {dim}, k = {k}"
    return stopwatch.run(parser, measure, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
