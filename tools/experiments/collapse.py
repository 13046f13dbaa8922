"""What keeps methods from collapsing, taken away: the effective rank of the embedding over the steps of a training.

    python tools/experiments/collapse.py --out docs/collapse.png

Vectors stand in for clips: a clip is a random point, its two views are the point with noise, and the encoder is a small
network. Each row trains twice or more from the same weights on the same batches: as the method is, and without the one
thing. Prints the last rank of each. Exit code: 0 done, 2 wrong call.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import experiment
import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.files import atomic_write, check_writable
from avssl.methods import METHODS, simclr, swav
from avssl.methods.base import Encode, Method
from avssl.structs import Batch, Instances, Progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_POINTS, NUM_INPUTS, DIM, BATCH, STEPS, EVERY = 1024, 32, 64, 64, 320, 20


@contextmanager
def intact(method: Method) -> Iterator[None]:
    yield


@contextmanager
def no_predictor(method: Method) -> Iterator[None]:
    method.predictors["video"] = nn.Identity()
    yield


@contextmanager
def with_gradient(method: Method) -> Iterator[None]:
    """The compared view gets a gradient too; with a momentum copy: it is the network itself that is compared with."""

    def negative_cosine(p: Tensor, z: Tensor, *, present: Tensor) -> Tensor:
        return -F.cosine_similarity(p, z, dim=1).mean()

    own = patch.object(type(method), "target_outputs", type(method).outputs)
    with patch.object(sys.modules[type(method).__module__], "negative_cosine", negative_cosine), own:
        yield


@contextmanager
def no_partition(method: Method) -> Iterator[None]:
    """Each crop's code is the softmax of its own scores, whatever the others chose."""

    def softmax(scores: Tensor, *, epsilon: float, **_: Any) -> Tensor:
        return (scores.detach() / epsilon).softmax(dim=1)

    with patch.object(swav, "sinkhorn", softmax):
        yield


@contextmanager
def no_negatives(method: Method) -> Iterator[None]:
    """Only the logits of positives count: the loss is their mean distance."""

    def pull(logits: Tensor, positive: Tensor, *, ignore: Tensor) -> Tensor:
        return -(logits * positive).sum(dim=1).mean()

    with patch.object(simclr, "info_nce", pull):
        yield


@dataclass(frozen=True)
class Row:
    """A method, and by what it says the ways in which it is trained; hard enough that a collapse pays."""

    options: dict[str, Any]
    ways: dict[str, Callable[[Method], Any]]
    noise: float = 1.0  # deviation of what is added to a point, which has 1 itself
    rate: float = 0.5


SMALL = {"hidden_dim": 128, "embedding_dim": 64}
STOPPED = {"without predictor": no_predictor, "without stopped gradient": with_gradient}
ROWS = {
    "byol": Row({**SMALL, "momentum": 0.9, "first": {}, "second": {}}, STOPPED),
    "simsiam": Row({**SMALL, "predictor_dim": 32}, STOPPED),
    "swav": Row(
        {**SMALL, "num_small": 0, "num_prototypes": 128, "freeze_steps": 0},
        {"without equal partition": no_partition},
        noise=0.3,
        rate=0.2,
    ),
    "simclr": Row(SMALL, {"without negatives": no_negatives}),
}


class Encoder(nn.Sequential):
    """A stand-in for a video encoder that takes vectors."""

    dim, min_size = DIM, (1, 1, 1)

    def __init__(self) -> None:
        super().__init__(nn.Linear(NUM_INPUTS, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Linear(DIM, DIM))


def effective_rank(z: Tensor) -> float:
    """Of unit vectors (n, D) as they are, not centered as in the log of a run: 1 also for those that are equal."""
    share = torch.linalg.svdvals(z)
    share = share / share.sum()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def ranks(name: str, way: Callable[[Method], Any]) -> list[float]:
    """Effective rank of a training's embedding, every EVERY steps."""
    torch.manual_seed(0)
    every = torch.ones(NUM_POINTS, dtype=torch.bool)
    kind = METHODS[name]
    method = kind(
        kind.Options(**ROWS[name].options),
        nn.ModuleDict({"video": Encoder()}),
        instances=Instances(every, every, every),
        seed=0,
    )
    points, found = torch.randn(NUM_POINTS, NUM_INPUTS), []
    with way(method):
        optimizer = torch.optim.SGD(method.parameters(), lr=ROWS[name].rate, momentum=0.9, weight_decay=1e-4)
        for step in range(STEPS):
            progress, batch = Progress(0, step, STEPS), batch_of(method, points, noise=ROWS[name].noise)
            done = method.loss(Encode(method.encoders, method.views, batch), batch, progress)
            optimizer.zero_grad()
            done.loss.backward()
            optimizer.step()
            method.after_step(done, progress)
            if step % EVERY == 0 or step == STEPS - 1:
                found.append(effective_rank(done.embeddings["video"].z))
    return found


def batch_of(method: Method, points: Tensor, *, noise: float) -> Batch:
    ids, names = torch.randint(NUM_POINTS, (BATCH,)), [view.name for view in method.views]
    every = torch.ones(BATCH, dtype=torch.bool)
    return Batch(
        video={name: points[ids] + noise * torch.randn(BATCH, NUM_INPUTS) for name in names},
        audio={},
        ids=ids,
        start={name: torch.zeros(BATCH, dtype=torch.float64) for name in names},
        has_audio=every,
        has_video=every,
        params={},
        padded={name: ~every for name in names},
    )


def curves(names: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """{method: {way: effective ranks}}, the intact way first."""
    return {
        name: {words: ranks(name, way) for words, way in {"as it is": intact, **ROWS[name].ways}.items()}
        for name in names
    }


def draw(found: dict[str, dict[str, list[float]]]) -> plt.Figure:
    figure, axes = plt.subplots(1, len(found), figsize=(3 * len(found), 2.6), sharey=True, layout="constrained")
    steps = [*range(0, STEPS, EVERY), STEPS - 1]
    for axis, (name, ways) in zip(axes, found.items(), strict=True):
        for words, line in ways.items():
            axis.plot(steps, line, label=words)
        axis.set(title=name, xlabel="step", ylim=(0, None))
        axis.legend(fontsize="small")
    axes[0].set_ylabel("effective rank")
    return figure


def compare(arguments: argparse.Namespace) -> tuple[dict[str, dict[str, list[float]]], str]:
    """The curves, drawn too, and the last rank of each."""
    check_writable(arguments.out)
    found = curves(ROWS)
    with atomic_write(arguments.out) as temporary:
        draw(found).savefig(temporary, format="png", dpi=120)
    lines = (
        f"{name}: " + ", ".join(f"{way} {line[-1]:.1f}" for way, line in ways.items()) for name, ways in found.items()
    )
    return found, "\n".join(lines)


def main() -> int:
    parser = experiment.command(__doc__)
    parser.add_argument("--out", type=Path, default=Path("collapse.png"), help="picture (default: collapse.png)")
    return experiment.run(parser, compare, plan=lambda given: [f"train {name}" for name in ROWS])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
