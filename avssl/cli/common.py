"""What the commands share: their parser, the option --json, and what becomes of an error."""

import argparse
import math
import sys
from collections.abc import Callable

from avssl.files import check_writable

MAX_NAMED = 20  # files that are named one by one for a person


def new_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of a command, from the `__name__` and `__doc__` of its module."""
    name = module.rpartition(".")[2]
    return argparse.ArgumentParser(
        prog=f"tools/{name}.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="print JSON, or write it to a file")


def run(
    command: Callable[[argparse.Namespace], int],
    given: argparse.Namespace,
    *,
    fixable: tuple[type[Exception], ...] = (ValueError,),
    failures: tuple[type[Exception], ...] = (),
    interrupted: str | None = None,
) -> int:
    """Call a command and return its exit code; an error is one sentence on stderr.

    Args:
        command: called with `given`, once it is known that the files of --json, --picture and --report can be written.
        given: the arguments.
        fixable: errors that the user can fix (ConfigError, ManifestError, WriteError, ...), which give 2.
        failures: errors of the work itself, which give 1.
        interrupted: said after Ctrl-C, which then gives 130; by default it is not caught.
    """
    try:
        for name in ("json", "picture", "report"):
            if (path := getattr(given, name, None)) not in (None, "-"):
                check_writable(path)
        return command(given)
    except failures as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except fixable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return 130


def check_at_least(given: argparse.Namespace, least: int, *names: str) -> None:
    """Raises ValueError: an option is below `least`."""
    for name in names:
        if getattr(given, name) < least:
            raise ValueError(f"{_option(name)} {getattr(given, name)} must be at least {least}")


def check_above_0(given: argparse.Namespace, *names: str) -> None:
    """Raises ValueError: an option is not a finite number above 0."""
    for name in names:
        if not 0 < getattr(given, name) < math.inf:
            raise ValueError(f"{_option(name)} {getattr(given, name):g} must be above 0")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def name_unread(entries: list[dict[str, str]], what: str, *, all_in: str) -> list[str]:
    """Lines with the path and reason of each clip that `what`, as many as a person reads."""
    lines = [f"{len(entries)} {what}:"] if entries else []
    lines += [f"  {entry['path']}: {entry['reason']}" for entry in entries[:MAX_NAMED]]
    if len(entries) > MAX_NAMED:
        lines.append(f"  and {len(entries) - MAX_NAMED} more: {all_in}")
    return lines
