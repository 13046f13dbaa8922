"""The protocols over kept vectors of one modality: what each says of the videos that it is asked about.

Letters: n training videos, m videos that are asked about, V views of each, d numbers of a map, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from avssl.evaluate.classify import cluster, draw_few, knn_predict, linear_predict, svm_scores
from avssl.evaluate.features import Rows
from avssl.evaluate.heads import Head, head_scores, train_heads
from avssl.evaluate.metrics import PARTITION_METRICS, Average, chance_gallery_recall, gallery_hits

Vectors = np.ndarray | Rows
KS = (1, 5, 10, 20, 50)  # of retrieval


@dataclass(frozen=True)
class Options:
    """What protocols may be told; each reads its own.

    Raises:
        ValueError: a number is out of range; it is called by its option of tools/evaluate.py.
    """

    average: Average = "softmax"  # linear, finetune
    k: int = 20  # knn
    temperature: float = 0.07  # knn
    map: str = "pool"  # svm: which of the encoder's maps
    shares: tuple[float, ...] = (0.01, 0.1)  # fewlabels
    draws: int = 5  # fewlabels
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, is_good in (
            ("k", self.k, self.k >= 1),
            ("temperature", self.temperature, 0 < self.temperature < math.inf),
            ("draws", self.draws, self.draws >= 1),
        ):
            if not is_good:
                raise ValueError(f"--{name} {value:g}: expected a number above 0")


@dataclass(frozen=True)
class Sides:
    """The training videos of a split and those that are asked about, all of which have one modality."""

    modality: str
    train: Mapping[str, Vectors]  # {map: (n, V, d)}
    train_targets: np.ndarray  # (n,)
    train_groups: np.ndarray  # (n,)
    test: Mapping[str, Vectors]  # {map: (m, V, d)}
    test_targets: np.ndarray  # (m,), to compare with, never to choose by
    classes: Sequence[str]
    device: torch.device

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean pooled outputs of both: (n, d) and (m, d)."""
        return np.asarray(self.train["pool"]).mean(axis=1), np.asarray(self.test["pool"]).mean(axis=1)


@dataclass(frozen=True)
class Outcome:
    """What is said of the m videos in one way."""

    values: np.ndarray  # (m,) what each counts: 1 right, 0 wrong, or a share of several trials
    predicted: np.ndarray | None = None  # (m,) classes, where there is one prediction
    chance: float | None = None  # of a value; None = the share of the most frequent class
    chosen: Mapping[str, float | str] = field(default_factory=dict)  # without looking at these videos
    draws: Sequence[float] = ()  # the mean of the values for each draw of labels
    clusters: np.ndarray | None = None  # (m,), of a partition, whose metrics are of all videos together


Outcomes = dict[str, Outcome]  # {way: ...}


def knn(sides: Sides, options: Options) -> Outcomes:
    """Votes of the nearest training videos, weighted under the modality's own name, and plain."""
    train, test = (torch.from_numpy(each) for each in sides.means())
    targets = torch.from_numpy(sides.train_targets)
    found = {}
    for way, temperature in ((sides.modality, options.temperature), (f"{sides.modality} plain", None)):
        predicted = knn_predict(train, targets, test, k=options.k, temperature=temperature).numpy()
        found[way] = _classified(predicted, sides)
    return found


def linear(sides: Sides, options: Options, *, keep: dict[str, Head] | None = None) -> Outcomes:
    """A linear head on every map, and the map that was best on the held-out part of the training videos under the
    modality's own name.

    Args:
        keep: receives that head, {modality: head}.
    """
    if len(np.unique(sides.train_targets)) < 2:
        return _only_class(sides, [sides.modality])
    heads = train_heads(
        sides.train,
        sides.train_targets,
        sides.train_groups,
        classes=sides.classes,
        modality=sides.modality,
        average=options.average,
        seed=options.seed,
        device=sides.device,
    )
    found = {}
    for name, head in heads.items():
        scores = head_scores(head.classifier, sides.test[name], average=options.average)
        chosen = {"rate": head.rate, "held_out": head.held_out}
        found[f"{sides.modality} {name}"] = _classified(scores.argmax(axis=1), sides, chosen=chosen)
    best = max(heads, key=lambda name: (heads[name].held_out, list(heads).index(name)))  # of equal ones the deepest
    if keep is not None:
        keep[sides.modality] = heads[best]
    of_best = found[f"{sides.modality} {best}"]
    return {sides.modality: _classified(of_best.predicted, sides, chosen={"map": best, **of_best.chosen}), **found}


