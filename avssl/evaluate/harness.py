"""A protocol on one labeled set: predictions for each split and modality, and metrics over all splits.

Letters: N rows of the manifest, n training videos of a split, m test videos, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from avssl.data.manifest import Manifest
from avssl.evaluate.features import ClipVectors
from avssl.evaluate.metrics import PARTITION_METRICS, over_splits, partition_interval, summarize
from avssl.evaluate.protocols import PROTOCOLS, Options, Outcomes, SplitData, retrieval
from avssl.evaluate.splits import Split, groups_of, labels_of

NUM_PERMUTATIONS = 20  # of the classes, for the chance level of a partition
DIRECTIONS = {  # of retrieval: query, gallery, whether head outputs are compared (else encoder outputs)
    "video": ("video", "video", False),
    "audio": ("audio", "audio", False),
    "video to audio": ("video", "audio", True),
    "audio to video": ("audio", "video", True),
}


@dataclass(frozen=True)
class Predictions:
    """Outcomes of a protocol on one split."""

    split: Split
    outcomes: Outcomes
    answered: dict[str, np.ndarray]  # {metric: (m,) bool}: test videos that have the modalities it needs


class Labels:
    """Classes of a manifest's rows as numbers, and their groups."""

    def __init__(self, manifest: Manifest, splits: Sequence[Split]) -> None:
        labels = labels_of(manifest)
        rows = np.unique(np.concatenate([each for split in splits for each in (split.train, split.test)]))
        self.classes = sorted(set(labels[rows].tolist()))
        self.targets = np.searchsorted(self.classes, labels)  # (N,); undefined for rows in no split
        self.groups = groups_of(manifest)  # (N,)
        self.root = manifest.root  # for error messages


def evaluate_split(
    protocol: str,
    vectors: ClipVectors,
    labels: Labels,
    split: Split,
    options: Options,
    *,
    device: torch.device,
    **more: Any,
) -> Predictions:
    """Run one of PROTOCOLS, or retrieval, on one split, for every modality that both test and training videos have.

    Args:
        vectors: of at least all rows of the split, sorted by row.
        more: further arguments of the protocol.

    Raises:
        ValueError: no training or no test video could be read, or they have no modality in common.
    """
    positions = {name: np.searchsorted(vectors.ids, getattr(split, name)) for name in ("train", "test")}
    for name, rows in positions.items():
        if not vectors.readable[rows].any():
            first = next((vectors.errors[row] for row in vectors.ids[rows].tolist() if row in vectors.errors), "none")
            raise ValueError(
                f"no {name} clip of {split.name} could be read (first: {first}): is {labels.root} the folder of the "
                "clips?"
            )
    outcomes, answered = {}, {}
    for name, (query, gallery) in _modality_pairs(protocol, vectors).items():
        has_query = vectors.has(query)[positions["test"]]
        test = positions["test"][has_query]
        train = positions["train"][vectors.has(gallery)[positions["train"]]]
        if not (len(train) and len(test)):
            continue
        train_targets, test_targets = (labels.targets[vectors.ids[rows]] for rows in (train, test))
        if protocol == "retrieval":
            gallery_vectors, query_vectors = _unit_vectors(vectors, name, train, test)
            found = retrieval(name, query_vectors, test_targets, gallery_vectors, train_targets)
        else:
            data = SplitData(
                modality=name,
                train=vectors.maps(name, train),
                train_targets=train_targets,
                train_groups=labels.groups[vectors.ids[train]],
                test=vectors.maps(name, test),
                test_targets=test_targets,
                classes=labels.classes,
                device=device,
            )
            found = PROTOCOLS[protocol](data, options, **more)
        outcomes |= found
        answered |= dict.fromkeys(found, has_query)
    if not outcomes:
        raise ValueError(
            f"{split.name}: training and test clips have no modality in common (one part has no video, the other no "
            "audio), or the weights have no encoder for it: choose other splits"
        )
    return Predictions(split, outcomes, answered)


def compute_metrics(
    parts: Sequence[Predictions], labels: Labels, *, skip_unreadable: bool
) -> dict[str, dict[str, Any]]:
    """Every metric over the splits.

    Args:
        skip_unreadable: leave out unanswered videos, and splits without an answered one; otherwise they are wrong.

    Returns:
        {metric: mean, spread, interval, splits, chance, num (videos that count), unanswered, and where there is one:
        confusion (C, C + 1), last column unanswered; chosen (of each split); draws and draw_spread}.
    """
    result = {}
    for name in dict.fromkeys(name for part in parts for name in part.outcomes):
        is_partition = any(name in part.outcomes and part.outcomes[name].clusters is not None for part in parts)
        every = [SplitScores(part, name, skip=skip_unreadable or is_partition) for part in parts]
        scores = [each for each in every if len(each.rows)]
        outcomes = [each.outcome for each in scores if each.outcome is not None]
        if is_partition:
            metric = _partition_metric(name.rpartition(" ")[2], scores, labels)
        else:
            metric = summarize([each.values for each in scores], [labels.groups[each.rows] for each in scores])
            metric["chance"] = float(np.mean([each.chance(labels) for each in scores]))
        metric["num"] = sum(len(each.rows) for each in scores)
        metric["unanswered"] = sum(each.num_unanswered for each in every)
        if outcomes[0].predicted is not None:
            metric["confusion"] = sum(each.confusion(labels) for each in scores).tolist()
        if any(outcome.chosen for outcome in outcomes):
            metric["chosen"] = [None if each.outcome is None else dict(each.outcome.chosen) for each in scores]
        if outcomes[0].draws:
            draws = np.array([each.draws(len(outcomes[0].draws)) for each in scores])  # (splits, draws)
            metric["draws"] = draws.tolist()
            metric["draw_spread"] = float(draws.mean(axis=0).std(ddof=1)) if draws.shape[1] > 1 else 0.0
        result[name] = metric
    return result


