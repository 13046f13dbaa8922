"""The methods side by side on the toy set and on digits: the same encoders and clips, as many steps of as many clips.

    python tools/experiments/families.py data --digits digits --out runs/families
    python tools/experiments/families.py data --out runs/families --only simclr moco_v3 --seeds 0
    python tools/experiments/families.py data --out runs/families --steps

DATA holds the set of `avssl datasets toy DATA`, --digits that of `avssl datasets digits MEDIA DIGITS`;
patch and joint need --tracks, of avssl track on the toy set, and are left out without. A row is a configuration of
configs/toy or configs/digits. Its learning rate is that of RATES whose features of the first seed a linear probe reads
best on a third of the toy set's training clips, which the probe has not seen. Test clips choose nothing. Digits are
trained once, at the toy set's rate, and VARIANTS once, at the rate of the row that they vary. The row `random` is what
infonce starts from. Finished rows lie in docs/results/data and are not trained again; a row of other settings is
refused by name. A stopped training is resumed. --steps trains nothing and times a step of every row on the toy set.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import experiment
import numpy as np
from experiment import (
    SECONDS,
    cached,
    features_of,
    info,
    load_either,
    probe_accuracy,
    recall_of,
    rows_of,
    spread,
    train_timed,
)

from avssl.config import Config, load
from avssl.data.manifest import Manifest, read_manifest
from avssl.files import shipped
from avssl.methods import method_options
from avssl.structs import Progress
from avssl.training.checkpoint import LAST, load_checkpoint
from avssl.training.setup import set_up
from avssl.training.step import train_step
from avssl.weights.load import Run, load_run

DATA = Path(__file__).resolve().parents[2] / "docs" / "results" / "data"
RATES = (1e-3, 3e-3, 1e-2)
COMMON = (
    *("data.clips_per_video=1", "data.batch_size=64", "optim.epochs=3", "optim.schedule=cosine", "optim.milestones=[]"),
    *("optim.warmup_epochs=0.5", "data.cache_gigabytes=4", "data.num_workers=1", "run.num_threads=2"),
)
SECONDS_EACH = 60  # that a training should take at most
WARM, TURNS = 2, 7  # steps that are timed
NUM_CLIPS = 1  # of a video wherever features are taken
ALONE = ("finetune", "avid_cma")  # knows labels; starts from another row
OWN = {("toy", "avid"): ("method.in_batch_epochs=1",)}  # of the few epochs here
VARIANTS = {  # row: the row that it varies
    **{f"simclr_{name}": "simclr" for name in ("adversarial", "differences", "unequal")},
    **{f"{name}_hardest": name for name in ("moco", "npid")},
    "swav_differences": "swav",
    "seer": "swav",
    "cpc_dpc": "cpc",
    "byol_vit": "byol",
    "pirl_rotation": "pirl",
}
RANDOM = "random"  # the row of untrained encoders
LEFT_OUT = {"run.dir", "run.seed", "run.num_threads", "optim.lr", "data.manifest", "data.num_workers"}  # not compared


@dataclass(frozen=True)
class Set:
    """What the rows are trained and measured on: folder of configs/, manifest, and seeds."""

    name: str
    manifest: Path
    seeds: tuple[int, ...]


def sets_of(arguments: argparse.Namespace) -> list[Set]:
    seeds = tuple(arguments.seeds)
    found = [Set("toy", arguments.data / "toy" / "manifest.parquet", seeds)]
    if arguments.digits is not None:
        found.append(Set("digits", arguments.digits / "manifest.parquet", seeds[:1]))
    return found


def rows_to_train(arguments: argparse.Namespace, each: Set) -> list[str]:
    """Names of the configurations that are asked for, in alphabetical order, variants last."""
    names = {path.stem for path in (shipped("configs") / each.name).glob("*.yaml")} - set(ALONE)
    names = sorted(names, key=lambda name: (name in VARIANTS, name))
    unknown = set(arguments.only or ()) - {path.stem for path in shipped("configs").glob("*/*.yaml")}
    if unknown:
        raise ValueError(f"--only {', '.join(sorted(unknown))}: no configuration has this name")
    if arguments.tracks is None:
        names = [name for name in names if name not in ("patch", "joint")]
    return [name for name in names if not arguments.only or name in arguments.only]


def config_of(arguments: argparse.Namespace, each: Set, name: str, *, seed: int, rate: float) -> Config:
    folder = arguments.out / each.name / name / f"seed{seed}_rate{rate:g}"
    own = [f"data.manifest={each.manifest}", f"run.dir={folder}", f"run.seed={seed}", f"optim.lr={rate}"]
    tracks = {"patch": "method.tracks", "joint": "method.parts.patch.tracks"}
    own += [f"{tracks[name]}={arguments.tracks}"] if name in tracks else []
    own += ["model.init=null"] if name == "joint" else []
    own += ["method.parts.avid_cma.mine_from_epoch=1"] if name == "joint" else []
    common = [*COMMON, *OWN.get((each.name, name), ()), *arguments.overrides]
    return load(f"{each.name}/{name}", [*common, *own])


def settings_of(config: Config) -> dict[str, Any]:
    """What a row was trained with, whatever the seed, rate and machine: {section.key: value}."""
    method = json.loads(json.dumps(method_options(config)))
    return {
        f"{section}.{key}": value
        for section, values in (config.model_dump(mode="json") | {"method": method}).items()
        for key, value in values.items()
        if f"{section}.{key}" not in LEFT_OUT
    }


def check_settings(kept: Path, config: Config) -> None:
    """Raise ValueError where a kept row was measured with other settings; what did not exist then does not count."""
    before, now = json.loads(kept.read_text())["settings"], settings_of(config)
    changed = [key for key, value in before.items() if now.get(key) != value]
    if changed:
        raise ValueError(f"{kept} was measured with another {changed[0]}: delete it and {Path(config.run.dir).parent}")


def run_row(arguments: argparse.Namespace, each: Set, *, name: str, manifest: Manifest) -> dict[str, Any] | None:
    rates, seeds = rates_and_seeds(arguments, each, name)

    def config(seed: int, rate: float) -> Config:
        return config_of(arguments, each, name, seed=seed, rate=rate)

    return swept(config, rates, seeds, manifest, measure=measure)


def swept(
    config_of: Callable[[int, float], Config],
    rates: Sequence[float],
    seeds: Sequence[int],
    manifest: Manifest,
    *,
    measure: Callable[[Run, Manifest], dict[str, Any]],
) -> dict[str, Any] | None:
    """{rate, held_out, settings, seeds: [metrics]} at the rate that held-out training clips chose on the first seed;
    None when a training was stopped.

    Args:
        config_of: (seed, rate) -> configuration; rates in any unit.
        measure: gives the metrics of a trained run.
    """
    held_out: dict[float, dict[str, float]] = {}
    for rate in rates if len(rates) > 1 else ():
        folder = trained(config_of(seeds[0], rate))
        if folder is None:
            return None
        held_out[rate] = cached(folder / "held_out.json", partial(accuracy_on_held_out, folder, manifest))
    best = max(rates, key=lambda rate: max(held_out.get(rate, {"": 0.0}).values()))
    results = []
    for seed in seeds:
        folder = trained(config_of(seed, best))
        if folder is None:
            return None

        def work(folder: Path = folder) -> dict[str, Any]:
            costs = cached(folder / SECONDS, dict) | {"steps": load_checkpoint(folder / LAST)["step"]}
            costs.pop("train_seconds", None)  # other work may run beside; see --steps
            return measure(load_run(folder), manifest) | costs

        results.append(cached(folder / "metrics.json", work))
    config = config_of(seeds[0], best)
    chosen = {f"{config_of(seeds[0], rate).optim.lr:g}": found for rate, found in held_out.items()}
    return {"rate": config.optim.lr, "held_out": chosen, "settings": settings_of(config), "seeds": results}


def trained(config: Config) -> Path | None:
    """The folder of a training, which is done now; None when it was stopped."""
    folder = Path(config.run.dir)
    return folder if (folder / SECONDS).exists() or train_timed(config) else None


def rates_and_seeds(arguments: argparse.Namespace, each: Set, name: str) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Of a row. Raises ValueError where the row whose rate it takes is not measured yet."""
    if each.name == "toy" and name not in VARIANTS:
        return RATES, each.seeds
    base = VARIANTS.get(name, name)
    kept = kept_in(arguments, "toy", base)
    if not kept.exists():
        raise ValueError(f"{name} takes the rate of {base} on toy, which is not measured yet: add it to --only")
    return (json.loads(kept.read_text())["rate"],), each.seeds[:1]


