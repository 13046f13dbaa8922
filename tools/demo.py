"""Make the toy set, train AVID and AVID-CMA on it, and write what came out: what `make demo` runs.

    python tools/demo.py --out runs/demo

Writes OUT/summary.json, OUT/report.html, the two runs and their embeddings, and ends with the command that shows these
in the browser. A stopped demo continues where it was. Exit code: 0 done,
1 stopped, 2 wrong call.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from avssl.demo import embeddings_of, run_demo

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="section.key=value for both trainings, such as optim.epochs=2")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", type=Path, help="folder of the toy set (default OUT/data)")
    parser.add_argument("--num-train", type=int, default=600, help="training clips of the toy set")
    parser.add_argument("--num-test", type=int, default=200, help="test clips of the toy set")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_args()
    data = arguments.data or arguments.out / "data"
    command = "make demo" if arguments.out == Path("runs/demo") else " ".join(["python", *sys.argv])
    make = [sys.executable, str(ROOT / "datasets" / "toy.py"), str(data)]
    make += ["--train", str(arguments.num_train), "--test", str(arguments.num_test)]
    if subprocess.run(make).returncode:
        return 2
    try:
        summary = run_demo(
            arguments.out,
            data=data,
            configs=ROOT / "configs" / "toy",
            overrides=arguments.overrides,
            command=command,
            say=lambda text: print(f"== {text}", file=sys.stderr),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if summary is None:
        return 1
    print(json.dumps(summary, indent=None if arguments.json else 1))
    print(f"report: {arguments.out / 'report.html'}", file=sys.stderr)
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    browsed = " ".join(str(embeddings_of(arguments.out, name)) for name in ("avid_cma", "avid"))
    print(f"see and hear it:\n  {shown} tools/browse.py {browsed} --open", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
