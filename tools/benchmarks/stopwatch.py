"""What the stopwatches share: their common options, --dry-run, and the result as lines, as a table or as JSON."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from avssl.files import check_writable, print_result

Result = dict[str, Any]


def command(doc: str, *, seed: int | None = None) -> argparse.ArgumentParser:
    """A parser with --threads, --json and --dry-run; with --seed where a default is given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seed is not None:
        parser.add_argument("--seed", type=int, default=seed, help=f"of what is made and drawn (default: {seed})")
    parser.add_argument("--threads", type=int, help="torch threads; torch's own choice if not given")
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be measured")
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[..., Result],
    *,
    plan: str,
    text: Callable[[Result], str] | None = None,
) -> int:
    """Parse, measure, print.

    Args:
        measure: options of the command, by their names -> result. A ValueError of it is a wrong call.
        plan: what --dry-run says, with the options in braces.
        text: result -> what is printed without --json; None = `as_lines`.

    Returns:
        Exit code: 0 done, 2 wrong call.
    """
    options = vars(parser.parse_args())
    threads, json, dry_run = (options.pop(name) for name in ("threads", "json", "dry_run"))
    if dry_run:
        print("would measure", plan.format(**options))
        return 0
    try:
        if json not in (None, "-"):
            check_writable(json)
        if threads is not None:
            if threads < 1:
                raise ValueError(f"--threads is {threads}, expected at least 1")
            torch.set_num_threads(threads)
        result = measure(**options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_result(result, (text or as_lines)(result), to=json)
    return 0


def as_lines(result: Result) -> str:
    """A line for each figure; figures by name and tables are indented below theirs."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines += [name, as_lines({f"  {part}": figure for part, figure in value.items()})]
        elif isinstance(value, list):
            lines += [name, "  " + "".join(f"{column:>17}" for column in value[0])]
            lines += ["  " + "".join(_cell(figure) for figure in row.values()) for row in value]
        else:
            lines.append(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")
    return "\n".join(lines)


def _cell(figure: object) -> str:
    kind = {str: "", int: ","}.get(type(figure), ".4g")
    return f"{figure:>17{kind}}"
