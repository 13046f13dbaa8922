"""The protocols: each predicts the test videos of a split from cached feature vectors of one modality.

Letters: n training videos, m test videos, V views of each, d dimensions of a map, C classes.
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
    """Options of all protocols; each reads its own. Raises ValueError, naming the option of tools/evaluate.py."""

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
class SplitData:
    """The training and test videos of a split that have one modality."""

    modality: str
    train: Mapping[str, Vectors]  # {map: (n, V, d)}
    train_targets: np.ndarray  # (n,)
    train_groups: np.ndarray  # (n,)
    test: Mapping[str, Vectors]  # {map: (m, V, d)}
    test_targets: np.ndarray  # (m,) for scoring, never for model selection
    classes: Sequence[str]
    device: torch.device

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Pooled outputs averaged over views, train and test: (n, d) and (m, d)."""
        return np.asarray(self.train["pool"]).mean(axis=1), np.asarray(self.test["pool"]).mean(axis=1)


@dataclass(frozen=True)
class Outcome:
    """Scores of the m test videos by one metric."""

    values: np.ndarray  # (m,) 1 correct, 0 wrong, or the fraction of correct trials
    predicted: np.ndarray | None = None  # (m,) classes, where there is one prediction
    chance: float | None = None  # expected value by chance; None = frequency of the most common class
    chosen: Mapping[str, float | str] = field(default_factory=dict)  # hyperparameters, chosen on training videos
    draws: Sequence[float] = ()  # mean value for each draw of labels
    clusters: np.ndarray | None = None  # (m,) for partition, whose metrics need all videos together


Outcomes = dict[str, Outcome]  # {metric: ...}


def knn(data: SplitData, options: Options) -> Outcomes:
    """Votes of the nearest training videos: weighted (metric named like the modality) and unweighted ("plain")."""
    train, test = (torch.from_numpy(each) for each in data.means())
    targets = torch.from_numpy(data.train_targets)
    found = {}
    for name, temperature in ((data.modality, options.temperature), (f"{data.modality} plain", None)):
        predicted = knn_predict(train, targets, test, k=options.k, temperature=temperature).numpy()
        found[name] = _classified(predicted, data)
    return found


def linear(data: SplitData, options: Options, *, keep: dict[str, Head] | None = None) -> Outcomes:
    """A linear head on every map; the one with the best held-out accuracy is reported under the modality's name and
    stored in `keep` {modality: head}."""
    if len(np.unique(data.train_targets)) < 2:
        return _only_class(data, [data.modality])
    heads = train_heads(
        data.train,
        data.train_targets,
        data.train_groups,
        classes=data.classes,
        modality=data.modality,
        average=options.average,
        seed=options.seed,
        device=data.device,
    )
    found = {}
    for name, head in heads.items():
        scores = head_scores(head.classifier, data.test[name], average=options.average)
        chosen = {"rate": head.rate, "held_out": head.held_out}
        found[f"{data.modality} {name}"] = _classified(scores.argmax(axis=1), data, chosen=chosen)
    best = max(heads, key=lambda name: (heads[name].held_out, list(heads).index(name)))  # ties: the deepest
    if keep is not None:
        keep[data.modality] = heads[best]
    of_best = found[f"{data.modality} {best}"]
    return {data.modality: _classified(of_best.predicted, data, chosen={"map": best, **of_best.chosen}), **found}


def svm(data: SplitData, options: Options) -> Outcomes:
    """A support vector machine on one of the maps; for both modalities together, on the pooled outputs."""
    name = "pool" if data.modality == "both" else options.map
    if name not in data.train:
        raise ValueError(f"--map {name} is not a map of the {data.modality} encoder: choose {', '.join(data.train)}")
    if len(np.unique(data.train_targets)) < 2:
        return _only_class(data, [data.modality])
    scores, strength = svm_scores(
        np.asarray(data.train[name]),
        data.train_targets,
        np.asarray(data.test[name]),
        groups=data.train_groups,
        num_classes=len(data.classes),
    )
    return {data.modality: _classified(scores.argmax(axis=1), data, chosen={"map": name, "C": strength})}


def fewlabels(data: SplitData, options: Options) -> Outcomes:
    """Logistic regression on the pooled outputs, from a small fraction of the labels."""
    if len(np.unique(data.train_targets)) < 2:
        return _only_class(data, [f"{data.modality} {fraction:.0%}" for fraction in options.shares])
    train, test = data.means()
    found = {}
    for fraction in options.shares:
        trials = []
        for rows in draw_few(data.train_targets, fraction, num_draws=options.draws, seed=options.seed):
            predicted, _ = linear_predict(train[rows], data.train_targets[rows], test, groups=data.train_groups[rows])
            trials.append(predicted == data.test_targets)
        found[f"{data.modality} {fraction:.0%}"] = Outcome(
            values=np.mean(trials, axis=0), chosen={"labels": len(rows)}, draws=[float(each.mean()) for each in trials]
        )
    return found


def partition(data: SplitData, options: Options) -> Outcomes:
    """k-means on the pooled outputs of the test videos, with as many clusters as classes."""
    _, test = data.means()
    clusters = cluster(test, num_clusters=len(data.classes), seed=options.seed)
    empty = np.zeros(len(test))
    return {f"{data.modality} {name}": Outcome(values=empty, clusters=clusters) for name in PARTITION_METRICS}


def retrieval(
    name: str, query: np.ndarray, query_targets: np.ndarray, gallery: np.ndarray, targets: np.ndarray
) -> Outcomes:
    """Class recall in one direction, such as "video to audio": queries (m, D) are test videos, the gallery (n, D)
    training videos."""
    hits = gallery_hits(query, query_targets, gallery, targets, ks=KS)
    return {
        f"{name} R@{k}": Outcome(
            values=hits[:, place].astype(float), chance=chance_gallery_recall(query_targets, targets, k=k)
        )
        for place, k in enumerate(KS)
    }


def _classified(predicted: np.ndarray, data: SplitData, **facts: Mapping[str, float | str]) -> Outcome:
    return Outcome(values=(predicted == data.test_targets).astype(float), predicted=predicted, **facts)


def _only_class(data: SplitData, names: Sequence[str]) -> Outcomes:
    """Predictions of any classifier trained on a single class."""
    predicted = np.full(len(data.test_targets), data.train_targets[0])
    chosen = {"only_class": data.classes[data.train_targets[0]]}
    return {name: _classified(predicted, data, chosen=chosen) for name in names}


PROTOCOLS: dict[str, Callable[..., Outcomes]] = {
    "knn": knn,
    "linear": linear,
    "svm": svm,
    "fewlabels": fewlabels,
    "partition": partition,
}