def kept_in(arguments: argparse.Namespace, set_name: str, name: str) -> Path:
    return arguments.kept / f"families_{set_name}_{name}.json"


def run_random(arguments: argparse.Namespace, each: Set, *, manifest: Manifest) -> dict[str, Any] | None:
    """The row of what infonce starts from, with statistics of training clips in BatchNorm."""
    results = []
    for seed in each.seeds:
        config = config_of(arguments, each, "infonce", seed=seed, rate=RATES[0])
        folder = Path(config.run.dir)
        if not (folder / LAST).exists() and not train_timed(config):
            return None
        run = load_either(folder, manifest, rows_of(manifest)["train"], trained=False)
        results.append(cached(folder / "metrics_random.json", lambda run=run: measure(run, manifest)))
    return {"settings": settings_of(config), "seeds": results}


def accuracy_on_held_out(folder: Path, manifest: Manifest) -> dict[str, float]:
    """Linear accuracy of each modality on a third of the training clips, learned on the others."""
    own = rows_of(manifest)["train"]
    held_out = np.random.default_rng(0).permutation(len(own)) < len(own) // 3
    found = features_of(load_run(folder), manifest, num_clips=NUM_CLIPS)
    return probe_accuracy("linear", manifest, found, train=own[~held_out], test=own[held_out])["accuracy"]