def accuracies(
    protocol: Literal["knn", "logistic"], vectors: ClipVectors, manifest: Manifest, split: Split
) -> dict[str, dict[str, Any]]:
    """Weighted kNN, or logistic regression with all labels, on outputs averaged over the clips of a video: the metric
    of each modality (see `compute_metrics`) over the answered videos. Raises ValueError as `evaluate_split`."""
    labels = Labels(manifest, [split])
    name, options = ("knn", Options()) if protocol == "knn" else ("fewlabels", Options(shares=(1.0,), draws=1))
    part = evaluate_split(name, vectors.averaged(), labels, split, options, device=torch.device("cpu"))
    found = compute_metrics([part], labels, skip_unreadable=True)
    return {name.removesuffix(" 100%"): metric for name, metric in found.items() if not name.endswith(" plain")}


class SplitScores:
    """One metric on one split, over the videos that count."""

    def __init__(self, part: Predictions, name: str, *, skip: bool) -> None:
        self.outcome = part.outcomes.get(name)
        answered = part.answered.get(name, np.zeros(len(part.split.test), dtype=bool))
        keep = answered | (not skip)
        self.rows, self.answered = part.split.test[keep], answered[keep]
        self.num_unanswered = int((~answered).sum())
        self.values = np.zeros(len(self.rows))  # 0 for unanswered videos
        if self.outcome is not None:
            self.values[self.answered] = self.outcome.values

    def chance(self, labels: Labels) -> float:
        """Chance level of the answered videos; unanswered ones are wrong."""
        if self.outcome is None:
            return 0.0
        found = self.outcome.chance
        if found is None:
            targets = labels.targets[self.rows[self.answered]]
            found = np.bincount(targets).max() / len(targets)
        return float(found * self.answered.mean())

    def draws(self, num: int) -> list[float]:
        """Mean of the values for each draw of labels."""
        return [value * self.answered.mean() for value in self.outcome.draws] if self.outcome else [0.0] * num

    def confusion(self, labels: Labels) -> np.ndarray:
        """(C, C + 1) videos by true and predicted class; last column: unanswered."""
        num = len(labels.classes)
        predicted = np.full(len(self.rows), num)
        if self.outcome is not None:
            predicted[self.answered] = self.outcome.predicted
        table = np.zeros((num, num + 1), dtype=int)
        np.add.at(table, (labels.targets[self.rows], predicted), 1)
        return table


def count_missing(parts: Sequence[tuple[ClipVectors, np.ndarray]]) -> dict[str, int]:
    """Number of distinct clips among (vectors, rows), and how many are unreadable, without audio, without video."""
    facts: dict[int, dict[str, bool]] = {}
    for vectors, rows in parts:
        positions = np.searchsorted(vectors.ids, rows)
        missing = {"unreadable": ~vectors.readable[positions]}
        for modality, name in (("audio", "without_audio"), ("video", "without_video")):
            if modality in vectors.vectors:
                missing[name] = vectors.readable[positions] & ~vectors.has(modality)[positions]
        for i, row in enumerate(rows.tolist()):
            facts[row] = {name: bool(flags[i]) for name, flags in missing.items()}
    names = dict.fromkeys(name for each in facts.values() for name in each)
    return {"clips": len(facts)} | {name: sum(each[name] for each in facts.values()) for name in names}


def _modality_pairs(protocol: str, vectors: ClipVectors) -> dict[str, tuple[str, str]]:
    """{modality, or direction of retrieval: modalities that test and training videos need}."""
    if protocol != "retrieval":
        names = [*vectors.vectors, *(["both"] if len(vectors.vectors) == 2 else [])]
        return {name: (name, name) for name in names}
    return {
        name: (query, gallery)
        for name, (query, gallery, by_heads) in DIRECTIONS.items()
        if {query, gallery} <= set(vectors.embedding if by_heads else vectors.vectors)
    }


def _unit_vectors(vectors: ClipVectors, name: str, train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """Unit vectors of the gallery (n, D) and the queries (m, D): head outputs, or encoder outputs minus the gallery's
    mean.

    Source: CoCLR, eval/main_classifier.py. Differs from CoCLR: there test videos lose their own mean.
    """
    query, gallery, by_heads = DIRECTIONS[name]
    if by_heads:
        pair = vectors.embedding[gallery][train].mean(axis=1), vectors.embedding[query][test].mean(axis=1)
    else:
        pair = [vectors.vectors[query]["pool"][rows].mean(axis=1) for rows in (train, test)]
        center = pair[0].mean(axis=0)
        pair = [each - center for each in pair]
    return [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in pair]


def _partition_metric(name: str, scores: Sequence[SplitScores], labels: Labels) -> dict[str, Any]:
    """NMI, adjusted Rand index or purity over the answered videos; chance by permuting the classes."""
    rng, metric = np.random.default_rng(0), PARTITION_METRICS[name]
    splits, chances = [], []
    for each in scores:
        targets, clusters = labels.targets[each.rows], each.outcome.clusters
        interval = partition_interval(name, targets, clusters, labels.groups[each.rows])
        splits.append({"value": float(metric(targets, clusters)), "interval": interval})
        chances.append(np.mean([metric(rng.permutation(targets), clusters) for _ in range(NUM_PERMUTATIONS)]))
    intervals = [split["interval"] for split in splits]
    return over_splits(splits) | {
        "interval": None if None in intervals else np.mean(intervals, axis=0).tolist(),
        "chance": float(np.mean(chances)),
    }
