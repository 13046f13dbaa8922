"""The options of a run as a list: key, default, what is expected, and what it means, read from the classes."""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from avssl.config import Config, Options, expected_of, hint, shown
from avssl.methods import METHODS

SECTIONS = ("data", "model", "optim", "run")


def list_options(section: str) -> list[str]:
    """A line for each option of a section, of a method by its name, or of all sections.

    Raises:
        ValueError: there is neither.
    """
    if section == "all":
        return [line for name in SECTIONS for line in list_options(name)]
    if section in METHODS:
        return list(_lines(METHODS[section].Options, "method."))
    if section not in SECTIONS:
        raise ValueError(f"--list-options {section}: {hint(section, [*SECTIONS, *METHODS], 'sections and methods')}")
    return list(_lines(Config.model_fields[section].annotation, f"{section}."))


def _lines(options: type[Options], prefix: str) -> Iterator[str]:
    meanings = _meanings(options)
    for name, field in options.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from _lines(field.annotation, f"{prefix}{name}.")
            continue
        given = field.get_default(call_default_factory=True)
        default = "" if given is PydanticUndefined else f"={shown(given)}"
        meaning = f": {meanings[name]}" if name in meanings else ""
        yield f"{prefix}{name}{default}  ({expected_of(field.annotation, field.metadata)}){meaning}"


def _meanings(options: type[Options]) -> dict[str, str]:
    """{field: the comment behind it, or the one on the line before it}, of a class and those that it derives from."""
    found: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        if not (issubclass(owner, Options) and owner is not Options and _has_source(owner)):
            continue
        source = inspect.cleandoc("\n" + inspect.getsource(owner))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                before = comments.get(node.lineno - 1)
                own = comments.get(node.end_lineno or node.lineno)
                token = own or (before if before is not None and _stands_alone(before) else None)
                if token is not None:
                    found[node.target.id] = token.string.lstrip("# ")
    return found


def _stands_alone(token: tokenize.TokenInfo) -> bool:
    return token.line.lstrip().startswith("#")


def _has_source(owner: Any) -> bool:
    """Whether the class was written, not made (its source is then that of who made it)."""
    return owner.__module__.startswith("avssl.") and f"class {owner.__name__}(" in inspect.getsource(owner)
