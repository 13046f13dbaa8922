"""What the commands share: parser, common options, checks of numbers, errors and exit codes."""

import argparse
import faulthandler
import math
import sys
from collections.abc import Callable, Mapping
from os.path import expanduser
from pathlib import Path

from avssl.files import Parser, check_writable


def new_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of a command, from the `__name__` and `__doc__` of its module."""
    return Parser(prog=f"avssl {module.rpartition('.')[2]}", description=doc)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="PATH", type=expanduser, help="print JSON, or write it to a file"
    )


def add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", type=Path, help="parquet file of avssl scan or avssl datasets")
    parser.add_argument("--root", type=Path, help="folder of the clips, when it moved")


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
        command: called with `given` after a check that the files of --json, --picture and --report can be written.
        fixable: errors that the user can fix (ConfigError, ManifestError, WriteError, ...): exit code 2.
        failures: errors of the work itself: exit code 1.
        interrupted: message after Ctrl-C, which then gives 130; None = Ctrl-C is not caught.
    """
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # a crash of native code names the line that it happened in
    try:
        for name in ("json", "picture", "report"):
            if (path := getattr(given, name, None)) not in (None, "-"):
                check_writable(path)
        return command(given)
    except failures as error:
        info(f"error: {error}")
        return 1
    except fixable as error:
        info(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        info(f"\ninterrupted: {interrupted}")
        return 130


def info(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def warn_unread(errors: Mapping[str, str]) -> int:
    """Name the files {path: reason} that could not be read, and return the exit code: 1 if there are any."""
    for path, reason in errors.items():
        info(f"not read: {path}: {reason.split(f'{path}: ', 1)[-1]}")  # which may begin with the whole path
    return 1 if errors else 0


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
