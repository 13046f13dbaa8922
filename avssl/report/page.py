"""A self-contained HTML page without scripts, for screen (light or dark) and print."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure


def shown(value: Any) -> Any:
    """A number with three decimals, or four significant digits if large or very small; integers with commas."""
    if isinstance(value, float):
        return f"{value:.3f}" if 0.0095 <= abs(value) < 10 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


TEMPLATES = Environment(
    loader=PackageLoader("avssl.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
TEMPLATES.filters |= {"shown": shown, "base64": lambda content: base64.b64encode(content).decode()}
html = TEMPLATES.get_template("parts.html").module  # its macros escape what they are given, and return HTML
paragraph, note, warning, heading = html.paragraph, html.note, html.warning, html.heading


@dataclass(frozen=True)
class Section:
    """A heading of the page, and the HTML below it."""

    title: str
    parts: Sequence[str]
    folded: bool = False  # shown when it is asked for

    @property
    def id(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


def page(title: str, sections: Sequence[Section], *, lead: Sequence[str] = ()) -> str:
    """The whole file.

    Args:
        sections: with titles that differ; those without parts are left out.
        lead: HTML below the title.
    """
    with_parts = [section for section in sections if section.parts]
    return TEMPLATES.get_template("page.html").render(title=title, sections=with_parts, lead=lead)


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column names its rows; numbers stand right. An empty cell is "", and a column of nothing else
    is left out.

    Args:
        headings: of all columns; none = a table of facts, without a line of headings.
    """
    kept, columns = [], []
    for i, cells in enumerate(zip(*rows, strict=True)):
        filled = [cell for cell in cells if cell != ""]
        if filled:
            is_number = all(isinstance(cell, int | float) for cell in filled) and i > 0
            kept.append(i)
            columns.append((headings[i] if headings else "", Markup(' class="number"') if is_number else ""))
    return html.table(caption, columns, [[row[i] for i in kept] for row in rows], bool(headings))


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """A figure of matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
