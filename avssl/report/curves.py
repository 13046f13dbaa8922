"""Figures over steps as inline SVG: text stays text, lines differ by their dashes too.

What lives here: thinning and drawing. What does not: which figures there are (history.py).

Letters: n points of a line, m points that are drawn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avssl.report.page import shown, text

MAX_POINTS = 240  # of a line; more are not to be told apart on 480 units
WIDTH, HEIGHT = 480, 230  # of a chart, in units of its text of 12
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 34  # room around the plot
LEGEND_LINE = 17
DASHES = ("", "7 3", "2 2", "9 3 2 3", "1 4", "12 4")  # as many as colours --s0, --s1, ... of the page
Line = tuple[np.ndarray, np.ndarray]  # steps (n,), values (n,)


@dataclass(frozen=True)
class Chart:
    """Lines over the same steps.

    Args:
        lines: {name: steps and values}, at most as many as DASHES; a single one that the title names has the name "".
        note: a sentence below the title: how to read it.
        limits: {words: value}, lines across.
    """

    title: str
    lines: Mapping[str, Line]
    note: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


def charts_html(charts: Sequence[Chart]) -> str:
    """Charts side by side where there is room; those without a point are left out."""
    figures = [
        f"<figure><figcaption>{text(chart.title)}{f'<p>{text(chart.note)}</p>' if chart.note else ''}</figcaption>"
        f"{svg(chart)}</figure>"
        for chart in charts
        if any(len(steps) for steps, _ in chart.lines.values())
    ]
    return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def thinned(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most MAX_POINTS points of a line: equal runs of it as their mean, with their smallest and largest value.

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


def svg(chart: Chart) -> str:
    """The picture, with what it says in words as its name."""
    lines = {name: thinned(line) for name, line in chart.lines.items() if len(line[0])}
    legend, legend_height = _legend(list(lines)) if any(lines) else ("", 0)
    across = _Axis.of([x[0] for x in lines.values()], WIDTH - RIGHT, LEFT)
    heights = [each for line in lines.values() for each in line[2:]] + [np.array([*chart.limits.values()])]
    up = _Axis.of(heights, TOP, HEIGHT - BOTTOM)
    parts = [_frame(across, up)]
    for words, value in chart.limits.items():
        y = f"{up(value):.1f}"
        above = 4 if up(value) > TOP + 16 else -13
        parts.append(f'<path class="limit" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{up(value) - above:.1f}" text-anchor="end" font-style="italic">'
            f"{text(words)}</text>"
        )
    for number, (steps, means, smallest, largest) in enumerate(lines.values()):
        colour, dash = f"var(--s{number})", DASHES[number]
        x = across(steps)
        if (largest > smallest).any():
            edge = [*zip(x, up(largest), strict=True), *zip(x[::-1], up(smallest)[::-1], strict=True)]
            parts.append(f'<path class="band" style="fill:{colour}" d="M{_points(edge)}Z"/>')
        dots = f'<circle cx="{x[0]:.1f}" cy="{up(means)[0]:.1f}" r="2.5" style="fill:{colour}"/>'
        path = f'<path class="line" style="stroke:{colour}" stroke-dasharray="{dash or "none"}" d="M{{}}"/>'
        parts.append(dots if len(x) == 1 else path.format(_points(zip(x, up(means), strict=True))))
    box = f"0 {-legend_height} {WIDTH} {HEIGHT + legend_height}"
    return f'<svg viewBox="{box}" role="img" aria-label="{text(in_words(chart))}">{legend}{"".join(parts)}</svg>'


def in_words(chart: Chart) -> str:
    """What a chart shows, for those who cannot see it."""
    told = [
        f"{name or chart.title.lower()} from {shown(float(values[0]))} at step {int(steps[0])} to "
        f"{shown(float(values[-1]))} at step {int(steps[-1])}"
        for name, (steps, values) in chart.lines.items()
        if len(steps)
    ]
    return f"{chart.title} over steps: {'; '.join(told)}"


@dataclass(frozen=True)
class _Axis:
    """From values to places, and where marks stand."""

    low: float
    high: float
    first: float  # place of `low`
    last: float  # place of `high`

    @staticmethod
    def of(values: Sequence[np.ndarray], last: float, first: float) -> "_Axis":
        low, high = (float(of(np.concatenate(values))) for of in (np.min, np.max))
        room = (high - low) * 0.04 or abs(low) * 0.1 or 0.5
        return _Axis(low - room, high + room, first, last)

    def __call__(self, value: np.ndarray | float) -> np.ndarray | float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def marks(self, number: int) -> list[float]:
        """About `number` round values within the axis."""
        rough = (self.high - self.low) / number
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda each: abs(math.log(each / rough)))
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _frame(across: _Axis, up: _Axis) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for value in up.marks(5):
        y = f"{up(value):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in across.marks(5):
        if value >= 0 and value == int(value):
            parts.append(f'<text x="{across(value):.1f}" y="{bottom + 15}" text-anchor="middle">{_short(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join([*parts, f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">step</text>'])


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Samples of the lines with their names, above the plot, and the height that they take."""
    parts, x, y = [], LEFT, 0
    for number, name in enumerate(names):
        width = 36 + 7 * len(name)
        if x + width > WIDTH and x > LEFT:
            x, y = LEFT, y + LEGEND_LINE
        dash = DASHES[number] or "none"
        parts.append(
            f'<path class="line" style="stroke:var(--s{number})" stroke-dasharray="{dash}" d="M{x} {y}h24"/>'
            f'<text x="{x + 29}" y="{y + 4}">{text(name)}</text>'
        )
        x += width + 8
    height = y + LEGEND_LINE
    return f'<g transform="translate(0 {10 - height})">{"".join(parts)}</g>', height


def _points(places: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _short(step: float) -> str:
    """25000 as 25k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if step >= size and step % (size / 10) == 0:
            return f"{step / size:g}{letter}"
    return f"{step:g}"
