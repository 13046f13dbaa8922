"""Results of tools/evaluate.py on a page: tables with intervals, chance and random weights, and confusions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avssl.evaluate.table import Result, grouped, headings, read_result, remarks, rows, title
from avssl.files import atomic_write
from avssl.report.page import Section, heading, html, note, page, png, table

MAX_NAMED_CLASSES = 60  # more do not fit beside a picture


def find_results(
    folder: Path, weights_hash: str, *, named: Sequence[Path] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results that lie as JSON in a run's folder or in its evaluations/ and are of its weights, and those that are
    named, of whatever weights.

    Returns:
        The results, and a sentence for each other JSON file there.

    Raises:
        ValueError: a file that is named holds no result.
    """
    results, others = [read_result(path) for path in named], []
    seen = {path.resolve() for path in named}
    lying = sorted([*folder.glob("*.json"), *(folder / "evaluations").glob("*.json")])
    for path in (each for each in lying if each.resolve() not in seen):
        try:
            result = read_result(path)
        except ValueError:
            others.append(f"{path} is left out: it is no result of tools/evaluate.py.")
            continue
        if result.get("weights_hash") == weights_hash:
            results.append(result)
        else:
            others.append(f"{path} is left out: it is a result of other weights, or of this run at an earlier step.")
    return results, others


def evaluation_parts(results: Sequence[Result]) -> list[str]:
    """A table for each protocol and set with what is to be known of it below, then of each result the confusions, where
    there are any.
    """
    shown = []
    for group in grouped(results):
        lines = [(way, *cells) for way, cells in rows(group).items()]
        shown.append(table(title(group[0]), ("features", *headings(group)), lines))
        shown += [note(remark) for remark in remarks(group)]
    for result in results:
        name = f"{result['protocol']} on {result['manifest']}, {result['weights']}"
        facts = result["versions"] | {"date": result["date"]}
        shown += [heading(name), note(", ".join(f"{name} {value}" for name, value in facts.items()))]
        if predicts_classes(result):
            shown.append(html.picture(confusion_png(result), f"Confusions: {name}"))
    return shown


def write_evaluation(path: Path, results: Sequence[Result]) -> None:
    """Write a page of evaluations. Raises WriteError: the file cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text(page("Evaluation", [Section("Results", evaluation_parts(results))]), encoding="utf-8")


def predicts_classes(result: Mapping[str, Any]) -> list[str]:
    """The modalities for which an evaluation predicts one class per clip."""
    return [way for way in ("video", "audio", "both") if "confusion" in result["scores"].get(way, {})]


def confusion_png(result: Mapping[str, Any]) -> bytes:
    """How often each class is taken for each, and how often it is right, of an evaluation that `predicts_classes`: two
    panels for each modality. Shares of the row's class; what is missing to 1 had no answer.
    """
    found = result["scores"]
    ways = predicts_classes(result)
    classes, size = result["classes"], min(10.0, 3.6 + 0.25 * len(result["classes"]))
    figure = Figure(figsize=(2 * size, size * len(ways)), layout="constrained")
    axes = figure.subplots(len(ways), 2, squeeze=False, sharey="row")
    for (left, right), way in zip(axes, ways, strict=True):
        counts = np.asarray(found[way]["confusion"], dtype=float)  # (C, C + 1)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        places = np.arange(len(classes))
        left.imshow(shares[:, :-1], vmin=0, vmax=1, cmap="Blues")
        right.barh(places, np.diagonal(shares), color="#30658e")
        right.axvline(found[way]["mean"], color="#444", linewidth=1, linestyle="--")
        right.set_xlim(0, 1)
        left.set_title(f"{way}: class (row) taken for (column)", fontsize=9)
        right.set_title(f"{way}: right of each class (all: {found[way]['mean']:.3f})", fontsize=9)
        labeled = len(classes) <= MAX_NAMED_CLASSES
        left.set_xticks(places if labeled else [], classes if labeled else [], rotation=90, fontsize=7)
        left.set_yticks(places if labeled else [], classes if labeled else [], fontsize=7)
        right.spines[["top", "right"]].set_visible(False)
    return png(figure)
