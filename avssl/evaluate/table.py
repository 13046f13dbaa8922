"""Tables of results: one for each protocol and set, with chance and random weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMPARED = ("splits", "asked_hash", "settings", "training")  # must be equal for results of one table
NEEDED = (
    *("protocol", "weights", "manifest", "manifest_hash", "scores", "random", "clips", "several_labels", "shared"),
    *("unlabeled", "own_groups", "similar", *COMPARED),
)
PAIRED = "clips with video and audio"

Result = Mapping[str, Any]


def read_result(path: str | Path) -> dict[str, Any]:
    """A result written by avssl evaluate. Raises ValueError: the file cannot be read, or is no result."""
    try:
        result = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give files of avssl evaluate --json") from error
    missing = [name for name in NEEDED if not isinstance(result, dict) or name not in result]
    if missing:
        raise ValueError(f"{path} is no result of avssl evaluate (no {missing[0]}): give files of its --json")
    return result


def compare(results: Sequence[Result]) -> str:
    """Text tables, one for each protocol and set, with remarks below."""
    tables = []
    for group in grouped(results):
        tables.append("\n".join([title(group[0]), *_lines(group), *remarks(group)]))
    return "\n\n".join(tables)


def rows(group: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """(metric, its cells under `headings`); then, where some test clips lack video or audio, the same of those that
    have both. In a block whose rows count different clips, n carries a letter for which."""
    baseline = next((result["random"] for result in group if result["random"]), None)
    found = [result["scores"] for result in group] + ([baseline] if baseline else [])
    paired = [{name: figure["paired"] for name, figure in each.items() if "paired" in figure} for each in found]
    lines = _block(found, has_baseline=baseline is not None)
    if any(paired):
        lines.append((PAIRED, [""] * (len(lines[0][1]))))
        lines += [(f"  {name}", cells) for name, cells in _block(paired, has_baseline=baseline is not None)]
    return lines


def _block(found: Sequence[Mapping[str, Any]], *, has_baseline: bool) -> list[tuple[str, list[str]]]:
    """Rows of figures {metric: figure} of every result, the baseline last."""
    results, lines = found[: -1 if has_baseline else None], []
    names = dict.fromkeys(name for each in results for name in each)
    clips = {name: tuple(dict.fromkeys(each[name]["clips"] for each in results if name in each)) for name in names}
    which = list(dict.fromkeys(clips.values()))
    for name in names:
        given = [each[name] for each in results if name in each]
        mark = f" {chr(ord('a') + which.index(clips[name]))}" if len(which) > 1 else ""
        cells = [", ".join(dict.fromkeys(str(each["num"]) for each in given)) + mark]
        cells.append(", ".join(dict.fromkeys(f"{each['chance']:.3f}" for each in given)))
        lines.append((name, cells + [shown(each.get(name)) for each in [*found[len(results) :], *results]]))
    return lines


def headings(group: Sequence[Result]) -> list[str]:
    """Names of the columns of `rows`."""
    return ["n", "chance", *(["random init"] if any(result["random"] for result in group) else []), *_names(group)]


def shown(figure: Mapping[str, Any] | None) -> str:
    """A metric with its 95 % interval, and its standard deviation over draws of labels."""
    if figure is None:
        return ""
    interval = "({:.3f} to {:.3f})".format(*figure["interval"]) if figure["interval"] else "(one group)"
    spread = f" ± {figure['draw_spread']:.3f}" if "draws" in figure else ""
    return f"{figure['mean']:.3f} {interval}{spread}"


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """Results by table: of one protocol and one set of clips."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["protocol"], result["manifest_hash"]), []).append(result)
    return list(groups.values())


def title(result: Result) -> str:
    """Title of the table that a result belongs to."""
    splits = result["splits"]
    over = splits[0] if len(splits) == 1 else f"mean of {len(splits)}: {', '.join(splits)}"
    settings = result["settings"]
    views = f"{settings['num_clips']} clips x {settings['num_crops']} crops"
    return f"{result['protocol']} on {result['manifest']} ({over}; {views}; 95 % interval in brackets)"


