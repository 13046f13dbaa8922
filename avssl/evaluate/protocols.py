"""The protocols: each predicts the test videos of a split from cached feature vectors of one modality.

Letters: n training videos, m test videos, V views of each, d dimensions of a map, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from avssl.evaluate.classify import cluster, draw_few, linear_predict, svm_scores
from avssl.evaluate.heads import Head, head_scores, train_heads
from avssl.evaluate.metrics import PARTITION_METRICS, Average, chance_gallery_recall, gallery_hits
from avssl.mining.votes import knn_votes
from avssl.weights.features import Rows

Vectors = np.ndarray | Rows
KS = (1, 5, 10, 20, 50)  # of retrieval


@dataclass(frozen=True)
class Options:
    """Options of all protocols; each reads its own. Raises ValueError, naming the option of avssl evaluate."""

    average: Average = "softmax"  # linear, finetune
    k: int = 20  # knn
    temperature: float = 0.07  # knn
    map: str = "pool"  # svm: which of the encoder's maps
    shares: tuple[float, ...] = (0.01, 0.1)  # fewlabels
    draws: int = 5  # fewlabels
    share: float = 1.0  # finetune: of the training videos of each class
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, is_good in (
            ("k", self.k, self.k >= 1),
            ("temperature", self.temperature, 0 < self.temperature < math.inf),
            ("draws", self.draws, self.draws >= 1),
        ):
            if not is_good:
                raise ValueError(f"--{name} {value:g}: expected a number above 0")
        if not 0 < self.share <= 1:
            raise ValueError(f"--share {self.share:g}: expected a fraction above 0, at most 1")


@dataclass(frozen=True)
class SplitData:
    """The training and test videos of a split that have one modality."""

    modality: str
    train: Mapping[str, Vectors]  # {map: (n, V, d)}
    train_targets: np.ndarray  # (n,) the first class of each
    train_truth: np.ndarray  # (n, C) bool, all of them
    train_groups: np.ndarray  # (n,)
    test: Mapping[str, Vectors]  # {map: (m, V, d)}
    test_targets: np.ndarray  # (m,) for scoring, never for model selection
    classes: Sequence[str]
    multi_label: bool  # videos may have several classes
    device: torch.device

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Pooled outputs averaged over views, train and test: (n, d) and (m, d)."""
        return np.asarray(self.train["pool"]).mean(axis=1), np.asarray(self.test["pool"]).mean(axis=1)


@dataclass(frozen=True)
class Outcome:
    """Results of the m test videos for one metric: one of predicted, hits, scores and clusters."""

    predicted: np.ndarray | None = None  # (m,) classes
    hits: np.ndarray | None = None  # (trials, m) correct or not
    scores: np.ndarray | None = None  # (m, C), for mean average precision
    clusters: np.ndarray | None = None  # (m,)
    chance: np.ndarray | None = None  # (m,) of hits by chance; None = frequency of the most common class
    is_all: bool = False  # the whole gallery is asked for: the metric says nothing
    chosen: Mapping[str, float | str] = field(default_factory=dict)  # hyperparameters, chosen on training videos


Outcomes = dict[str, Outcome]  # {metric: ...}


def knn(data: SplitData, options: Options) -> Outcomes:
    """Votes of the nearest training videos: weighted (metric named like the modality) and unweighted ("plain")."""
    given = (data.means()[0], data.train_truth, data.means()[1])
    train, truth, test = (torch.from_numpy(each).to(data.device) for each in given)
    found = {}
    for name, temperature in ((data.modality, options.temperature), (f"{data.modality} plain", None)):
        votes = knn_votes(train, truth, test, k=options.k, temperature=temperature)
        found |= classified(name, votes.cpu().numpy(), data.multi_label)
    return found


