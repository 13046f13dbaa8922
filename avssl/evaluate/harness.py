"""A protocol on one labeled set: over all of its splits and every modality, with what could not be answered counted.

Letters: N rows of the manifest, n training videos of a split, m videos that are asked about, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from avssl.data.manifest import Manifest
from avssl.evaluate.features import ClipVectors
from avssl.evaluate.metrics import PARTITION_METRICS, over_splits, partition_interval, summarize
from avssl.evaluate.protocols import PROTOCOLS, Options, Outcomes, Sides, retrieval
from avssl.evaluate.splits import Split, groups_of, labels_of

NUM_PERMUTATIONS = 20  # of the classes, for the chance of a partition
DIRECTIONS = {  # of retrieval: query, gallery, and whether outputs of the heads are compared, or of the trunks
    "video": ("video", "video", False),
    "audio": ("audio", "audio", False),
    "video to audio": ("video", "audio", True),
    "audio to video": ("audio", "video", True),
}


@dataclass(frozen=True)
class Predictions:
    """What a protocol said of one split in each way, and which videos it was asked about."""

    split: Split
    outcomes: Outcomes
    answered: dict[str, np.ndarray]  # {way: (m,) bool}: videos that have what the way needs


class Labels:
    """Classes of a manifest's rows as numbers, and their groups."""

    def __init__(self, manifest: Manifest, splits: Sequence[Split]) -> None:
        labels = labels_of(manifest)
        rows = np.unique(np.concatenate([each for split in splits for each in (split.train, split.test)]))
        self.classes = sorted(set(labels[rows].tolist()))
        self.targets = np.searchsorted(self.classes, labels)  # (N,); of rows in no split anything
        self.groups = groups_of(manifest)  # (N,)
        self.root = manifest.root  # named when nothing can be read


def answer(
    protocol: str,
    vectors: ClipVectors,
    labels: Labels,
    split: Split,
    options: Options,
    *,
    device: torch.device,
    **more: Any,
) -> Predictions:
    """Ask one of PROTOCOLS, or retrieval, about one split, in every modality that test and training videos have.

    Args:
        vectors: of all rows of the split at least, sorted by row.
        more: for the protocol.

    Raises:
        ValueError: no video of a side could be read, or no modality has videos on both sides.
    """
    places = {name: np.searchsorted(vectors.ids, rows) for name, rows in (("train", split.train), ("test", split.test))}
    for name, rows in places.items():
        if not vectors.readable[rows].any():
            first = next((vectors.errors[row] for row in vectors.ids[rows].tolist() if row in vectors.errors), "none")
            raise ValueError(
                f"no {name} clip of {split.name} could be read (first: {first}): is {labels.root} the folder of the "
                "clips?"
            )
    outcomes, answered = {}, {}
    for name, (asked, known) in _pairs(protocol, vectors).items():
        train = places["train"][vectors.has(known)[places["train"]]]
        here = vectors.has(asked)[places["test"]]
        test = places["test"][here]
        if not (len(train) and len(test)):
            continue
        targets = {side: labels.targets[vectors.ids[rows]] for side, rows in (("train", train), ("test", test))}
        if protocol == "retrieval":
            seen = _comparable(vectors, name, train, test)
            found = retrieval(name, seen[1], targets["test"], seen[0], targets["train"])
        else:
            sides = Sides(
                modality=name,
                train=vectors.maps(name, train),
                train_targets=targets["train"],
                train_groups=labels.groups[vectors.ids[train]],
                test=vectors.maps(name, test),
                test_targets=targets["test"],
                classes=labels.classes,
                device=device,
            )
            found = PROTOCOLS[protocol](sides, options, **more)
        outcomes |= found
        answered |= {way: here for way in found}
    if not outcomes:
        raise ValueError(
            f"{split.name}: the clips of one side have no pictures and those of the other no sound, or the weights "
            "have no tower for what both have: choose other splits"
        )
    return Predictions(split, outcomes, answered)


