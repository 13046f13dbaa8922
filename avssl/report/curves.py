"""Charts over steps as inline SVG; text stays text, and lines also differ by their dashes.

Letters: n points of a line, m points that are drawn.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from avssl.report.page import html, shown

MAX_POINTS = 240  # per line; more cannot be distinguished
DASHES = ((), (7, 3), (2, 2), (9, 3, 2, 3), (1, 4), (12, 4))  # as many as colors --s0, --s1, ... of the page
TEXT, FAINT, RULE, *COLORS = (f"#10000{i}" for i in range(9))  # placeholders for the page's colors in matplotlib
VARIABLES = {TEXT: "text", FAINT: "faint", RULE: "rule"} | {color: f"s{i}" for i, color in enumerate(COLORS)}
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "lines.scale_dashes": False,
    "lines.linewidth": 1.6,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}
Line = tuple[np.ndarray, np.ndarray]  # steps (n,), values (n,)


@dataclass(frozen=True)
class Chart:
    """Lines over the same steps.

    Args:
        lines: {name: steps and values}, at most as many as DASHES; a single line named by the title has the name "".
        note: a sentence below the title.
        limits: {label: value}, horizontal lines.
    """

    title: str
    lines: Mapping[str, Line]
    note: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


def charts_html(charts: Sequence[Chart]) -> str:
    """A grid of charts, without empty ones."""
    figures = [(chart, svg(chart)) for chart in charts if any(len(steps) for steps, _ in chart.lines.values())]
    return html.charts(figures) if figures else ""


def thinned(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most MAX_POINTS points of a line: means of equal runs, with their smallest and largest values.

    Returns:
        steps, means, smallest, largest: (m,) each.
    """
    steps, values = line
    starts = np.linspace(0, len(steps), min(len(steps), MAX_POINTS), endpoint=False).astype(int)
    lengths = np.diff([*starts, len(steps)])
    return (
        np.add.reduceat(steps.astype(np.float64), starts) / lengths,
        np.add.reduceat(values.astype(np.float64), starts) / lengths,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def svg(chart: Chart) -> Markup:
    """The chart as SVG, with a description as its label."""
    lines = {name: line for name, line in chart.lines.items() if len(line[0])}
    with matplotlib.rc_context(SETTINGS):
        legend = 0.25 * math.ceil(len(lines) / 2) if any(lines) else 0.05  # inches
        figure = Figure(figsize=(6, height := 2.8 + legend))
        axes = figure.subplots()  # constrained layout would take twice the time
        figure.subplots_adjust(left=0.14, right=0.98, bottom=0.5 / height, top=1 - (legend + 0.05) / height)
        axes.grid(axis="y", linewidth=0.5)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter("{x:.4g}")
        for (name, line), color, dashes in zip(lines.items(), COLORS, DASHES, strict=False):
            steps, means, smallest, largest = thinned(line)
            style = (0, dashes) if dashes else "-"
            axes.plot(steps, means, color=color, ls=style, marker="o" if len(steps) == 1 else "", label=name)
            if (largest > smallest).any():
                axes.fill_between(steps, smallest, largest, color=color, alpha=0.18, linewidth=0)
        for words, value in chart.limits.items():
            axes.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (1, 3)))
            axes.text(1, value, words, transform=axes.get_yaxis_transform(), ha="right", va="bottom", style="italic")
        if any(lines):
            figure.legend(loc="upper left", ncols=2, frameon=False, handlelength=3, borderaxespad=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}').format(*_inline(buffer.getvalue(), chart))


def _inline(source: str, chart: Chart) -> tuple[str, str, Markup]:
    """View box, description and content of an SVG, without file metadata and duplicate ids, in the page's colors."""
    content = source[source.index(">", source.index("<svg")) + 1 :]
    content = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>| id=\"[\w.]+_\d+\"", "", content, flags=re.DOTALL)
    content = re.sub(r"\s*\n\s*", " ", re.sub(r"(\d\.\d\d)\d+", r"\1", content))
    for color, name in VARIABLES.items():
        content = content.replace(color, f"var(--{name})")
    return re.search(r'viewBox="(.*?)"', source)[1], _describe(chart), Markup(content)


def _describe(chart: Chart) -> str:
    """Text alternative of a chart."""
    parts = [
        f"{name or chart.title.lower()} from {shown(float(values[0]))} at step {int(steps[0])} to "
        f"{shown(float(values[-1]))} at step {int(steps[-1])}"
        for name, (steps, values) in chart.lines.items()
        if len(steps)
    ]
    return f"{chart.title} over steps: {'; '.join(parts)}"
