"""A protocol on one labeled set: predictions for each split and modality, and metrics over all splits.

Letters: N rows of the manifest, n training videos of a split, m test videos, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avssl.data.manifest import Manifest
from avssl.evaluate import metrics
from avssl.evaluate.protocols import PROTOCOLS, Options, Outcomes, SplitData, retrieval
from avssl.evaluate.splits import Split, groups_of
from avssl.files import digest
from avssl.weights.features import ClipVectors

NUM_PERMUTATIONS = 20  # of the classes, for the chance level of a partition
NUM_PAIRS = 10  # of nearly equal clips that are named
MULTI_LABEL = ("linear", "knn", "finetune")  # protocols that use all classes of a clip; the others its first
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
    unseen: dict[str, np.ndarray]  # {metric: (m,) bool}: test videos with a class that no training video of it has
    paired: np.ndarray  # (m,) bool: test videos with video and audio


class Labels:
    """Classes of a manifest's rows as numbers, and their groups."""

    def __init__(self, manifest: Manifest, splits: Sequence[Split]) -> None:
        self.sets = manifest.label_sets
        rows = np.unique(np.concatenate([each for split in splits for each in (split.train, split.test)]))
        self.classes = sorted({name for row in rows for name in self.sets[row]})
        self.number = {name: i for i, name in enumerate(self.classes)}
        self.targets = np.array([self.number.get(each[0], -1) if each else -1 for each in self.sets])  # (N,) the first
        self.num_several = sum(len(self.sets[row]) > 1 for row in rows)
        self.groups = groups_of(manifest)  # (N,)
        self.root = manifest.root  # for error messages

    def truth(self, rows: np.ndarray, *, first: bool = False) -> np.ndarray:
        """(len(rows), C) bool: all classes of each row, or only the first."""
        found = np.zeros((len(rows), len(self.classes)), dtype=bool)
        for i, row in enumerate(rows.tolist()):
            found[i, [self.number[name] for name in self.sets[row][: 1 if first else None]]] = True
        return found


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
    outcomes, answered, unseen = {}, {}, {}
    several = bool(labels.num_several) and protocol in MULTI_LABEL
    truth = {name: labels.truth(getattr(split, name), first=not several) for name in positions}
    for name, (query, gallery) in _modality_pairs(protocol, vectors).items():
        has_query = vectors.has(query)[positions["test"]]
        test = positions["test"][has_query]
        has_gallery = vectors.has(gallery)[positions["train"]]
        train, train_truth = positions["train"][has_gallery], truth["train"][has_gallery]
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
                train_truth=train_truth,
                train_groups=labels.groups[vectors.ids[train]],
                test=vectors.maps(name, test),
                test_targets=test_targets,
                classes=labels.classes,
                multi_label=several,
                device=device,
            )
            found = PROTOCOLS[protocol](data, options, **more)
        outcomes |= found
        answered |= dict.fromkeys(found, has_query)
        unseen |= dict.fromkeys(found, (truth["test"] & ~train_truth.any(axis=0)).any(axis=1))
    if not outcomes:
        raise ValueError(
            f"{split.name}: training and test clips have no modality in common (one part has no video, the other no "
            "audio), or the weights have no encoder for it: choose other splits"
        )
    return Predictions(split, outcomes, answered, unseen, vectors.has("both")[positions["test"]])


def compute_metrics(
    parts: Sequence[Predictions], labels: Labels, *, skip_unreadable: bool
) -> dict[str, dict[str, Any]]:
    """Every metric over the splits.

    Args:
        skip_unreadable: leave out unanswered videos, and splits without an answered one; otherwise they are wrong.

    Returns:
        {metric: mean, spread, interval, splits, chance, num and clips (how many videos count, and a digest of which),
        unanswered, unseen (videos with a class that no training video has), and where there is one: confusion
        (C, C + 1), last column unanswered; chosen (of each split); draws and draw_spread; paired: the same over the
        videos with video and audio, where some lack one}. Recall at the size of a gallery or more is left out.
    """
    result = {}
    names = dict.fromkeys(name for part in parts for name in part.outcomes)
    all_paired = all(part.paired.all() for part in parts)
    for name in names:
        if any(name in part.outcomes and part.outcomes[name].is_all for part in parts):
            continue
        every = [np.ones(len(part.split.test), dtype=bool) for part in parts]
        figure, scores = _figure(name, parts, every, labels, skip=skip_unreadable)
        outcomes = [each.outcome for each in scores if each.outcome is not None]
        if outcomes[0].predicted is not None:
            figure["confusion"] = sum(each.confusion(labels) for each in scores).tolist()
        if any(outcome.chosen for outcome in outcomes):
            figure["chosen"] = [None if each.outcome is None else dict(each.outcome.chosen) for each in scores]
        if any(part.paired.any() for part in parts) and not all_paired:
            paired, _ = _figure(name, parts, [part.paired for part in parts], labels, skip=skip_unreadable)
            figure |= {"paired": paired} if paired else {}
        result[name] = figure
    return result


