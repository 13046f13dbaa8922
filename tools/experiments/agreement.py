"""Whether positives by agreement help, on the toy set: from one start, more steps of AVID, AVID-CMA and controls.

    python tools/experiments/agreement.py data --out runs/agreement --seeds 0 1 2
    python tools/experiments/agreement.py data --out runs/agreement --seeds 0 --rows recipe

DATA holds the set of `avssl datasets toy DATA`. The recipes are configs/toy/avid.yaml and avid_cma.yaml. All rows
of a seed start from the same AVID and take equally many more steps of equally large batches at the same rate. Two rows
are no part of the comparison: encoders trained on labels, the ceiling of a linear probe, as long as start and rows
together. `--rows recipe` are starts with one change each. `--test` takes the test clips of another set that was made
with the same seed and number of training clips. Results are cached; a stopped training is resumed.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiment
import torch
from experiment import cached, features_of, gain_of, measure, probe_accuracy, read_set, table_of, train_timed

from avssl import distributed
from avssl.config import Config, load
from avssl.data.manifest import Manifest
from avssl.methods.avid_cma import AVIDCMA
from avssl.mining.agreement import minable
from avssl.weights.load import load_run

COMMON = ("data.cache_gigabytes=4", "data.num_workers=2", "run.num_threads=2")  # the set fits: the workers do little
NUM_CLIPS = 3  # clips averaged per video wherever features are taken
NUM_POSITIVES = 5  # of the sets whose precision is measured
LAST_PART = {"lr": 1e-3, "schedule": "cosine", "warmup_epochs": 0.5, "epochs": 4}  # of configs/toy/avid_cma.yaml
LABELS = ("optim.schedule=cosine", "optim.milestones=[]", "optim.warmup_epochs=0.5", "optim.epochs=9")


class RandomSets(AVIDCMA):
    """AVID-CMA whose sets are drawn at random: what more terms and other negatives do without agreement."""

    @torch.no_grad()
    def mine(self) -> dict[str, float]:
        banks = {modality: bank.valid for modality, bank in self.banks.items()}
        (rows,) = minable(**banks, rule="consensus").nonzero(as_tuple=True)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(len(rows), len(rows), generator=generator).fill_diagonal_(2).argsort(dim=1)
        sets = torch.full_like(self.sets, -1)
        sets[rows] = rows[order[:, : sets.shape[1]].to(rows.device)]
        self.sets.copy_(distributed.broadcast(sets))
        self._mined = None
        return {}


@dataclass(frozen=True)
class Row:
    """A row of the table: its heading, a recipe of configs/toy, and what is changed in it."""

    heading: str
    config: str
    changed: tuple[str, ...] = ()


LONGER = ("method.in_batch_epochs=0", *(f"optim.{name}={value}" for name, value in LAST_PART.items()))
COMPARED = {
    "start": Row("the start: in-batch contrast, then AVID", "avid"),
    "in_batch": Row("in-batch contrast, longer", "avid", (*LONGER, "method.in_batch_epochs=1000")),
    "avid": Row("AVID, longer", "avid", LONGER),
    "consensus": Row("AVID-CMA", "avid_cma"),
    "union": Row("sets alike in video or audio", "avid_cma", ("method.rule=union",)),
    "video": Row("sets alike in video", "avid_cma", ("method.rule=video",)),
    "audio": Row("sets alike in audio", "avid_cma", ("method.rule=audio",)),
    "random": Row("random sets", "avid_cma", (f"method.name={Path(__file__).resolve()}:RandomSets",)),
    "labels_video": Row("video encoder trained on labels", "finetune", LABELS),
    "labels_audio": Row("audio encoder trained on labels", "finetune", (*LABELS, "method.modality=audio")),
}
BATCH_NORM, BATCH_64 = "method.head_batch_norm=true", "data.batch_size=64"
RECIPE = {
    "batch_norm": Row("heads with BatchNorm", "avid", (BATCH_NORM,)),
    "batch_64": Row("batch 64", "avid", (BATCH_64,)),
    "batch_norm_64": Row("heads with BatchNorm, batch 64", "avid", (BATCH_NORM, BATCH_64)),
    "bank_only": Row("no in-batch contrast before the banks", "avid", ("method.in_batch_epochs=0",)),
    "nce": Row("NCE", "avid", ("method.contrast=nce",)),
    "momentum": Row("bank momentum .9", "avid", ("method.bank_momentum=0.9",)),
    "cold": Row("temperature .07", "avid", ("method.temperature=0.07",)),
    "warm": Row("temperature .2", "avid", ("method.temperature=0.2",)),
    "slow": Row("learning rate 3e-4", "avid", ("optim.lr=3e-4",)),
    "fast": Row("learning rate 3e-3", "avid", ("optim.lr=3e-3",)),
    "hue": Row("hue jitter .1", "avid", ("data.jitter=[0.4,0.4,0.4,0.1]",)),
}
ROWS = COMPARED | RECIPE
BASE = "avid"  # which the other rows are compared with
ALONE = ("start", "labels_video", "labels_audio", *RECIPE)  # rows that start from random weights
COLUMNS = {
    **{f"linear {name}": ("linear", name) for name in ("video", "audio", "both")},
    "kNN both": ("knn", "both"),
    "v2a R@1": ("recall", "v2a_r1"),
    "a2v R@1": ("recall", "a2v_r1"),
    **{f"mined by {rule}": ("precision", rule) for rule in ("consensus", "union", "video", "audio")},
}


def config_of(name: str, arguments: argparse.Namespace, seed: int) -> Config:
    """The recipe with the common settings, then what the row changes, then the overrides of the call."""
    row, folder = ROWS[name], arguments.out / f"seed{seed}"
    own = [
        f"data.manifest={arguments.data / 'toy' / 'manifest.parquet'}",
        f"run.dir={folder / name}",
        f"run.seed={seed}",
    ]
    init = "null" if name in ALONE else str(folder / "start")
    return load(f"toy/{row.config}", [*COMMON, *row.changed, *arguments.overrides, *own, f"model.init={init}"])


def compare(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str] | None:
    """[{row: metrics} of each seed] and the table; None when a training was stopped."""
    toy = test_clips(arguments)
    results: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        results.append({})
        for name in names_of(arguments):
            config = config_of(name, arguments, seed)
            folder = Path(config.run.dir)
            if not train_timed(config):
                return None
            kept = folder / f"metrics_{toy.hash[:8]}.json"
            results[-1][name] = cached(kept, lambda folder=folder: measured(folder, toy))
    rows = {ROWS[name].heading: name for name in names_of(arguments)}
    return results, "\n\n".join([table_of(results, rows, COLUMNS), *differences(results, rows)])


def test_clips(arguments: argparse.Namespace) -> Manifest:
    """The set that is measured on. Raises ValueError unless its training clips are those of DATA."""
    ours = read_set(arguments.data / "toy")
    if arguments.test is None:
        return ours
    theirs = read_set(arguments.test / "toy")
    trained = [sorted(each.column("content_key")[each.column("split") == "train"]) for each in (ours, theirs)]
    if trained[0] != trained[1]:
        raise ValueError(f"--test {arguments.test}: other training clips than {arguments.data}, make both alike")
    return theirs


def differences(results: Sequence[dict[str, Any]], rows: dict[str, str]) -> list[str]:
    """A table of what each row names right beyond BASE, on the same test clips: means over seeds, and 95 % intervals
    over clips. None without BASE."""
    if BASE not in rows.values():
        return []
    lines = [f"| minus {ROWS[BASE].heading} | linear both | kNN both |", "|---|---|---|"]
    for heading, name in rows.items():
        if name == BASE or "right" not in results[0][name]:
            continue
        cells = (gain_of(results, name, BASE, kind) for kind in ("linear", "knn"))
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    return ["\n".join(lines)]


def measured(folder: Path, toy: Manifest) -> dict[str, Any]:
    """`measure` of a run; of an encoder that was trained on labels, the probe alone."""
    run = load_run(folder)
    if run.config.method["name"] != "finetune":
        return measure(run, toy, num_clips=NUM_CLIPS, num_positives=NUM_POSITIVES)
    return {"linear": probe_accuracy("linear", toy, features_of(run, toy, num_clips=NUM_CLIPS))["accuracy"]}


def names_of(arguments: argparse.Namespace) -> list[str]:
    """The rows that are asked for, and the start that others need."""
    asked = set(arguments.rows or COMPARED)
    if "recipe" in asked:
        asked |= {"start", *RECIPE}
    return [name for name in ROWS if name in asked or (name == "start" and not asked <= set(ALONE))]


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    for seed in arguments.seeds:
        yield from (experiment.describe(config_of(name, arguments, seed)) for name in names_of(arguments))


def main() -> int:
    parser = experiment.command(__doc__, data="folder with toy")
    experiment.takes_overrides(parser, out="runs/agreement")
    parser.add_argument("--test", type=Path, help="folder with toy: the same training clips and other test clips")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    listed = f"of {', '.join(COMPARED)} (default: these), {', '.join(RECIPE)} (recipe: start and these)"
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "recipe"], metavar="ROW", help=listed)
    return experiment.run(parser, compare, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