def linear(data: SplitData, options: Options, *, keep: dict[str, Head] | None = None) -> Outcomes:
    """A linear head on every map; the one with the best held-out accuracy is reported under the modality's name and
    stored in `keep` {modality: head}."""
    if (data.train_truth == data.train_truth[0]).all():
        return _only_class(data)
    heads = train_heads(
        data.train,
        data.train_truth if data.multi_label else data.train_targets,
        data.train_groups,
        classes=data.classes,
        modality=data.modality,
        average=options.average,
        seed=options.seed,
        device=data.device,
    )
    best = max(heads, key=lambda name: (heads[name].held_out, list(heads).index(name)))  # ties: the deepest
    if keep is not None:
        keep[data.modality] = heads[best]
    own, of_maps = {}, {}
    for name, head in heads.items():
        scores = head_scores(head.classifier, data.test[name], average=options.average)
        chosen = {"rate": head.rate, "held_out": head.held_out}
        of_maps |= classified(f"{data.modality} {name}", scores, data.multi_label, chosen=chosen)
        if name == best:
            own = classified(data.modality, scores, data.multi_label, chosen={"map": best, **chosen})
    return own | of_maps


def svm(data: SplitData, options: Options) -> Outcomes:
    """A support vector machine on one of the maps; for both modalities together, on the pooled outputs."""
    name = "pool" if data.modality == "both" else options.map
    if name not in data.train:
        raise ValueError(f"--map {name} is not a map of the {data.modality} encoder: choose {', '.join(data.train)}")
    if len(np.unique(data.train_targets)) < 2:
        return _only_class(data)
    scores, strength = svm_scores(
        np.asarray(data.train[name]),
        data.train_targets,
        np.asarray(data.test[name]),
        groups=data.train_groups,
        num_classes=len(data.classes),
    )
    return classified(data.modality, scores, chosen={"map": name, "C": strength})


def fewlabels(data: SplitData, options: Options) -> Outcomes:
    """Logistic regression on the pooled outputs, from a small fraction of the labels."""
    train, test = data.means()
    found = {}
    for fraction in options.shares:
        if len(np.unique(data.train_targets)) < 2:
            (only,) = _only_class(data).values()
            hits = np.tile(only.predicted == data.test_targets, (options.draws, 1))
            found[f"{data.modality} {fraction:.0%}"] = Outcome(hits=hits, chosen=only.chosen)
            continue
        trials = []
        for rows in draw_few(data.train_targets, fraction, num_draws=options.draws, seed=options.seed):
            predicted, _ = linear_predict(train[rows], data.train_targets[rows], test, groups=data.train_groups[rows])
            trials.append(predicted == data.test_targets)
        found[f"{data.modality} {fraction:.0%}"] = Outcome(hits=np.stack(trials), chosen={"labels": len(rows)})
    return found


def partition(data: SplitData, options: Options) -> Outcomes:
    """k-means on the pooled outputs of the test videos, with as many clusters as classes."""
    _, test = data.means()
    clusters = cluster(test, num_clusters=len(data.classes), seed=options.seed)
    return {f"{data.modality} {name}": Outcome(clusters=clusters) for name in PARTITION_METRICS}


def retrieval(
    name: str, query: np.ndarray, query_targets: np.ndarray, gallery: np.ndarray, targets: np.ndarray
) -> Outcomes:
    """Class recall in one direction, such as "video to audio": queries (m, D) are test videos, the gallery (n, D)
    training videos."""
    hits = gallery_hits(query, query_targets, gallery, targets, ks=KS)
    return {
        f"{name} R@{k}": Outcome(
            hits=hits[None, :, place],
            chance=chance_gallery_recall(query_targets, targets, k=k),
            is_all=k >= len(gallery),
        )
        for place, k in enumerate(KS)
    }


def classified(
    name: str, scores: np.ndarray, multi_label: bool = False, *, chosen: Mapping[str, float | str] | None = None
) -> Outcomes:
    """Scores of the test videos (m, C): the class of the highest, or all of them where there may be several classes."""
    if multi_label:
        return {f"{name} mAP": Outcome(scores=scores, chosen=chosen or {})}
    return {name: Outcome(predicted=scores.argmax(axis=1), chosen=chosen or {})}


def _only_class(data: SplitData) -> Outcomes:
    """Predictions of any classifier whose training videos all have the same classes."""
    own = data.train_truth[0]
    chosen = {"only_class": ", ".join(np.array(data.classes)[own])}
    return classified(
        data.modality, np.tile(own.astype(float), (len(data.test_targets), 1)), data.multi_label, chosen=chosen
    )


PROTOCOLS: dict[str, Callable[..., Outcomes]] = {
    "knn": knn,
    "linear": linear,
    "svm": svm,
    "fewlabels": fewlabels,
    "partition": partition,
}
