"""The commands. `avssl NAME ...` and `python tools/NAME.py ...` call the main() of the module of that name; data sets
and the demo are scripts of folders that come along."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from avssl.files import Parser, shipped

COMMANDS = {
    "scan": "write the manifest of a folder of clips",
    "check": "decode every clip of a manifest and list its problems",
    "prepare": "make training copies of a folder of clips that decode fast",
    "train": "train as a configuration says, or resume a stopped run",
    "track": "track moving patches in the clips of a manifest",
    "mine": "mine agreement sets from the memory banks of a run",
    "embed": "write the embeddings of every clip of a manifest",
    "search": "find the neighbors of a clip in embeddings",
    "browse": "browse the neighbors of clips on a web page",
    "evaluate": "evaluate a trained network on a labeled set",
    "predict": "predict the classes of clips",
    "convert": "convert a run or a published checkpoint to a folder of weights",
    "report": "write the HTML report of a run",
}
SCRIPTS = {
    "datasets": "write the manifest of a published data set, or make the toy set",
    "demo": "make the toy set, train on it, mine, probe and report: minutes; --quick: one",
}


def main(arguments: list[str] | None = None) -> int:
    """Import the given command and call it with the arguments that follow (default: those of the process)."""
    listed = "\n".join(f"  {name:9} {what}" for name, what in (COMMANDS | SCRIPTS).items())
    parser = Parser(
        prog="avssl",
        usage="avssl COMMAND ...",
        description="Audio-visual self-supervised learning from folders of unlabeled clips.",
        epilog=f"commands:\n{listed}\n\navssl COMMAND --help tells more.",
    )
    parser.add_argument("--version", action="store_true", help="print the versions of avssl and torch's packages")
    parser.add_argument(
        "command", nargs="?", choices=[*COMMANDS, *SCRIPTS], metavar="COMMAND", help="one of those below"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.version:
        print(_versions())
        return 0
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    if given.command == "datasets":
        return _data_set(given.arguments)
    if given.command == "demo":
        return _run("experiments", "demo", given.arguments)
    return importlib.import_module(f"avssl.cli.{given.command}").main(given.arguments)


def _data_set(arguments: list[str]) -> int:
    scripts = sorted(shipped("datasets").glob("*.py"))
    names = [path.stem for path in scripts]
    listed = "\n".join(f"  {path.stem:9} {_first_line(path)}" for path in scripts)
    parser = Parser(
        prog="avssl datasets",
        description="Write the manifest of a published data set from a copy on this machine, or make one.",
        epilog=f"sets:\n{listed}",
    )
    parser.add_argument("name", choices=names, metavar="NAME", help="of the set; NAME --help tells more")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    given = parser.parse_args(arguments)
    return _run("datasets", given.name, given.arguments)


def _first_line(script: Path) -> str:
    """What a script says of itself."""
    return script.read_text().removeprefix('"""').splitlines()[0]


def _run(folder: str, name: str, arguments: list[str]) -> int:
    """Call a script in a process of its own, whose workers can import it; after Ctrl-C it has its say first."""
    with subprocess.Popen([sys.executable, str(shipped(folder) / f"{name}.py"), *arguments]) as script:
        while True:
            try:
                return script.wait()
            except KeyboardInterrupt:  # the script gets it too
                continue


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    import avssl

    found = [f"avssl {avssl.__version__}", f"Python {sys.version.split()[0]}"]
    for name in ("torch", "torchvision", "torchaudio", "av", "faiss-gpu", "faiss-cpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "\n".join(found)