def compute_metrics(
    parts: Sequence[Predictions], labels: Labels, *, skip_unreadable: bool
) -> dict[str, dict[str, Any]]:
    """Each way's figure over the splits.

    Args:
        skip_unreadable: videos without an answer are left out, and splits in which none has one; otherwise they count
            as wrong.

    Returns:
        {way: mean, spread, interval, splits, chance, num (videos that count), unanswered, and where there is one:
        confusion (C, C + 1), the last column for those without an answer; chosen (of each split); draws and
        draw_spread}.
    """
    result = {}
    for way in dict.fromkeys(way for part in parts for way in part.outcomes):
        is_partition = any(way in part.outcomes and part.outcomes[way].clusters is not None for part in parts)
        all_seen = [SplitScores(part, way, skip=skip_unreadable or is_partition) for part in parts]
        seen = [each for each in all_seen if len(each.rows)]
        outcomes = [each.outcome for each in seen if each.outcome is not None]
        if is_partition:
            figure = _partition_figure(way.rpartition(" ")[2], seen, labels)
        else:
            figure = summarize([each.values for each in seen], [labels.groups[each.rows] for each in seen])
            figure["chance"] = float(np.mean([each.chance(labels) for each in seen]))
        figure["num"] = sum(len(each.rows) for each in seen)
        figure["unanswered"] = sum(each.num_unanswered for each in all_seen)
        if outcomes[0].predicted is not None:
            figure["confusion"] = sum(each.confusion(labels) for each in seen).tolist()
        if any(outcome.chosen for outcome in outcomes):
            figure["chosen"] = [None if each.outcome is None else dict(each.outcome.chosen) for each in seen]
        if outcomes[0].draws:
            draws = np.array([each.draws(len(outcomes[0].draws)) for each in seen])  # (s, number of draws)
            figure["draws"] = draws.tolist()
            figure["draw_spread"] = float(draws.mean(axis=0).std(ddof=1)) if draws.shape[1] > 1 else 0.0
        result[way] = figure
    return result


def accuracies(
    protocol: Literal["knn", "logistic"], vectors: ClipVectors, manifest: Manifest, split: Split
) -> dict[str, dict[str, Any]]:
    """Weighted kNN, or logistic regression with all labels, on outputs averaged over the clips of a video: the figure
    of each modality (see `figures`) over the videos that have an answer.

    Args:
        vectors: of all rows of the split at least, sorted by row.

    Raises:
        ValueError: as `answer`.
    """
    labels = Labels(manifest, [split])
    name, options = ("knn", Options()) if protocol == "knn" else ("fewlabels", Options(shares=(1.0,), draws=1))
    part = answer(name, vectors.averaged(), labels, split, options, device=torch.device("cpu"))
    found = compute_metrics([part], labels, skip_unreadable=True)
    return {way.removesuffix(" 100%"): figure for way, figure in found.items() if not way.endswith(" plain")}


class SplitScores:
    """One way in one split, over the videos that count."""

    def __init__(self, part: Predictions, way: str, *, skip: bool) -> None:
        self.outcome = part.outcomes.get(way)
        answered = part.answered.get(way, np.zeros(len(part.split.test), dtype=bool))
        keep = answered if skip else np.ones(len(part.split.test), dtype=bool)
        self.rows = part.split.test[keep]
        self.answered = answered[keep]
        self.num_unanswered = int((~answered).sum())
        self.values = np.zeros(len(self.rows))  # 0 where there is no answer
        if self.outcome is not None:
            self.values[self.answered] = self.outcome.values

    def chance(self, labels: Labels) -> float:
        """What is right by chance among those that have an answer, and wrong without one."""
        if self.outcome is None:
            return 0.0
        found = self.outcome.chance
        if found is None:
            targets = labels.targets[self.rows[self.answered]]
            found = np.bincount(targets).max() / len(targets)
        return float(found * self.answered.mean())

    def draws(self, num: int) -> list[float]:
        """The mean of the values for each draw of labels."""
        return [value * self.answered.mean() for value in self.outcome.draws] if self.outcome else [0.0] * num

    def confusion(self, labels: Labels) -> np.ndarray:
        """(C, C + 1) videos by class and by what they were taken for; the last column: no answer."""
        num = len(labels.classes)
        predicted = np.full(len(self.rows), num)
        if self.outcome is not None:
            predicted[self.answered] = self.outcome.predicted
        table = np.zeros((num, num + 1), dtype=int)
        np.add.at(table, (labels.targets[self.rows], predicted), 1)
        return table