def svm(sides: Sides, options: Options) -> Outcomes:
    """The support vector machine on one of the maps; of both sides together on the pooled outputs."""
    name = "pool" if sides.modality == "both" else options.map
    if name not in sides.train:
        raise ValueError(f"--map {name} is not a map of the {sides.modality} encoder: choose {', '.join(sides.train)}")
    if len(np.unique(sides.train_targets)) < 2:
        return _only_class(sides, [sides.modality])
    scores, strength = svm_scores(
        np.asarray(sides.train[name]),
        sides.train_targets,
        np.asarray(sides.test[name]),
        groups=sides.train_groups,
        num_classes=len(sides.classes),
    )
    return {sides.modality: _classified(scores.argmax(axis=1), sides, chosen={"map": name, "C": strength})}


def fewlabels(sides: Sides, options: Options) -> Outcomes:
    """Logistic regression on the pooled outputs, from a small share of the labels."""
    if len(np.unique(sides.train_targets)) < 2:
        return _only_class(sides, [f"{sides.modality} {share:.0%}" for share in options.shares])
    train, test = sides.means()
    found = {}
    for share in options.shares:
        trials = []
        for rows in draw_few(sides.train_targets, share, num_draws=options.draws, seed=options.seed):
            predicted, _ = linear_predict(train[rows], sides.train_targets[rows], test, groups=sides.train_groups[rows])
            trials.append(predicted == sides.test_targets)
        found[f"{sides.modality} {share:.0%}"] = Outcome(
            values=np.mean(trials, axis=0), chosen={"labels": len(rows)}, draws=[float(each.mean()) for each in trials]
        )
    return found


def partition(sides: Sides, options: Options) -> Outcomes:
    """k-means on the pooled outputs of the videos asked about, with as many clusters as classes."""
    _, test = sides.means()
    clusters = cluster(test, num_clusters=len(sides.classes), seed=options.seed)
    empty = np.zeros(len(test))
    return {f"{sides.modality} {name}": Outcome(values=empty, clusters=clusters) for name in PARTITION_METRICS}


def retrieval(
    name: str, query: np.ndarray, query_targets: np.ndarray, gallery: np.ndarray, targets: np.ndarray
) -> Outcomes:
    """Recall of classes in one direction, such as "video to audio": queries (m, D) are the videos asked about, the
    gallery (n, D) the training videos."""
    hits = gallery_hits(query, query_targets, gallery, targets, ks=KS)
    return {
        f"{name} R@{k}": Outcome(
            values=hits[:, place].astype(float), chance=chance_gallery_recall(query_targets, targets, k=k)
        )
        for place, k in enumerate(KS)
    }


def _classified(predicted: np.ndarray, sides: Sides, **facts: Mapping[str, float | str]) -> Outcome:
    return Outcome(values=(predicted == sides.test_targets).astype(float), predicted=predicted, **facts)


def _only_class(sides: Sides, ways: Sequence[str]) -> Outcomes:
    """What any classifier says that was shown one class alone."""
    predicted = np.full(len(sides.test_targets), sides.train_targets[0])
    chosen = {"only_class": sides.classes[sides.train_targets[0]]}
    return {way: _classified(predicted, sides, chosen=chosen) for way in ways}


PROTOCOLS: dict[str, Callable[..., Outcomes]] = {
    "knn": knn,
    "linear": linear,
    "svm": svm,
    "fewlabels": fewlabels,
    "partition": partition,
}
