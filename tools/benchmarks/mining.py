"""Speed of the engines of agreement mining beside the dense definition with the same threads, and how much of its sets
they find; for several N also the growth of the seconds with N, and what that makes of up to 10^9 rows.

    python tools/benchmarks/mining.py
    python tools/benchmarks/mining.py --n 10000 --data uniform --json mining.json
    python tools/benchmarks/mining.py --n 5000 20000 50000 100000
    python tools/benchmarks/mining.py --n 240000 --engines ivf --dense-rows 4096

The dense definition is timed on --dense-rows rows against all N, and its seconds are extrapolated to all of them.
"""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import stopwatch
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.mining.agreement import ENGINES, Engine, mine_agreement

Data = Literal["clustered", "peaked_audio", "peaked", "uniform"]
DATA: tuple[Data, ...] = get_args(Data)

_CLIPS_PER_CLASS, _FOREIGN = 100, 0.2
PROJECTED = (10**6, 10**7, 10**8, 10**9)
_DENSE_ROWS = 256  # the fastest block of those tried (128 to 2048) at N = 50,000
_SCORE_TOLERANCE = 1e-6  # float32 rounding between the dense products and ours


def make_banks(num_rows: int, dim: int, *, data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Video and audio banks, each (num_rows, dim) of unit length.

    clustered: what a trained bank looks like. Each space has a direction per class, of some 100 clips; a clip is its
        class direction plus noise of its own in each space, and 20 % of the clips sound like another class. Cosines
        within a class are about 0.55, between classes 0 +- 0.09.
    peaked_audio: the same, with a large common part in the audio space: all audio cosines lie within 0.92 to 1.
    peaked: a large common part in both spaces.
    uniform: directions without any structure, so that neighbors are chance.
    """
    generator = torch.Generator().manual_seed(seed)
    num_classes = max(1, num_rows // _CLIPS_PER_CLASS)
    looks = torch.randint(num_classes, (num_rows,), generator=generator)
    foreign = torch.rand(num_rows, generator=generator) < _FOREIGN
    sounds = torch.where(foreign, torch.randint(num_classes, (num_rows,), generator=generator), looks)
    common = {"video": 6.0 if data == "peaked" else 0.0, "audio": 6.0 if data in ("peaked", "peaked_audio") else 0.0}
    banks = []
    for space, classes in (("video", looks), ("audio", sounds)):
        own = F.normalize(torch.randn(num_rows, dim, generator=generator), dim=1)
        centers = F.normalize(torch.randn(num_classes, dim, generator=generator), dim=1)
        shared = common[space] * F.normalize(torch.randn(dim, generator=generator), dim=0)
        banks.append(F.normalize(own if data == "uniform" else centers[classes] + 0.9 * own + shared, dim=1))
    return banks[0], banks[1]


def dense_agreement(video: Tensor, audio: Tensor, *, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition in float32: cosines of some rows with all, in blocks, their minimum, the k largest without self.

    Returns:
        ids (R, k) and scores (R, k) of rows (R,), best first.
    """
    num_rows = len(video)
    buffers = [bank.new_empty(_DENSE_ROWS, num_rows) for bank in (video, audio)]
    ids, scores = [], []
    for block in rows.split(_DENSE_ROWS):
        cosines = [
            torch.mm(bank[block], bank.T, out=buffer[: len(block)])
            for bank, buffer in zip((video, audio), buffers, strict=True)
        ]
        agreement = torch.minimum(*cosines, out=cosines[0])  # (R, N)
        agreement[torch.arange(len(block)), block] = -torch.inf
        best = agreement.topk(k, dim=1)
        ids.append(best.indices)
        scores.append(best.values)
    return torch.cat(ids), torch.cat(scores)


def benchmark_mining(
    *, num_rows: int, dim: int, k: int, data: Data, seed: int, engines: Sequence[Engine], dense_rows: int
) -> dict[str, Any]:
    """Time the dense search and each engine on the same banks, with torch's current number of threads.

    Args:
        dense_rows: on which the dense search is timed and recall is measured, evenly spaced.

    Returns:
        n; dense_seconds, for all rows; of each engine ENGINE_seconds, ENGINE_speedup (dense over its own),
        ENGINE_recall (share of its members whose score reaches the k-th dense score of the row, within 1e-6, so that
        ties count) and ENGINE_proven (share of rows whose set is proven); peak_gigabytes of the process so far.

    Raises:
        ValueError: k is not between 1 and num_rows - 1, or dim < 1.
    """
    if not 1 <= k < num_rows or dim < 1 or dense_rows < 1:
        raise ValueError(f"n is {num_rows}, k {k}, dim {dim}, {dense_rows=}: expected 1 <= k < n, dim and rows >= 1")
    video, audio = make_banks(num_rows, dim, data=data, seed=seed)
    sample = torch.arange(min(dense_rows, num_rows)) * num_rows // min(dense_rows, num_rows)
    warm = slice(0, 2048)  # the first call of each library starts its threads and picks its kernels
    dense_agreement(video[warm], audio[warm], rows=torch.arange(len(video[warm])), k=min(k, 2047))
    start = time.perf_counter()
    _, dense_score = dense_agreement(video, audio, rows=sample, k=k)
    dense_seconds = (time.perf_counter() - start) * num_rows / len(sample)
    found: dict[str, Any] = {"n": num_rows, "dense_seconds": dense_seconds}
    for engine in engines:
        mine_agreement(video[warm], audio[warm], k=min(k, 2047), engine=engine)
        start = time.perf_counter()
        sets = mine_agreement(video, audio, k=k, engine=engine)
        seconds = time.perf_counter() - start
        reached = sets.score[sample] >= dense_score[:, -1:] - _SCORE_TOLERANCE
        found |= {
            f"{engine}_seconds": seconds,
            f"{engine}_speedup": dense_seconds / seconds,
            f"{engine}_recall": reached.double().mean().item(),
            f"{engine}_proven": sets.exact.double().mean().item(),
        }
    return found | {"peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # of kB on Linux


def measure(sizes: Sequence[int], engines: Sequence[Engine], **settings: Any) -> dict[str, Any]:
    """rows: `benchmark_mining` of each N; with several N the exponent of each search, the slope of log seconds over log
    N, and `projected`: hours of each engine and gigabytes of vectors at larger N; dim, k, threads, data."""
    rows = [benchmark_mining(num_rows=num_rows, engines=engines, **settings) for num_rows in sizes]
    growth: dict[str, Any] = {}
    if len(set(sizes)) > 1:
        fits = {name: fit_growth(sizes, [r[f"{name}_seconds"] for r in rows]) for name in ("dense", *engines)}
        growth = {f"{name}_exponent": exponent for name, (exponent, _) in fits.items()}
        growth["projected"] = [project(num_rows, fits, dim=settings["dim"]) for num_rows in PROJECTED]
    shown = {name: settings[name] for name in ("dim", "k", "data")}
    return {"rows": rows} | growth | shown | {"threads": torch.get_num_threads()}


def fit_growth(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """a and c of seconds = c * sizes ** a that fit best in logarithms."""
    exponent, log_scale = np.polyfit(np.log(sizes), np.log(seconds), deg=1)
    return float(exponent), float(np.exp(log_scale))


def project(num_rows: int, fits: Mapping[str, tuple[float, float]], *, dim: int) -> dict[str, float]:
    """Hours of each search by its fit; gigabytes of the two banks in float32, and of ivf's copy of them, sorted by cell
    with three numbers a row."""
    hours = {f"{name}_hours": scale * num_rows**exponent / 3600 for name, (exponent, scale) in fits.items()}
    sizes = {"banks_gigabytes": num_rows * dim * 8 / 1e9, "index_gigabytes": num_rows * (dim * 8 + 24) / 1e9}
    return {"n": num_rows} | hours | sizes


def main() -> int:
    parser = stopwatch.command(__doc__, seed=0)
    parser.add_argument("--n", dest="sizes", type=int, nargs="+", default=[50_000], help="instances; several: growth")
    parser.add_argument("--dim", type=int, default=128, help="embedding dimension (default: 128)")
    parser.add_argument("--k", type=int, default=32, help="positives per instance (default: 32)")
    exact = [engine for engine in ENGINES if engine != "auto"]
    parser.add_argument("--engines", nargs="+", choices=exact, default=exact, help=f"(default: {', '.join(exact)})")
    parser.add_argument("--dense-rows", type=int, default=8192, help="rows of the dense search (default: 8192)")
    parser.add_argument("--data", choices=DATA, default="clustered", help="shape of the synthetic banks")
    plan = "the dense search and {engines} on {data} banks of {sizes} x {dim}, k = {k}"
    return stopwatch.run(parser, measure, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
