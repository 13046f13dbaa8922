"""Linear heads on every map of a frozen encoder, trained together on cached vectors.

Letters: n videos, V views of each, d dimensions of a map, C classes, B views in a batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor
from tqdm import tqdm

from avssl.evaluate.metrics import Average, average_precision_of, video_scores
from avssl.models.heads import Classifier
from avssl.weights.features import Rows

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of Adam, tried on the held-out part
HELD_OUT = 0.2  # fraction of the training groups
EPOCHS, BATCH_VIEWS = 12, 128
DROPS, GAMMA = (0.5, 0.75), 0.1  # epochs 6 and 9 of 12
MIN_STEPS = 300  # a small set is passed through more often
CHUNK = 1024  # videos whose vectors are read at once

Vectors = Mapping[str, np.ndarray | Rows]  # {map: (n, V, d)}, in memory or on disk


@dataclass(frozen=True)
class Head:
    classifier: Classifier
    rate: float  # learning rate that was chosen
    held_out: float  # accuracy (mean average precision) on the held-out part of the training videos, with that rate


def train_heads(
    vectors: Vectors,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    classes: Sequence[str],
    modality: str,
    average: Average = "softmax",
    seed: int = 0,
    device: torch.device,
) -> dict[str, Head]:
    """A linear classifier for each map, trained on all videos with the learning rate that was best for it on a held-out
    part of whole groups.

    Args:
        vectors: of n training videos; every view is a sample.
        targets: (n,) classes, named by `classes`; (n, C) bool where a video may have several.
        groups: (n,) any labels; the held-out part consists of whole groups.
        modality: of the encoder, for `Classifier`.
        average: how the scores of views are combined.

    Source: AVID-CMA, eval-action-recg-linear.py: the sum of the losses of independent heads, Adam without weight decay,
    12 epochs, rate x .1 at 6 and 9.
    Differs from AVID-CMA: features are standardized with the mean and deviation of all training views instead of those
    of a batch, and come from the encoder in evaluation mode (there its BatchNorm drifts); the rate is chosen.
    """
    everything = np.arange(len(targets))
    inside, outside = _hold_out(targets, groups, seed)
    settings = {"num_classes": len(classes), "seed": seed, "device": device}
    kind = {"classes": classes, "modality": modality, "multi_label": targets.ndim == 2}
    best: dict[str, tuple[float, float]] = {}  # {map: (rate, held_out)}
    all_rates = {name: RATES for name in vectors}
    for name, tried in _fit(vectors, targets, inside, rates=all_rates, **settings).items():
        scores = [
            head_scores(head, vectors[name], outside, average=average) for head in tried.classifiers(stage=name, **kind)
        ]
        quality = [_quality(each, targets[outside], average) for each in scores]
        chosen = max(range(len(RATES)), key=quality.__getitem__)
        best[name] = RATES[chosen], quality[chosen][0]
    final = _fit(vectors, targets, everything, rates={name: (rate,) for name, (rate, _) in best.items()}, **settings)
    return {name: Head(fitted.classifiers(stage=name, **kind)[0], *best[name]) for name, fitted in final.items()}


def head_scores(
    head: Classifier, vectors: np.ndarray | Rows, rows: np.ndarray | None = None, *, average: Average = "softmax"
) -> np.ndarray:
    """Scores (m, C) of the videos in `rows` (m,), all if None, from the vectors (n, V, d) of their views."""
    device = head.linear.weight.device
    rows = np.arange(len(vectors)) if rows is None else rows
    parts = [np.zeros((0, len(head.classes)), dtype=np.float32)]
    with torch.inference_mode():
        for first in range(0, len(rows), CHUNK):
            x = torch.from_numpy(vectors[rows[first : first + CHUNK]]).to(device)
            logits = head(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            parts.append(video_scores(logits, average=average, multi_label=head.multi_label).cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Fitted:
    """Regressions on one map, one for each rate."""

    mean: Tensor  # (d,)
    deviation: Tensor  # (d,)
    weights: Tensor  # (R, C, d)
    biases: Tensor  # (R, C)

    def classifiers(self, classes: Sequence[str], **kind: Any) -> list[Classifier]:
        """One for each rate; arguments of `Classifier`."""
        heads = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            head = Classifier(len(self.mean), classes, batch_norm=True, **kind)
            with torch.no_grad():
                head.norm.running_mean.copy_(self.mean)
                head.norm.running_var.copy_(self.deviation**2 - head.norm.eps)
                head.linear.weight.copy_(weight)
                head.linear.bias.copy_(bias)
            heads.append(head.to(self.mean.device).eval())
        return heads


@torch.no_grad()
def _fit(
    vectors: Vectors,
    targets: np.ndarray,
    rows: np.ndarray,
    *,
    rates: Mapping[str, Sequence[float]],
    num_classes: int,
    seed: int,
    device: torch.device,
) -> dict[str, _Fitted]:
    """Multinomial logistic regressions from zero weights, one per map and rate, on the views of `rows`; one binomial
    for each class where a video may have several.

    The gradient is written out, so that all rates of a map take one product: x is read once and not once for each.
    """
    fitted, by_rate = {}, {}
    for name, array in vectors.items():
        mean, deviation = _moments(array, rows)
        num, size = len(rates[name]), array.shape[2]
        weights = torch.zeros(num, num_classes, size, device=device)
        biases = torch.zeros(num, num_classes, device=device)
        fitted[name] = _Fitted(mean.to(device), deviation.to(device), weights, biases)
        for whole in (weights, biases):
            whole.grad = torch.zeros_like(whole)
            for i, rate in enumerate(rates[name]):
                part = whole[i]  # in the same memory, as is its gradient
                part.grad = whole.grad[i]
                by_rate.setdefault(rate, []).append(part)
    groups = [{"params": parameters, "lr": rate, "rate": rate} for rate, parameters in sorted(by_rate.items())]
    optimizer = torch.optim.Adam(groups, fused=True)
    num_views = next(iter(vectors.values())).shape[1]
    per_epoch = math.ceil(len(rows) * num_views / BATCH_VIEWS)
    num_epochs = max(EPOCHS, math.ceil(MIN_STEPS / per_epoch))
    rng, several = np.random.default_rng(seed), targets.ndim == 2
    for epoch in tqdm(range(num_epochs), desc="linear heads", unit="pass", mininterval=1, leave=False):
        drops = sum(epoch >= drop * num_epochs for drop in DROPS)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * GAMMA**drops
        for batch in np.array_split(rng.permutation(len(rows) * num_views), per_epoch):
            video, view = rows[batch // num_views], batch % num_views
            wanted = torch.from_numpy(targets[video]).to(device)
            wanted = (wanted if several else F.one_hot(wanted.long(), num_classes)).float().unsqueeze(1)  # (B, 1, C)
            for name, each in fitted.items():
                x = torch.from_numpy(vectors[name][video, view]).to(device)
                x = (x - each.mean).div_(each.deviation)  # (B, d)
                logits = F.linear(x, each.weights.flatten(0, 1), each.biases.flatten()).unflatten(1, each.biases.shape)
                if several:  # the loss is a mean over clips and classes, else over clips
                    error = (logits.sigmoid() - wanted) / num_classes
                else:
                    error = logits.softmax(dim=2) - wanted
                error = error.flatten(1) / len(batch)  # (B, R C): the gradient of the logits
                torch.mm(error.T, x, out=each.weights.grad.flatten(0, 1))
                torch.sum(error, dim=0, out=each.biases.grad.flatten())
            optimizer.step()
    return fitted


def _moments(array: np.ndarray | Rows, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) over the views of `rows`."""
    total, squares, count = 0.0, 0.0, 0
    for first in range(0, len(rows), CHUNK):
        x = np.asarray(array[rows[first : first + CHUNK]], dtype=np.float64).reshape(-1, array.shape[2])
        total, squares, count = total + x.sum(axis=0), squares + (x**2).sum(axis=0), count + len(x)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance + 1e-5)).float()


def _quality(scores: np.ndarray, targets: np.ndarray, average: Average) -> tuple[float, float]:
    """Accuracy of scores (m, C), and the likelihood, which breaks ties; or mean average precision."""
    if targets.ndim == 2:
        every = np.ones(len(targets), dtype=bool)
        return float(np.nan_to_num(average_precision_of(scores, targets, every)(np.ones((1, len(targets))))[0])), 0.0
    probabilities = torch.from_numpy(scores) if average == "softmax" else torch.from_numpy(scores).softmax(dim=1)
    likelihood = probabilities[torch.arange(len(targets)), torch.from_numpy(targets)].clamp(min=1e-12).log().mean()
    return float((scores.argmax(axis=1) == targets).mean()), float(likelihood)


def _hold_out(targets: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions for trying rates, and held-out positions: a fraction of the groups."""
    if len(np.unique(groups)) < 2:
        groups = np.arange(len(targets))  # one group only: nothing better can be done
    return next(GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed).split(targets, groups=groups))
