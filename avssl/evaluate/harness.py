"""A protocol on one labelled set: over all of its splits and every modality, with what could not be answered counted.

What lives here: which videos answer and what the others count for, figures over splits, and the result as plain data.
What does not: the protocols (protocols.py), the vectors (features.py), the splits (splits.py), fine-tuning
(finetune.py).

Letters: N rows of the manifest, n training videos of a split, m videos that are asked about, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avssl.data.manifest import Manifest
from avssl.evaluate.features import ClipVectors
from avssl.evaluate.partition import FIGURES, figure_interval
from avssl.evaluate.protocols import PROTOCOLS, Options, Outcome, Outcomes, Sides, retrieval
from avssl.evaluate.scores import summarise
from avssl.evaluate.splits import Split, labels_of

NUM_PERMUTATIONS = 20  # of the classes, for the chance of a partition
DIRECTIONS = {  # of retrieval: query, gallery, and whether outputs of the heads are compared, or of the trunks
    "video": ("video", "video", False),
    "audio": ("audio", "audio", False),
    "video to audio": ("video", "audio", True),
    "audio to video": ("audio", "video", True),
}


@dataclass(frozen=True)
class Answers:
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
        self.groups = manifest.column("group").astype(str)  # (N,)
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
) -> Answers:
    """Ask one of PROTOCOLS, or retrieval, about one split, in every modality that both of its sides have.

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
    pairs = _directions(vectors) if protocol == "retrieval" else {side: (side, side) for side in _modalities(vectors)}
    outcomes, answered = {}, {}
    for name, (asked, known) in pairs.items():
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
    return Answers(split, outcomes, answered)


def figures(parts: Sequence[Answers], labels: Labels, *, skip_unreadable: bool) -> dict[str, dict[str, Any]]:
    """Each way's figure over the splits that have it.

    Args:
        skip_unreadable: videos without an answer are left out; otherwise they count as wrong.

    Returns:
        {way: mean, spread, interval, splits, chance, num (videos), unanswered, and where there is one: confusion (C,
        C + 1), the last column for those without an answer; chosen (of each split); draws}.
    """
    result = {}
    for way in dict.fromkeys(way for part in parts for way in part.outcomes):
        asked = [part for part in parts if way in part.outcomes]
        counted = [part.answered[way] if skip_unreadable else np.ones(len(part.split.test), bool) for part in asked]
        rows = [part.split.test[keep] for part, keep in zip(asked, counted, strict=True)]
        groups = [labels.groups[each] for each in rows]
        outcomes = [part.outcomes[way] for part in asked]
        filled = [_filled(part, way, keep) for part, keep in zip(asked, counted, strict=True)]
        if outcomes[0].clusters is not None:
            figure = _partition_figure(way.rpartition(" ")[2], asked, way, labels)
        else:
            figure = summarise(filled, groups)
            figure["chance"] = float(
                np.mean([_chance(o, f, labels.targets[r]) for o, f, r in zip(outcomes, filled, rows, strict=True)])
            )
        figure["num"] = sum(map(len, rows))
        figure["unanswered"] = sum(int((~part.answered[way]).sum()) for part in asked)
        if outcomes[0].predicted is not None:
            figure["confusion"] = _confusion(asked, way, counted, labels).tolist()
        if any(outcome.chosen for outcome in outcomes):
            figure["chosen"] = [dict(outcome.chosen) for outcome in outcomes]
        if outcomes[0].draws:
            figure["draws"] = [list(outcome.draws) for outcome in outcomes]
            figure["spread"] = float(
                np.std(np.concatenate(figure["draws"]), ddof=1 if len(outcomes[0].draws) > 1 else 0)
            )
        result[way] = figure
    return result


def lacking(seen: Sequence[tuple[ClipVectors, np.ndarray]]) -> dict[str, int]:
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


def _modalities(vectors: ClipVectors) -> list[str]:
    return [*vectors.vectors, *(["both"] if len(vectors.vectors) == 2 else [])]


def _directions(vectors: ClipVectors) -> dict[str, tuple[str, str]]:
    """{direction: (query, gallery)} that the towers can take."""
    found = {}
    for name, (query, gallery, by_heads) in DIRECTIONS.items():
        if {query, gallery} <= set(vectors.embedding if by_heads else vectors.vectors):
            found[name] = (query, gallery)
    return found


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


def _filled(part: Answers, way: str, keep: np.ndarray) -> np.ndarray:
    """Values of the videos in `keep`, 0 where there is no answer."""
    values = np.zeros(len(part.split.test))
    values[part.answered[way]] = part.outcomes[way].values
    return values[keep]


def _chance(outcome: Outcome, values: np.ndarray, targets: np.ndarray) -> float:
    if outcome.chance is None:
        return float(np.bincount(targets).max() / len(targets))
    return outcome.chance * len(outcome.values) / len(values)  # those without an answer are missed by chance too


def _confusion(parts: Sequence[Answers], way: str, counted: Sequence[np.ndarray], labels: Labels) -> np.ndarray:
    """(C, C + 1) videos by class and by what they were taken for, over all splits; the last column: no answer."""
    num = len(labels.classes)
    table = np.zeros((num, num + 1), dtype=int)
    for part, keep in zip(parts, counted, strict=True):
        predicted = np.full(len(part.split.test), num)
        predicted[part.answered[way]] = part.outcomes[way].predicted
        np.add.at(table, (labels.targets[part.split.test][keep], predicted[keep]), 1)
    return table


def _partition_figure(name: str, parts: Sequence[Answers], way: str, labels: Labels) -> dict[str, Any]:
    """NMI, adjusted Rand index or purity, of the videos that have an answer; chance: of shuffled classes."""
    rng = np.random.default_rng(0)
    splits, chances = [], []
    for part in parts:
        rows, clusters = part.split.test[part.answered[way]], part.outcomes[way].clusters
        targets = labels.targets[rows]
        interval = figure_interval(name, targets, clusters, labels.groups[rows])
        splits.append({"value": float(FIGURES[name](targets, clusters)), "interval": interval})
        chances.append(np.mean([FIGURES[name](rng.permutation(targets), clusters) for _ in range(NUM_PERMUTATIONS)]))
    values = [split["value"] for split in splits]
    bounds = np.mean([split["interval"] for split in splits], axis=0).tolist()
    return {
        "mean": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "interval": bounds,
        "splits": splits,
        "chance": float(np.mean(chances)),
    }
