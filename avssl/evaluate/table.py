"""Results side by side: one table for each protocol and set, with chance and random weights beside what was trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMPARED = ("splits", "asked_hash", "settings", "training")  # what results of one table must share
NEEDED = (
    *("protocol", "weights", "manifest", "manifest_hash", "scores", "random", "clips", "several_labels", "shared"),
    *COMPARED,
)

Result = Mapping[str, Any]


def read_result(path: str | Path) -> dict[str, Any]:
    """A result that tools/evaluate.py has written.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        result = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give files of tools/evaluate.py --json") from error
    missing = [name for name in NEEDED if not isinstance(result, dict) or name not in result]
    if missing:
        raise ValueError(f"{path} is no result of tools/evaluate.py (no {missing[0]}): give files of its --json")
    return result


def compare(results: Sequence[Result]) -> str:
    """One table for each protocol and set in words; what makes results of one table hard to compare is said below."""
    tables = []
    for group in grouped(results):
        tables.append("\n".join([title(group[0]), *_lines(group), *remarks(group)]))
    return "\n\n".join(tables)


def rows(group: Sequence[Result]) -> dict[str, list[str]]:
    """{way: chance, random weights where they were asked, then every result}, each as words."""
    ways = dict.fromkeys(way for result in group for way in result["scores"])
    baseline = next((result["random"] for result in group if result["random"]), None)
    cells = {}
    for way in ways:
        given = next(result["scores"][way] for result in group if way in result["scores"])
        cells[way] = [f"{given['chance']:.3f}"]
        cells[way] += [shown(baseline.get(way))] if baseline else []
        cells[way] += [shown(result["scores"].get(way)) for result in group]
    return cells


def headings(group: Sequence[Result]) -> list[str]:
    """Of the columns of `rows`."""
    return ["chance", *(["random init"] if any(result["random"] for result in group) else []), *_names(group)]


def shown(figure: Mapping[str, Any] | None) -> str:
    """A figure with its 95 % interval; with its deviation over draws where labels were drawn."""
    if figure is None:
        return ""
    interval = "({:.3f} to {:.3f})".format(*figure["interval"]) if figure["interval"] else "(one group)"
    spread = f" ± {figure['draw_spread']:.3f}" if "draws" in figure else ""
    return f"{figure['mean']:.3f} {interval}{spread}"


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """The results that stand in one table: of one protocol and one set of clips."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["protocol"], result["manifest_hash"]), []).append(result)
    return list(groups.values())


def title(result: Result) -> str:
    """Of the table of a group, by any of its results."""
    splits = result["splits"]
    over = splits[0] if len(splits) == 1 else f"mean of {len(splits)}: {', '.join(splits)}"
    settings = result["settings"]
    views = f"{settings['num_clips']} clips x {settings['num_crops']} crops"
    return f"{result['protocol']} on {result['manifest']} ({over}; {views}; 95 % interval in brackets)"


def _names(group: Sequence[Result]) -> list[str]:
    """The folder of each result's weights, with as much of its path as tells them apart."""
    paths = [Path(result["weights"]).parent for result in group]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) or "." for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _lines(group: Sequence[Result]) -> list[str]:
    table = [["", *headings(group)], *([way, *cells] for way, cells in rows(group).items())]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def remarks(group: Sequence[Result]) -> list[str]:
    """What is to be known of a table: what makes its results hard to compare, and what could not be answered; once for
    all results that it is true of."""
    return [*_differences(group), *dict.fromkeys(line for result in group for line in _notes(result))]


def _differences(group: Sequence[Result]) -> list[str]:
    """What the results of a table do not share."""
    lines = []
    for name in COMPARED:
        values = [result[name] for result in group]
        if all(value == values[0] for value in values):
            continue
        if name == "asked_hash":
            what = "clips, their labels or their sides"
        elif all(isinstance(value, Mapping) for value in values):
            flat = [_flat(value) for value in values]
            keys = [key for key in flat[0] if any(each.get(key) != flat[0][key] for each in flat)]
            what = "; ".join(f"{key}: {', '.join(str(each.get(key)) for each in flat)}" for key in keys)
        else:
            what = ", ".join(str(value)[:40] for value in values)
        lines.append(f"not comparable, {name} differ: {what}")
    return lines


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """{section.key: value}."""
    flat = {}
    for name, entry in value.items():
        flat |= {f"{name}.{key}": each for key, each in entry.items()} if isinstance(entry, Mapping) else {name: entry}
    return flat


def _notes(result: Result) -> list[str]:
    """Clips that could not be answered for, and what else is to be known, in words."""
    words = {"unreadable": "could not be read", "without_sound": "without sound", "without_picture": "without picture"}
    found = [
        f"{number} of {counts['clips']} {side} clips {words[name]}"
        for side, counts in result["clips"].items()
        for name, number in counts.items()
        if name in words and number
    ]
    means = "left out" if result["settings"]["skip_unreadable"] else "counted as wrong where they are asked about"
    lines = [f"{', '.join(found)}: {means}"] if found else []
    for name in ("files", "groups"):
        shared = sum(split[name] for split in result["shared"])
        if shared:
            lines.append(f"{shared} test clips have {name} that training clips have too")
    if result["several_labels"]:
        lines.append(f"{result['several_labels']} clips have several classes: only the first of each counts here")
    return lines
