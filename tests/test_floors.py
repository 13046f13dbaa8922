"""Imports go downward only, and light parts stay light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "avssl"
FLOORS = [
    {"structs", "windows", "distributed", "config", "files", "logs", "trackers", "workers"},
    {"media", "transforms", "models", "objectives"},
    {"data", "mining"},
    {"methods"},
    {"training"},
    {"weights"},
    {"evaluate"},
    {"retrieval"},
    {"browser", "report"},
    {"cli"},
    {"__main__"},
]
ALLOWED_BESIDE = {0}  # on these floors parts may import one another (without cycles)


def floor_of(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def imports(path: Path) -> set[str]:
    """Names `avssl.<part>...` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "avssl" else {node.module}
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return {name for name in found if name.startswith("avssl.")}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    part = module(path).split(".")[1]
    for name in imports(path):
        other = name.split(".")[1]
        if other != part:
            above, below = floor_of(part), floor_of(other)
            assert below < above or (below == above and above in ALLOWED_BESIDE), f"{module(path)} imports {name}"


def test_no_import_cycles() -> None:
    modules = {module(path): path for path in FILES}
    edges = {name: {other for other in imports(path) if other in modules} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in modules:
        visit(name, ())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, banned",
    [
        ("avssl", "torch numpy"),
        ("avssl.media.probe", "torch cv2"),
        ("avssl.media.inspect", "torch cv2"),
        ("avssl.media.prepare", "torch cv2 pyarrow"),
        ("avssl.media.preview", "torch cv2 pyarrow matplotlib"),
        ("avssl.browser.previews", "torch cv2 pyarrow matplotlib"),
        ("avssl.media.decode", "torch"),
        ("avssl.cli", "torch numpy"),
        ("avssl.cli.check", "torch cv2"),
        ("avssl.cli.prepare", "torch cv2"),
        ("avssl.cli.track", "torch"),
    ],
)
def test_light_parts_stay_light(name: str, banned: str) -> None:
    code = f"import sys, {name}; print([n for n in {banned.split()} if n in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_no_test_imports_another_test() -> None:
    """What tests share is in tests/support and conftest.py."""
    tests = Path(__file__).parent
    assert not [
        f"{path.relative_to(tests)} imports {name}"
        for path in tests.rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (tests\S*(?:\.| import )test_\w+)", path.read_text(), re.M)
    ]
