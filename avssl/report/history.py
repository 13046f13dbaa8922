"""A run's log as charts over its steps, with signs of collapse."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avssl.logs import COLLAPSE_LIMITS, log_lines
from avssl.report.curves import DASHES, Chart, Line, charts_html
from avssl.report.page import heading, note, paragraph, table, warning

MAX_REFRESHES = 40  # lines of the table; of more, evenly spaced ones
SHARES = {
    "frac_unreadable": "could not be read",
    "frac_no_audio": "without audio",
    "frac_no_video": "without video",
    "frac_padded": "shorter than the window",
}
OF_METHODS = {  # metrics of methods that are no loss
    "accuracy": "correct classes",
    "returned": "walks that returned",
    "frac_tracked": "clips with a track",
}
SPEED = {
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "Before clipping."),
    "clips_per_second": ("Clips per second", "Over all processes."),
    "data_wait": ("Fraction of time waiting for data", "Near 0 the training is the bottleneck, near 1 the decoding."),
}
PROBE_WORDS = (
    "Share of labeled training clips whose class their nearest neighbors name, leave-one-out, by encoder outputs of "
    "the epoch; chance is the commonest class."
)
REFRESH = {  # of a refresh, after mining/: heading
    "rows_with_set": "rows with a set",
    "exact": "proven exact",
    "recall": "measured recall",
    "score": "mean score",
    "overlap": "overlap with the sets before",
    "precision": "precision",
    "chance": "chance",
}
REFRESH_CHARTS = {  # title: lines
    "Members of the same class": {"precision": "precision", "chance": "chance"},
    "Fractions of rows": {"exact": REFRESH["exact"], "rows_with_set": REFRESH["rows_with_set"]},
    "Overlap with the sets before": {"overlap": ""},
    "Mean score": {"score": ""},
}


@dataclass
class History:
    """Contents of a log."""

    lines: dict[str, Line] = field(default_factory=dict)  # {metric: steps and values}, finite ones only
    refreshes: list[dict[str, Any]] = field(default_factory=list)  # of agreement sets: raw log lines
    unreadable: Counter = field(default_factory=Counter)  # {reason, which names the file: how often}
    seconds: float = 0.0  # of training, by the clips per second that were reported
    step: int = -1  # of the last line; -1 without one
    epoch: int = -1


def read_history(path: Path, *, batch_size: int) -> History:
    """Read a log of any length: numbers take 12 bytes each."""
    found = History()
    columns: dict[str, tuple[array, array]] = {}
    timed = 0  # step up to which the time is counted
    for line in log_lines(path):
        found.step, found.epoch = line["step"], line.get("epoch", found.epoch)
        found.unreadable.update(line.get("unreadable", ()))
        is_refresh = any("mining/" in name for name in line)
        if is_refresh:
            found.refreshes.append(line)
        if line.get("clips_per_second"):
            found.seconds += (line["step"] - timed) * batch_size / line["clips_per_second"]
            timed = line["step"]
        for name, value in line.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                steps, values = columns.setdefault(name, (array("q"), array("f")))
                steps.append(line["step"])
                values.append(value)
    found.lines = {name: (np.frombuffer(x, np.int64), np.frombuffer(y, np.float32)) for name, (x, y) in columns.items()}
    return found


def training_parts(history: History, *, limits: Mapping[str, float] | None = None) -> list[str]:
    """Charts of the training, collapse metrics, and a table of all metrics. limits: values to compare the loss with."""
    lines = history.lines
    if not lines:
        return [note("The log holds no metrics: the run stopped before its first report.")]
    shares = {name: lines[name] for name in SHARES if name in lines and lines[name][1].any()}
    charts = _loss_charts(lines, limits or {})
    charts += [Chart(title, {"": lines[name]}, words) for name, (title, words) in SPEED.items() if name in lines]
    if shares:
        named = {SHARES[name]: line for name, line in shares.items()}
        charts.append(Chart("Fraction of clips with something missing", named))
    fractions = {
        OF_METHODS[part]: line for name, line in lines.items() if (part := name.rpartition("/")[2]) in OF_METHODS
    }
    if fractions:
        charts.append(Chart("Fractions of the training data", fractions))
    probe = {name.removeprefix("probe/"): line for name, line in lines.items() if name.startswith("probe/")}
    if probe:
        charts.append(Chart("Classes by nearest neighbors", probe, PROBE_WORDS))
    rows = [
        (name, *(float(each) for each in (values[0], values.min(), values.max(), values[-1])), len(values))
        for name, (_, values) in lines.items()
        if "mining/" not in name and (name not in SHARES or name in shares)
    ]
    return [
        charts_html(charts),
        note("Where a line has a band, each point is the mean of several reports and the band spans all of them."),
        heading("Collapse"),
        *collapse_parts(lines),
        heading("In numbers"),
        table("Metrics of the log", ("metric", "first", "lowest", "highest", "last", "reports"), rows),
    ]


def _loss_charts(lines: Mapping[str, Line], limits: Mapping[str, float]) -> list[Chart]:
    """The loss, then its parts: those of one method together."""
    groups: dict[str, dict[str, Line]] = {}
    for name, line in lines.items():
        method, _, part = name.rpartition("/")
        others = name in ("loss", *SPEED, *SHARES) or part in OF_METHODS or "mining/" in name or method == "probe"
        if not others and not name.endswith(("_std", "_rank")):
            groups.setdefault(method, {})[part] = line
    charts = [Chart("Loss", {"": lines["loss"]}, limits=limits)] if "loss" in lines else []
    for method, own in groups.items():
        charts += _charts(f"Parts of the loss{f' of {method}' if method else ''}", own)
    return charts


def _charts(title: str, lines: Mapping[str, Line], **more: Any) -> list[Chart]:
    """Charts of at most len(DASHES) lines each."""
    names = list(lines)
    return [
        Chart(title, {name: lines[name] for name in names[first : first + len(DASHES)]}, **more)
        for first in range(0, len(names), len(DASHES))
    ]


def collapse_parts(lines: Mapping[str, Line]) -> list[str]:
    """Charts of the collapse metrics, how to read them, and a warning if the last values indicate collapse."""
    charts, lost = [], []
    for ending, title in (("_std", "Spread of the embeddings"), ("_rank", "Effective rank of the embeddings")):
        limit, found = COLLAPSE_LIMITS[ending], {name: line for name, line in lines.items() if name.endswith(ending)}
        for name, (steps, values) in found.items():
            if values[-1] <= limit:
                above = np.flatnonzero(values > limit)
                since = steps[above[-1] + 1] if len(above) else steps[0]
                lost.append(f"{name} is {float(values[-1]):.3g} since step {since}")
        own = {name.removesuffix(ending): line for name, line in found.items()}
        charts += _charts(title, own, limits={f"collapse: below {limit:g}": limit})
    if not charts:
        return [note("No collapse metrics: the method reports no embeddings.")]
    words = (
        "A collapse is a line that falls to the dotted one and stays there, often while the loss still falls. The "
        "spread is 1 for embeddings all over the sphere and 0 when all are equal. The effective rank is the number of "
        "directions that a batch uses, at least 1, at most the embedding's dimension or the batch size less one."
    )
    verdict = "The last values show no collapse."
    if lost:
        verdict = f"Collapsed by the last values: {', '.join(lost)}. The features of that modality are of little use."
    return [charts_html(charts), warning(verdict) if lost else paragraph(verdict), note(words)]


def refresh_parts(history: History, *, has_labels: bool) -> list[str]:
    """Agreement sets over time: a table of the refreshes, and charts of several."""
    parts = []
    places = np.unique(np.linspace(0, len(history.refreshes) - 1, MAX_REFRESHES).astype(int))
    kept = [history.refreshes[place] for place in places] if history.refreshes else []
    prefixes = dict.fromkeys(
        name.rpartition("/")[0] for line in history.refreshes for name in line if "mining/" in name
    )
    for prefix in prefixes:
        whose = prefix.rpartition("/")[0]
        own = [line for line in kept if any(name.startswith(f"{prefix}/") for name in line)]
        given = [name for name in REFRESH if any(line.get(f"{prefix}/{name}") is not None for line in own)]
        rows = [
            (line["step"], line["epoch"], *("" if (x := line.get(f"{prefix}/{name}")) is None else x for name in given))
            for line in own
        ]
        caption = f"Refreshes of the sets{f' of {whose}' if whose else ''}"
        if len(history.refreshes) > len(kept):
            caption += f" ({len(kept)} of {len(history.refreshes)} refreshes)"
        parts.append(table(caption, ("step", "epoch", *(REFRESH[name] for name in given)), rows))
        charts = [
            Chart(
                title, {words: line for name, words in names.items() if (line := history.lines.get(f"{prefix}/{name}"))}
            )
            for title, names in REFRESH_CHARTS.items()
        ]
        if len(own) > 1:
            parts.append(charts_html([chart for chart in charts if chart.lines]))
    if parts:
        parts.append(note(_refresh_words(history, has_labels=has_labels)))
    return parts


def _refresh_words(history: History, *, has_labels: bool) -> str:
    words = (
        "Rows with a set: of all rows of the manifest. Proven exact: rows whose set is proven to be that of the dense "
        "search. Score: the similarity that the rule compares, mean over all members. Overlap: the share of a row's "
        "members that were in its set before; there is none for the first."
    )
    if any(name.endswith("mining/precision") for name in history.lines):
        return f"{words} Precision: how often a member has the label of its row; training itself sees no labels."
    if has_labels:
        return f"{words} No precision: the log holds none, as that of a run of before it was noted."
    return f"{words} No precision: the clips have no labels."