def count_missing(seen: Sequence[tuple[ClipVectors, np.ndarray]]) -> dict[str, int]:
    """How many clips of one side of the splits there are, and how many of them could not be read, have no sound, have
    no picture.

    Args:
        seen: vectors, and the rows among them that count; a row may come several times.
    """
    facts: dict[int, dict[str, bool]] = {}
    for vectors, rows in seen:
        places = np.searchsorted(vectors.ids, rows)
        lost = {"unreadable": ~vectors.readable[places]}
        for modality, lack in (("audio", "without_sound"), ("video", "without_picture")):
            if modality in vectors.vectors:
                lost[lack] = vectors.readable[places] & ~vectors.has(modality)[places]
        for i, row in enumerate(rows.tolist()):
            facts[row] = {name: bool(flags[i]) for name, flags in lost.items()}
    names = dict.fromkeys(name for each in facts.values() for name in each)
    return {"clips": len(facts)} | {name: sum(each[name] for each in facts.values()) for name in names}


def _pairs(protocol: str, vectors: ClipVectors) -> dict[str, tuple[str, str]]:
    """{modality, or direction of retrieval: what the test videos need, what the training videos need}."""
    if protocol != "retrieval":
        return {
            name: (name, name) for name in (*vectors.vectors, "both") if name != "both" or len(vectors.vectors) == 2
        }
    return {
        name: (query, gallery)
        for name, (query, gallery, by_heads) in DIRECTIONS.items()
        if {query, gallery} <= set(vectors.embedding if by_heads else vectors.vectors)
    }


def _comparable(vectors: ClipVectors, name: str, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the gallery (n, D) and the queries (m, D): outputs of the heads, or outputs of the trunks less
    the mean of the gallery.

    Source: CoCLR, eval/main_classifier.py. Differs from CoCLR: there test videos lose the mean of the test side.
    """
    query, gallery, by_heads = DIRECTIONS[name]
    if by_heads:
        pair = vectors.embedding[gallery][train].mean(axis=1), vectors.embedding[query][test].mean(axis=1)
    else:
        pair = tuple(vectors.vectors[query]["pool"][rows].mean(axis=1) for rows in (train, test))
        pair = pair[0] - pair[0].mean(axis=0), pair[1] - pair[0].mean(axis=0)
    return tuple(each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in pair)


def _partition_figure(name: str, seen: Sequence[SplitScores], labels: Labels) -> dict[str, Any]:
    """NMI, adjusted Rand index or purity, of the videos that have an answer; chance: of shuffled classes."""
    rng, metric = np.random.default_rng(0), PARTITION_METRICS[name]
    splits, chances = [], []
    for each in seen:
        targets, clusters = labels.targets[each.rows], each.outcome.clusters
        interval = partition_interval(name, targets, clusters, labels.groups[each.rows])
        splits.append({"value": float(metric(targets, clusters)), "interval": interval})
        chances.append(np.mean([metric(rng.permutation(targets), clusters) for _ in range(NUM_PERMUTATIONS)]))
    intervals = [split["interval"] for split in splits]
    return over_splits(splits) | {
        "interval": None if None in intervals else np.mean(intervals, axis=0).tolist(),
        "chance": float(np.mean(chances)),
    }
