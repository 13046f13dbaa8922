"""Results of avssl evaluate as HTML: tables and confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from avssl.evaluate.table import Result, grouped, headings, read_result, remarks, rows, title
from avssl.files import atomic_write
from avssl.report.page import Section, heading, html, note, page, png, table

MAX_NAMED_CLASSES = 60  # more do not fit beside a picture
MAX_LETTERS = 30  # of a class beside a picture


def find_results(
    folder: Path, weights_hash: str, *, named: Sequence[Path] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of a run's weights in its folder or in its evaluations/, and the named ones of any weights.

    Returns:
        The results, and a sentence for each other JSON file there.

    Raises:
        ValueError: a named file holds no result.
    """
    results, others = [read_result(path) for path in named], []
    seen = {path.resolve() for path in named}
    lying = sorted([*folder.glob("*.json"), *(folder / "evaluations").glob("*.json")])
    for path in (each for each in lying if each.resolve() not in seen):
        try:
            result = read_result(path)
        except ValueError:
            others.append(f"{path} is left out: it is no result of avssl evaluate.")
            continue
        if result.get("weights_hash") == weights_hash:
            results.append(result)
        else:
            others.append(f"{path} is left out: it is a result of other weights, or of this run at an earlier step.")
    return results, others


def evaluation_parts(results: Sequence[Result]) -> list[str]:
    """A table with remarks for each protocol and set, then the confusion matrices of each result."""
    parts = []
    for group in grouped(results):
        lines = [(way, *cells) for way, cells in rows(group)]
        parts.append(table(title(group[0]), ("features", *headings(group)), lines))
        parts += [note(remark) for remark in remarks(group)]
    for result in results:
        name = f"{result['protocol']} on {result['manifest']}, {result['weights']}"
        facts = result["versions"] | {"date": result["date"]}
        parts += [heading(name), note(", ".join(f"{name} {value}" for name, value in facts.items()))]
        if predicts_classes(result):
            parts.append(html.picture(confusion_png(result), f"Confusions: {name}"))
    return parts


def write_evaluation(path: Path, results: Sequence[Result]) -> None:
    """Write a page of evaluations. Raises WriteError: the file cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text(page("Evaluation", [Section("Results", evaluation_parts(results))]), encoding="utf-8")


def predicts_classes(result: Mapping[str, Any]) -> list[str]:
    """Modalities for which the evaluation predicts one class per clip."""
    return [way for way in ("video", "audio", "both") if "confusion" in result["scores"].get(way, {})]


@matplotlib.rc_context({"text.parse_math": False})  # a label such as $1_vs_$2 is no formula
def confusion_png(result: Mapping[str, Any]) -> bytes:
    """Confusion matrix and accuracy per class for each modality of an evaluation that `predicts_classes`. Rows are
    fractions of the true class; unanswered clips are missing from their sum."""
    found = result["scores"]
    ways = predicts_classes(result)
    classes, size = result["classes"], min(10.0, 3.6 + 0.25 * len(result["classes"]))
    named = classes if len(classes) <= MAX_NAMED_CLASSES else []
    named = [name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…" for name in named]
    figure = Figure(figsize=(2 * size, size * len(ways)), layout="constrained")
    axes = figure.subplots(len(ways), 2, squeeze=False, sharey="row")
    for (left, right), way in zip(axes, ways, strict=True):
        counts = np.asarray(found[way]["confusion"], dtype=float)  # (C, C + 1)
        fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        places = range(len(classes))
        left.imshow(fractions[:, :-1], vmin=0, vmax=1, cmap="Blues")
        right.barh(places, np.diagonal(fractions), color="#30658e")
        right.axvline(found[way]["mean"], color="#444", linewidth=1, linestyle="--")
        right.set_xlim(0, 1)
        left.set_title(f"{way}: class (row) taken for (column)", fontsize=9)
        right.set_title(f"{way}: right of each class (all: {found[way]['mean']:.3f})", fontsize=9)
        left.set_xticks(places if named else [], named, rotation=90, fontsize=7)
        left.set_yticks(places if named else [], named, fontsize=7)
        right.spines[["top", "right"]].set_visible(False)
    return png(figure)