def measure(run: Run, manifest: Manifest) -> dict[str, Any]:
    """Linear and kNN accuracy of each modality on the test clips, with chance; recall across modalities where there are
    both, and the number of parameters, copies included."""
    found = features_of(run, manifest, num_clips=NUM_CLIPS)
    probes = {kind: probe_accuracy(kind, manifest, found) for kind in ("linear", "knn")}
    metrics = {kind: probe["accuracy"] for kind, probe in probes.items()}
    metrics |= {"chance": max(probes["linear"]["chance"].values())}
    metrics |= {"parameters": sum(p.numel() for p in run.method.parameters())}
    if set(run.method.encoders) == {"video", "audio"} and all(run.method.head(m) for m in run.method.encoders):
        metrics["recall"] = recall_of(found, manifest)
    return metrics


def compare(arguments: argparse.Namespace) -> tuple[dict[str, Any], str] | None:
    """{set: {row: result}} and the tables; None when a training was stopped."""
    results: dict[str, dict[str, Any]] = {}
    for each in sets_of(arguments):
        manifest = read_manifest(each.manifest)
        results[each.name] = {}
        names = rows_to_train(arguments, each)
        for name in ([RANDOM] if "infonce" in names else []) + names:
            kept = kept_in(arguments, each.name, name)
            config = config_of(arguments, each, "infonce" if name == RANDOM else name, seed=0, rate=RATES[0])
            if kept.exists():
                check_settings(kept, config)
            else:
                info(f"== {each.name} {name}")
                make = run_random if name == RANDOM else partial(run_row, name=name)
                found = make(arguments, each, manifest=manifest)
                if found is None:
                    return None
                cached(kept, lambda found=found: found)
            results[each.name][name] = json.loads(kept.read_text())
    toy = results.get("toy", {})
    return results, "\n\n".join(f"{name}\n\n{table(rows, every=toy)}" for name, rows in results.items())


