"""Measure how fast a part of avssl is on this machine.

    python tools/benchmark.py mining
    python tools/benchmark.py mining --n 10000 --data uniform --json mining.json

mining: the search for agreement sets beside the dense definition, in one run and with the same threads.
Exit code: 0 done, 2 wrong call.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from avssl.benchmark.mining import DATA, benchmark_mining
from avssl.files import check_writable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="part", required=True)
    mining = commands.add_parser("mining", help="agreement sets: dense definition, ours and a fused FAISS index")
    mining.add_argument("--n", type=int, default=50_000, help="instances")
    mining.add_argument("--dim", type=int, default=128, help="embedding dimension")
    mining.add_argument("--k", type=int, default=32, help="positives per instance")
    mining.add_argument("--data", choices=DATA, default="clustered", help="shape of the synthetic banks")
    mining.add_argument("--seed", type=int, default=0)
    mining.set_defaults(
        measure=lambda given: benchmark_mining(
            num_rows=given.n, dim=given.dim, k=given.k, data=given.data, seed=given.seed
        )
    )
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, help="torch threads; torch's own choice if not given")
        command.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    arguments = parser.parse_args()
    try:
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        if arguments.threads is not None:
            if arguments.threads < 1:
                raise ValueError(f"--threads is {arguments.threads}, expected at least 1")
            torch.set_num_threads(arguments.threads)
        result = arguments.measure(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json == "-":
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:18} {value:.4g}" if isinstance(value, float) else f"{name:18} {value}")
    if arguments.json and arguments.json != "-":
        Path(arguments.json).write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