def _names(group: Sequence[Result]) -> list[str]:
    """Shortest distinguishing path of the folder of each result's weights."""
    paths = [Path(result["weights"]).parent for result in group]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) or "." for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _lines(group: Sequence[Result]) -> list[str]:
    table = [["", *headings(group)], *([name, *cells] for name, cells in rows(group))]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def remarks(group: Sequence[Result]) -> list[str]:
    """Differences that make the results of a table incomparable, and notes on missing clips, without repeats."""
    return [*_differences(group), *dict.fromkeys(line for result in group for line in _notes(result))]


def _differences(group: Sequence[Result]) -> list[str]:
    """Differences between the results of a table."""
    lines = []
    for name in COMPARED:
        values = [result[name] for result in group]
        if all(value == values[0] for value in values):
            continue
        if name == "asked_hash":
            what = "clips, their labels or their splits"
        elif all(isinstance(value, Mapping) for value in values):
            flat = [_flat(value) for value in values]
            keys = [key for key in flat[0] if any(each.get(key) != flat[0][key] for each in flat)]
            what = "; ".join(f"{key}: {', '.join(str(each.get(key)) for each in flat)}" for key in keys)
        else:
            what = ", ".join(str(value)[:40] for value in values)
        lines.append(f"not comparable, {name} differ: {what}")
    names = dict.fromkeys(name for result in group for name in result["scores"])
    counted = {name: {r["scores"][name]["clips"] for r in group if name in r["scores"]} for name in names}
    differing = [name for name, clips in counted.items() if len(clips) > 1]
    if differing:
        lines.append(f"not comparable, clips that count differ: {', '.join(differing)}")
    marks = [cells[0][-1:] for name, cells in rows(group) if name != PAIRED]
    if any(mark.isalpha() for mark in marks):
        lines.append("rows with different letters behind n are about different clips: compare rows of one letter")
    return lines


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """{section.key: value}."""
    flat = {}
    for name, entry in value.items():
        flat |= {f"{name}.{key}": each for key, each in entry.items()} if isinstance(entry, Mapping) else {name: entry}
    return flat


def _notes(result: Result) -> list[str]:
    """Sentences about unanswered clips, shared files and several labels."""
    words = {"unreadable": "could not be read", "without_audio": "without audio", "without_video": "without video"}
    found = [
        f"{number} of {counts['clips']} {part} clips {words[name]}"
        for part, counts in result["clips"].items()
        for name, number in counts.items()
        if name in words and number
    ]
    means = "left out" if result["settings"]["skip_unreadable"] else "counted as wrong where they are asked about"
    lines = [f"{', '.join(found)}: {means}"] if found else []
    unseen: dict[int, list[str]] = {}
    for name, figure in result["scores"].items():
        unseen.setdefault(figure["unseen"], []).append(name)
    lines += [
        f"{number} test clips have a class without a training clip, which nothing can predict ({', '.join(names)})"
        for number, names in unseen.items()
        if number
    ]
    if result["unlabeled"]:
        lines.append(f"{result['unlabeled']} clips have no label: left out")
    for name in ("files", "groups"):
        shared = sum(split[name] for split in result["shared"])
        if shared:
            lines.append(f"{shared} test clips have {name} that training clips have too")
    if result["own_groups"]:
        lines.append("no groups given: every file is its own group (--group folder, or a regular expression)")
    pairs = [pair for split in result["similar"] for pair in split["pairs"]]
    if pairs:
        number = sum(split["num"] for split in result["similar"])
        lines.append(
            f"{number} test clips are nearly equal to a training clip, such as {' and '.join(pairs[0])}: where they "
            "show one scene, keep it together with --group"
        )
    if result["several_labels"]:
        means = any(name.endswith(" mAP") for name in result["scores"])
        counts = "mAP is the mean over classes of the average precision" if means else "only the first of each counts"
        lines.append(f"{result['several_labels']} clips have several classes: {counts} here")
    return lines
