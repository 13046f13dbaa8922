"""A page in one HTML file: no other file, no network, no script; on screen light or dark, in print black on white.

What lives here: the page, its sections, tables and pictures. What does not: what stands in them.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = """--text: #1a1a1a; --faint: #595959; --back: #fff; --rule: #c4c4c4; --link: #1f5fa8;
--s0: #1f5fa8; --s1: #b3421f; --s2: #2b7a3d; --s3: #7a3d9a; --s4: #7d6200; --s5: #0b6e79;"""
DARK = """--text: #e8e8e8; --faint: #b0b0b0; --back: #16181b; --rule: #4a4e54; --link: #8cb8f0;
--s0: #8cb8f0; --s1: #f0a080; --s2: #8fd49f; --s3: #d3a6ee; --s4: #e3c765; --s5: #7fd3dc;"""
PRINT = """--text: #000; --faint: #222; --back: #fff; --rule: #888; --link: #000;
--s0: #000; --s1: #000; --s2: #000; --s3: #000; --s4: #000; --s5: #000;"""
STYLE = f"""
:root {{ color-scheme: light dark; {COLOURS} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
background: var(--back); overflow-wrap: break-word; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; }} h2 {{ font-size: 1.3rem; margin-top: 2.6rem; border-bottom: 1px solid
var(--rule); }} h3 {{ font-size: 1.05rem; margin: 1.6rem 0 .3rem; }}
a {{ color: var(--link); }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; list-style: none; }}
p.note {{ color: var(--faint); font-size: .9rem; max-width: 46rem; }}
p.warning {{ border-left: .3rem solid var(--s1); padding-left: .8rem; max-width: 46rem; }}
.wide {{ overflow-x: auto; margin: .8rem 0; }}
table {{ border-collapse: collapse; font-size: .92rem; }}
caption {{ text-align: left; font-weight: 600; padding-bottom: .2rem;
width: max-content; max-width: min(88vw, 58rem); }}
th, td {{ padding: .2rem 1.1rem .2rem 0; text-align: left; vertical-align: top; font-weight: 400; }}
thead th {{ border-bottom: 1px solid var(--rule); font-weight: 600; vertical-align: bottom; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
pre {{ white-space: pre-wrap; font-size: .8rem; }} summary {{ cursor: pointer; }}
figure {{ margin: 0; }} figcaption {{ font-size: .85rem; }} figcaption b {{ display: block; }}
.curves {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.4rem; margin:
1rem 0; }} .curves svg {{ display: block; width: 100%; height: auto; }} .curves figcaption {{ font-weight: 600; }}
.curves p {{ margin: 0; font-weight: 400; color: var(--faint); }}
svg text {{ fill: var(--text); font: 12px system-ui, sans-serif; }} svg .axis {{ stroke: var(--faint); fill: none; }}
svg .grid {{ stroke: var(--rule); stroke-width: .5; }} svg .limit {{ stroke: var(--faint); stroke-dasharray: 1 3; }}
svg .line {{ fill: none; stroke-width: 1.6; stroke-linejoin: round; }} svg .band {{ opacity: .18; stroke: none; }}
.clips {{ display: flex; flex-wrap: wrap; gap: 1rem; margin: .6rem 0 1.6rem; }} .clips figure {{ width: 11.5rem; }}
.clips img {{ width: 100%; border: 1px solid var(--rule); background: #fff; }} img.picture {{ max-width: 100%; }}
@media (max-width: 30rem) {{ .clips figure {{ width: calc(50% - .5rem); }} body {{ margin: 1rem auto; }} }}
@media print {{ :root {{ color-scheme: light; {PRINT} }} nav {{ display: none; }}
body {{ font-size: 10.5pt; max-width: none; margin: 0; padding: 0; }} a {{ text-decoration: none; }}
figure, tr, img, svg {{ break-inside: avoid; }} h2, h3, caption {{ break-after: avoid; }}
.wide {{ overflow: visible; }} table {{ font-size: 9pt; }} td {{ overflow-wrap: anywhere; }}
.curves {{ grid-template-columns: 1fr 1fr; }} .clips figure {{ width: 18%; }} img.picture {{ max-height: 22cm; }}
details::details-content {{ content-visibility: visible; block-size: auto; }} pre {{ columns: 3; font-size: 7.5pt; }} }}
"""


@dataclass(frozen=True)
class Section:
    """A heading of the page, and the HTML below it."""

    title: str
    parts: Sequence[str]

    @property
    def id(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


def page(title: str, sections: Sequence[Section], *, lead: Sequence[str] = ()) -> str:
    """The whole file.

    Args:
        sections: with titles that differ; those without parts are left out.
        lead: HTML below the title.
    """
    shown = [section for section in sections if section.parts]
    contents = "".join(f'<li><a href="#{section.id}">{text(section.title)}</a></li>' for section in shown)
    body = "".join(
        f'<section aria-labelledby="{section.id}"><h2 id="{section.id}">{text(section.title)}</h2>'
        f"{''.join(section.parts)}</section>"
        for section in shown
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><header><h1>{text(title)}</h1>"
        f'{"".join(lead)}<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n'
        f"<main>{body}</main></body></html>\n"
    )


def text(words: object) -> str:
    """Words as HTML shows them, in an attribute too."""
    return html.escape(str(words))


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def warning(words: str) -> str:
    return f'<p class="warning">{text(words)}</p>'


def heading(words: str) -> str:
    return f"<h3>{text(words)}</h3>"


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column names its rows; numbers stand right. An empty cell is "", and a column of nothing else
    is left out.

    Args:
        headings: of all columns; none = a table of facts, without a line of headings.
    """
    kept = [i for i in range(len(rows[0])) if any(row[i] != "" for row in rows)] if rows else []
    rows = [[row[i] for i in kept] for row in rows]
    headings = [headings[i] for i in kept] if headings else []
    head = "".join(f'<th scope="col"{_side(rows, i)}>{text(name)}</th>' for i, name in enumerate(headings))
    lines = [
        f'<tr><th scope="row">{shown(row[0])}</th>'
        + "".join(f"<td{_side(rows, i)}>{shown(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption>{f'<thead><tr>{head}</tr></thead>' if headings else ''}"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _side(rows: Sequence[Sequence[Any]], column: int) -> str:
    """A column of numbers stands right, its heading too."""
    cells = [row[column] for row in rows if row[column] != ""]
    return ' class="number"' if cells and all(isinstance(cell, int | float) for cell in cells) else ""


def shown(value: Any) -> str:
    """A figure as a reader wants it: three decimals, or four significant digits of what is large or very small."""
    if isinstance(value, float):
        return f"{value:.3f}" if 0.0095 <= abs(value) < 10 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else text(value)


def details(summary: str, part: str) -> str:
    """HTML that is opened by a click, and always in print."""
    return f"<details><summary>{text(summary)}</summary>{part}</details>"


def picture(png: bytes, *, alt: str) -> str:
    return f'<img class="picture" alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def png(figure: plt.Figure, *, dpi: int = 110) -> bytes:
    """A figure of matplotlib, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()
