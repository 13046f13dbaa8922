"""Measure how fast a part of avssl is on this machine.

    python tools/benchmark.py mining
    python tools/benchmark.py mining --n 10000 --data uniform --json mining.json
    python tools/benchmark.py mining --n 5000 20000 50000 100000
    python tools/benchmark.py step --json
    python tools/benchmark.py joint --threads 2
    python tools/benchmark.py encoders --names x3d_s slow_r50
    python tools/benchmark.py loader clips/manifest.parquet --prepared clips_128/manifest.parquet
    python tools/benchmark.py loader made/raw/manifest.parquet --make
    python tools/benchmark.py tracking --scenes 40
    python tools/benchmark.py search
    python tools/benchmark.py search --n 100000 --clients 10 --seconds 10

mining: the search for agreement sets beside the dense definition, in one run and with the same threads; for several N
also how the seconds grow with N.
step: a training step by part, beside the same step in float32 and torch's default memory layout.
joint: a step of AVID-CMA, temporal neighbours and tracked patches together, beside the steps of the three alone.
encoders: a table of what each encoder costs, as in docs/encoders.md.
loader: clips/s of a process beside plain PyAV in the same run, ms by stage, one worker and two, from the clips and from
their training copies; --make makes clips and copies first; --soak watches the memory of a worker.
tracking: how many tracks are found in made scenes, on a moving thing or not, and how well they stay on it.
search: the neighbour browser (tools/browse.py) with a million clips: how fast it starts and answers each way, with its
index and exactly, and what many clients at once do to it.
Exit code: 0 done, 2 wrong call.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from avssl.benchmark.encoders import as_markdown, benchmark_encoders
from avssl.benchmark.joint import benchmark_joint
from avssl.benchmark.loader import benchmark_loader, make_clips, make_copies, measure_memory
from avssl.benchmark.mining import DATA, benchmark_mining, benchmark_mining_growth
from avssl.benchmark.search import benchmark_search
from avssl.benchmark.step import benchmark_step
from avssl.benchmark.tracking import benchmark_tracking
from avssl.config import load
from avssl.data.manifest import read_manifest
from avssl.files import answer, check_writable
from avssl.mining.tracking import TRACKERS

ROOT = Path(__file__).parents[1]


def main() -> int:
    arguments = _parser().parse_args()
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
    answer(result, arguments.in_words(result), to=arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Each command says how it measures, and how what it found is told in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(in_words=_in_words)
    commands = parser.add_subparsers(dest="part", required=True)
    mining = commands.add_parser("mining", help="agreement sets: dense definition, ours and a fused FAISS index")
    mining.add_argument("--n", type=int, nargs="+", default=[50_000], help="instances; several: how time grows")
    mining.add_argument("--dim", type=int, default=128, help="embedding dimension")
    mining.add_argument("--k", type=int, default=32, help="positives per instance")
    mining.add_argument("--data", choices=DATA, default="clustered", help="shape of the synthetic banks")
    mining.add_argument("--seed", type=int, default=0)
    mining.set_defaults(measure=_mining)
    step = commands.add_parser("step", help="a training step by part, and the same in float32 and default layout")
    step.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the configuration that is trained")
    step.add_argument("--batch", type=int, default=8, help="clips per step")
    step.add_argument("--steps", type=int, default=5, help="steps that are counted")
    step.add_argument("--compile", action="store_true", help="torch.compile the encoders (ours)")
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(
        measure=lambda given: benchmark_step(
            overrides=given.overrides,
            batch_size=given.batch,
            num_steps=given.steps,
            compiled=given.compile,
            seed=given.seed,
        )
    )
    joint = commands.add_parser("joint", help="a step of the joint method beside the steps of its parts")
    joint.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the configuration that is trained")
    joint.add_argument("--batch", type=int, default=8, help="clips per step")
    joint.add_argument("--steps", type=int, default=5, help="turns that are counted")
    joint.add_argument("--seed", type=int, default=0)
    joint.set_defaults(
        measure=lambda given: benchmark_joint(
            overrides=given.overrides, batch_size=given.batch, num_steps=given.steps, seed=given.seed
        )
    )
    encoders = commands.add_parser("encoders", help="parameters, GFLOPs, clips/s of a training step, named maps")
    encoders.add_argument("--names", nargs="+", default=[], help="encoders; all if not given")
    encoders.add_argument("--batch", type=int, default=2, help="clips per step")
    encoders.add_argument("--steps", type=int, default=1, help="steps that are counted")
    encoders.set_defaults(
        measure=lambda given: benchmark_encoders(names=given.names, batch_size=given.batch, num_steps=given.steps),
        in_words=as_markdown,
    )
    loader = commands.add_parser("loader", help="clips/s from a manifest: plain PyAV, our loader, prepared copies")
    loader.add_argument("manifest", type=Path, help="of the clips; with --make it is written")
    loader.add_argument("overrides", nargs="*", metavar="data.key=value", help="lengths and rates (default: 8 at 112)")
    loader.add_argument("--prepared", type=Path, help="manifest of their training copies")
    loader.add_argument("--make", action="store_true", help="make clips there, and copies in FOLDER_prepared")
    loader.add_argument("--clips", type=int, default=48, help="windows per turn; with --make also clips (default: 48)")
    loader.add_argument("--rounds", type=int, default=5, help="turns that are counted (default: 5)")
    loader.add_argument("--step-rate", type=float, default=100.0, help="clips/s of a training step (default: 100)")
    loader.add_argument("--soak", type=int, metavar="N", help="instead load N clips in one worker, watch its memory")
    loader.set_defaults(measure=_loader, threads=1)
    tracking = commands.add_parser("tracking", help="tracks in made scenes: how many, on what, how well they follow")
    tracking.add_argument("--scenes", type=int, default=40, help="scenes that are made (default: 40)")
    tracking.add_argument("--tracker", choices=TRACKERS, default="kcf")
    tracking.add_argument("--seed", type=int, default=1000, help="of the first scene (default: 1000)")
    tracking.set_defaults(
        measure=lambda given: benchmark_tracking(num_scenes=given.scenes, first_seed=given.seed, tracker=given.tracker)
    )
    search = commands.add_parser("search", help="the neighbour browser: start, milliseconds, recall, many clients")
    search.add_argument("--n", type=int, default=1_000_000, help="clips (default: 1,000,000)")
    search.add_argument("--dim", type=int, default=128, help="embedding dimension")
    search.add_argument("--queries", type=int, default=100, help="of each way (default: 100)")
    search.add_argument("--clients", type=int, default=50, help="that ask at once (default: 50)")
    search.add_argument("--seconds", type=float, default=60.0, help="for how long (default: 60)")
    search.add_argument("--seed", type=int, default=0)
    search.set_defaults(measure=_search)
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, help="torch threads; torch's own choice if not given")
        command.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    return parser


def _loader(given: argparse.Namespace) -> dict[str, object]:
    overrides = [f"data.manifest={given.manifest}", "run.dir=none", "data.size=112", *given.overrides]
    data = load(ROOT / "configs" / "kinetics" / "avid.yaml", overrides).data
    prepared = given.prepared
    if given.make:
        make_clips(given.manifest, num_clips=given.clips)
        prepared = prepared or make_copies(given.manifest)
    raw = read_manifest(given.manifest)
    if given.soak:
        return measure_memory(raw, data=data, num_clips=given.soak)
    return benchmark_loader(
        raw,
        read_manifest(prepared) if prepared else None,
        data=data,
        num_clips=given.clips,
        num_rounds=given.rounds,
        step_rate=given.step_rate,
    )


def _search(given: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        return benchmark_search(
            Path(folder),
            num_rows=given.n,
            dim=given.dim,
            num_queries=given.queries,
            num_clients=given.clients,
            seconds=given.seconds,
            seed=given.seed,
        )


def _mining(given: argparse.Namespace) -> dict[str, object]:
    settings = {"dim": given.dim, "k": given.k, "data": given.data, "seed": given.seed}
    if len(given.n) == 1:
        return benchmark_mining(num_rows=given.n[0], **settings)
    return benchmark_mining_growth(sizes=given.n, **settings)


def _in_words(result: dict[str, object]) -> str:
    """A line for each figure; figures by name and tables are indented below theirs."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines += [name, _in_words({f"  {part}": figure for part, figure in value.items()})]
        elif isinstance(value, list):
            lines += [name, "  " + "".join(f"{column:>17}" for column in value[0])]
            lines += ["  " + "".join(_column(figure) for figure in row.values()) for row in value]
        else:
            lines.append(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")
    return "\n".join(lines)


def _column(figure: object) -> str:
    kind = {str: "", int: ","}.get(type(figure), ".4g")
    return f"{figure:>17{kind}}"


if __name__ == "__main__":
    sys.exit(main())