def _figure(
    name: str, parts: Sequence[Predictions], among: Sequence[np.ndarray], labels: Labels, *, skip: bool
) -> tuple[dict[str, Any], list["SplitScores"]]:
    """A metric over the test videos `among` (m,) of every split, and the splits where any of them count."""
    every = [SplitScores(part, name, keep, labels, skip=skip) for part, keep in zip(parts, among, strict=True)]
    scores = [each for each in every if len(each.rows)]
    if not scores:
        return {}, []
    num, groups = min(each.num_resamples for each in scores), [labels.groups[each.rows] for each in scores]
    figure = metrics.summarize([each.statistic for each in scores], groups, num=num) | {
        "chance": float(np.mean([each.chance for each in scores])),
        "num": sum(len(each.rows) for each in scores),
        "clips": digest(*(each.rows.astype("<i8").tobytes() + b"\n" for each in scores), num_bytes=6),
        "unanswered": sum(each.num_unanswered for each in every),
        "unseen": sum(each.num_unseen for each in scores),
    }
    num_draws = max(len(each.trials) for each in scores)
    if num_draws > 1:
        draws = np.stack([np.broadcast_to(each.trials.mean(axis=1), num_draws) for each in scores])  # (splits, draws)
        figure |= {"draws": draws.tolist(), "draw_spread": float(draws.mean(axis=0).std(ddof=1))}
    return figure, scores


class SplitScores:
    """One metric on one split, over the videos of `among` (m,) bool that count."""

    def __init__(self, part: Predictions, name: str, among: np.ndarray, labels: Labels, *, skip: bool) -> None:
        self.outcome = outcome = part.outcomes.get(name)
        none = np.zeros(len(among), dtype=bool)
        answered = part.answered.get(name, none)
        keep = among & answered if skip or (outcome and outcome.clusters is not None) else among
        self.rows, self.answered = part.split.test[keep], answered[keep]
        self.num_unanswered = int((among & ~answered).sum())
        self.num_unseen = int((keep & part.unseen.get(name, none)).sum())
        self.chosen = chosen = keep[answered]  # of the answered videos
        self.trials, self.chance = np.zeros((1, len(self.rows))), 0.0  # (draws, videos), 0 for unanswered ones
        self.num_resamples = metrics.NUM_RESAMPLES
        if outcome is None or not len(self.rows):
            self.statistic = metrics.mean_of(self.trials[0])
            return
        targets = labels.targets[self.rows[self.answered]]
        if outcome.predicted is None and outcome.hits is None:
            self.num_resamples = metrics.NUM_PARTITION_RESAMPLES
        if outcome.clusters is not None:
            kind, clusters, rng = name.rpartition(" ")[2], outcome.clusters[chosen], np.random.default_rng(0)
            self.statistic, metric = metrics.partition_of(kind, targets, clusters), metrics.PARTITION_METRICS[kind]
            self.chance = np.mean([metric(rng.permutation(targets), clusters) for _ in range(NUM_PERMUTATIONS)])
        elif outcome.scores is not None:
            truth = labels.truth(self.rows)
            self.statistic = metrics.average_precision_of(outcome.scores[chosen], truth, self.answered)
            self.chance = metrics.chance_average_precision(truth, self.answered)
        else:
            hits = (outcome.predicted[chosen] == targets)[None] if outcome.hits is None else outcome.hits[:, chosen]
            self.trials = np.zeros((len(hits), len(self.rows)))
            self.trials[:, self.answered] = hits
            self.statistic = metrics.mean_of(self.trials.mean(axis=0))
            frequent = np.bincount(targets, minlength=1).max()
            self.chance = (frequent if outcome.chance is None else outcome.chance[chosen].sum()) / len(self.rows)

    def confusion(self, labels: Labels) -> np.ndarray:
        """(C, C + 1) videos by true and predicted class; last column: unanswered."""
        num = len(labels.classes)
        predicted = np.full(len(self.rows), num)
        if self.outcome is not None:
            predicted[self.answered] = self.outcome.predicted[self.chosen]
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


def find_similar(
    vectors: ClipVectors, split: Split, manifest: Manifest, *, cosine: Mapping[str, float]
) -> dict[str, Any]:
    """Test clips that nearly equal a training clip by the cosine of centered outputs, of audio where no clip has video:
    how many are above `cosine` of the modality, and the paths of the nearest such pairs."""
    modality = next((name for name in vectors.vectors if vectors.has(name).any()), "video")
    has = vectors.has(modality)
    train, test = (
        rows[has[rows]] for rows in (np.searchsorted(vectors.ids, each) for each in (split.train, split.test))
    )
    found: list[tuple[float, int, int]] = []
    if len(train) and len(test):
        gallery, query = _unit_vectors(vectors, modality, train, test)
        for first in range(0, len(query), metrics.QUERIES):
            scores = query[first : first + metrics.QUERIES] @ gallery.T  # (q, n)
            near = scores.argmax(axis=1)
            found += zip(scores.max(axis=1).tolist(), test[first:].tolist(), train[near].tolist(), strict=False)
    found = sorted((each for each in found if each[0] > cosine[modality]), reverse=True)
    paths, ids = manifest.column("path"), vectors.ids
    return {"num": len(found), "pairs": [[str(paths[ids[row]]) for row in pair] for _, *pair in found[:NUM_PAIRS]]}
