"""The commands: `avssl NAME ...` and `python tools/NAME.py ...` call the main() of the module of that name."""

import argparse
import importlib

COMMANDS = {
    "train": "train as a configuration says, or resume a stopped run",
    "extract": "write the embeddings of every clip of a manifest",
    "retrieve": "find the neighbors of a clip in embeddings",
    "mine": "mine agreement sets from the memory banks of a run",
    "prepare": "make training copies of a folder of clips that decode fast",
    "check": "decode every clip of a manifest and list its problems",
    "track": "track moving patches in the clips of a manifest",
    "predict": "predict the classes of clips",
    "evaluate": "evaluate a trained network on a labeled set",
    "convert": "convert a run or a published checkpoint to a folder of weights",
    "browse": "browse the neighbors of clips on a web page",
    "report": "write the HTML report of a run",
}


def main(arguments: list[str] | None = None) -> int:
    """Import the given command and call it with the arguments that follow (default: those of the process)."""
    parser = argparse.ArgumentParser(
        prog="avssl",
        usage="avssl COMMAND ...",
        description="Audio-visual self-supervised learning from folders of unlabeled clips.",
        epilog="\n".join(["commands:", *(f"  {name:9} {what}" for name, what in COMMANDS.items())])
        + "\n\navssl COMMAND --help tells more; python tools/COMMAND.py is the same.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return importlib.import_module(f"avssl.cli.{given.command}").main(given.arguments)
