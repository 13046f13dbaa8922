"""Shared code of the benchmarks: options, --dry-run, and the result as lines, as a table or as JSON."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from avssl.cli import common
from avssl.files import Parser, print_result

Result = dict[str, Any]


def command(doc: str, *, seed: int | None = None) -> argparse.ArgumentParser:
    """A parser with --threads, --json and --dry-run; with --seed where a default is given."""
    parser = Parser(description=doc)
    if seed is not None:
        parser.add_argument("--seed", type=int, default=seed, help=f"of what is made and drawn (default: {seed})")
    parser.add_argument("--threads", type=int, help="torch threads; torch's own choice if not given")
    common.add_json(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be measured")
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
        plan: text of --dry-run, with the options in braces.
        text: result -> what is printed without --json; None = `as_lines`.

    Returns:
        Exit code: 0 done, 2 wrong call.
    """

    def command(given: argparse.Namespace) -> int:
        options = vars(given).copy()
        threads, json, dry_run = (options.pop(name) for name in ("threads", "json", "dry_run"))
        if dry_run:
            print("would measure", plan.format(**options))
            return 0
        if threads is not None:
            common.check_at_least(given, 1, "threads")
            torch.set_num_threads(threads)
        result = measure(**options)
        print_result(result, (text or as_lines)(result), to=json)
        return 0

    given = parser.parse_args()
    if given.dry_run:
        given.json = None  # nothing is written
    return common.run(command, given)


def as_lines(result: Result) -> str:
    """A line for each value; nested values and tables are indented below their name."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines += [name, as_lines({f"  {part}": each for part, each in value.items()})]
        elif isinstance(value, list):
            lines += [name, "  " + "".join(f"{column:>17}" for column in value[0])]
            lines += ["  " + "".join(_cell(each) for each in row.values()) for row in value]
        else:
            lines.append(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")
    return "\n".join(lines)


def _cell(value: object) -> str:
    kind = {str: "", int: ","}.get(type(value), ".4g")
    return f"{value:>17{kind}}"