def time_steps(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """{row: seconds of a step, of_avid: over those of AVID's}, medians of turns that the two take, and a table."""
    toy = sets_of(arguments)[0]

    def prepared(name: str) -> Callable[[], float]:
        config = config_of(arguments, toy, name, seed=0, rate=RATES[0])
        run = set_up(config.replace(data=config.data.model_copy(update={"num_workers": 0})))
        batch = next(iter(run.loader)).to(run.device)
        run.model.train()

        def step() -> float:
            since = time.perf_counter()
            train_step(run.model, run.optimizer, batch, config, Progress(0, 0, 1))[0].loss.item()
            return time.perf_counter() - since

        return step

    avid, found = prepared("avid"), {}
    for name in rows_to_train(arguments, toy):
        step = prepared(name)
        turns = np.array([(step(), avid()) for _ in range(WARM + TURNS)])[WARM:]
        seconds, of_avid = np.median(turns, axis=0)[0], np.median(turns[:, 0] / turns[:, 1])
        found[name] = {"seconds": float(seconds), "of_avid": float(of_avid)}
        info(f"{name}: {seconds:.2f} s, {of_avid:.2f} of AVID's")
    lines = [f"| {name} | {row['seconds']:.2f} | {row['of_avid']:.2f} |" for name, row in found.items()]
    return found, "\n".join(["| | s per step | of AVID's |", "|---|---|---|", *lines])


def table(rows: dict[str, Any], *, every: Iterable[str]) -> str:
    """A table of rows; those of `every` that this set lacks are named."""
    columns = {
        "linear video": ("linear", "video"),
        "linear audio": ("linear", "audio"),
        "kNN video": ("knn", "video"),
        "kNN audio": ("knn", "audio"),
        "v2a R@1": ("recall", "v2a_r1"),
    }
    costs = ("rate", "GB", "M parameters")
    lines = [f"| | {' | '.join((*columns, *costs))} |", "|---|" + "---|" * len((*columns, *costs))]
    chance = f"{next(iter(rows.values()))['seeds'][0]['chance']:.3f}" if rows else ""
    lines.append(f"| chance | {' | '.join([chance] * 4)} |" + " |" * (1 + len(costs)))
    for name, row in rows.items():
        cells = []
        for group, key in columns.values():
            values = [seed[group][key] for seed in row["seeds"] if key in seed.get(group, {})]
            cells.append(spread(values))
        memory = max((seed["peak_gigabytes"] for seed in row["seeds"] if "peak_gigabytes" in seed), default=None)
        cells += [
            f"{row['rate']:g}" if "rate" in row else "",
            f"{memory:.2f}" if memory else "",
            f"{row['seeds'][0]['parameters'] / 1e6:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name} | toy only |" + " |" * (len((*columns, *costs)) - 1) for name in every if name not in rows]
    return "\n".join(lines)


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.steps:
        yield f"time {TURNS} steps of {len(rows_to_train(arguments, sets_of(arguments)[0]))} rows and of AVID in turns"
        return
    total = 0
    for each in sets_of(arguments):
        for name in rows_to_train(arguments, each):
            times = 1 if name in VARIANTS or each.name == "digits" else len(RATES) + len(each.seeds) - 1
            config = config_of(arguments, each, name, seed=each.seeds[0], rate=RATES[0])
            total += times
            yield f"{experiment.describe(config)}, {times} times"
    yield f"train {total} times in all: {total} minutes if each takes {SECONDS_EACH} s"


def main() -> int:
    parser = experiment.takes_overrides(experiment.command(__doc__, data="folder with toy"), out="runs/families")
    parser.add_argument("--digits", type=Path, help="folder of the digits (default: toy alone)")
    parser.add_argument("--tracks", type=Path, help="table of tracks of the toy set")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="names of configurations (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of toy; digits take the first")
    parser.add_argument("--steps", action="store_true", help="time a step of every row instead")
    parser.add_argument("--kept", type=Path, default=DATA, help="folder of finished rows (default: docs/results/data)")
    return experiment.run(parser, lambda given: (time_steps if given.steps else compare)(given), plan=plan)


if __name__ == "__main__":
    sys.exit(main())
