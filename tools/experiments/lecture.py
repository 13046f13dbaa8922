"""The claims of the lecture on the toy set: what it says, what a large study on video found, what is found here.

    python tools/experiments/lecture.py data --out runs/lecture
    python tools/experiments/lecture.py data --out runs/lecture --only batch epochs --seeds 0 1 2

DATA holds the sets of `avssl datasets toy DATA`, and for the claim `curated` that of `avssl datasets toy DATA/cluttered
--cluttered`. A row is a configuration of configs/toy with what its claim changes; its learning rate is the one that
families.py found (the configuration's, where it was not measured) times 1/2, 1 or 2 (and times the batch, over 64),
whichever a linear probe reads best on a third of the training clips. Test clips choose nothing. All rows of a claim see
as many clips, but for the last of an epoch that fill no batch. OUT/report.html shows the same with figures. Finished
rows lie in docs/results/data and are not trained again; a row of other settings is refused by name, and rows of
families.py are its own. A stopped training is resumed.
Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import experiment
import families
import numpy as np
from experiment import cached, features_of, info, probe_accuracy, read_set, rows_of, spread
from matplotlib.figure import Figure
from transfer import TUNED

from avssl.config import Config, load
from avssl.data.manifest import Manifest
from avssl.evaluate.measure import EvalSpec, measure_finetuned
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import read_splits
from avssl.files import atomic_write
from avssl.logs import read_log
from avssl.report.page import Section, html, note, page, png
from avssl.report.page import table as html_table
from avssl.training.session import TrainingError
from avssl.weights.features import clip_vectors
from avssl.weights.load import Run

FACTORS = (0.5, 1.0, 2.0)  # of the usual learning rate
ALIKE = ("method.interval=uniform",)  # positives from other seconds for every method of a comparison
NO_CHANGE = {"data.jitter": "[0,0,0,0]", "data.gray": "0", "data.min_crop_area": "0.99"}  # augmentations taken away
LINEAR = {"linear video": ("linear", "video"), "kNN video": ("knn", "video")}
BOTH = LINEAR | {
    "linear audio": ("linear", "audio"),
    "linear both": ("linear", "both"),
    "v2a R@1": ("recall", "v2a_r1"),
}

Columns = Mapping[str, tuple[str, str]]  # {heading: (group, metric)}


@dataclass(frozen=True)
class Row:
    heading: str
    config: str  # of configs/toy
    changed: tuple[str, ...] = ()
    rate: float = 1.0  # times the usual one of its configuration
    data: str = "toy"  # folder in DATA that it is trained on; all are measured on toy
    of_families: bool = False  # the row of families.py, which measures it


@dataclass(frozen=True)
class Claim:
    """What the lecture says, what Feichtenhofer et al. 2021 found on video ("": nothing), and how it is looked at."""

    said: str
    on_video: str
    rows: tuple[Row, ...]
    columns: Columns = field(default_factory=lambda: LINEAR)
    measure: Callable[[Run, Manifest], dict[str, Any]] = families.measure
    over: str = ""  # the group of columns that the figure draws each row over; without: a dot for each row


def stages(run: Run, manifest: Manifest) -> dict[str, Any]:
    """`families.measure`, and the linear probe on every map of the video encoder."""
    rows = np.union1d(*rows_of(manifest).values())
    found = clip_vectors(run, manifest, rows, num_clips=1, maps=True, progress="maps")
    accuracy = {}
    for name, vectors in found.vectors["video"].items():
        one = dataclasses.replace(found, vectors={"video": {"pool": vectors}})
        accuracy[name] = probe_accuracy("linear", manifest, one)["accuracy"]["video"]
    return families.measure(run, manifest) | {"stage": accuracy}


def epochs(run: Run, manifest: Manifest) -> dict[str, Any]:
    """`families.measure`, and the vote of nearest neighbors after each epoch, as the training logged it."""
    lines = [line for line in read_log(run.path.parent / "log.jsonl") if "probe/video" in line]
    return families.measure(run, manifest) | {"after": {f"{line['epoch'] + 1}": line["probe/video"] for line in lines}}


def few_labels(run: Run, manifest: Manifest) -> dict[str, Any]:
    """`families.measure`; few: accuracy of the video encoder fine-tuned on shares of the labels {share}; other: of a
    linear probe on the frozen one, on the motions of toy_actions {modality}."""
    few = {}
    for share in (0.01, 0.1):
        spec = EvalSpec(
            protocol="finetune",
            manifest=manifest,
            manifest_path=str(manifest.root),
            splits=read_splits(manifest),
            options=Options(share=share),
            num_clips=1,
            num_crops=1,
        )
        result = measure_finetuned(run, spec, out=run.path.parent / f"few_{share:g}", baseline=False, overrides=TUNED)
        if result is None:
            raise TrainingError(f"stopped while fine-tuning {run.path.parent}: the same command goes on")
        few[f"{share:.0%}"] = result["scores"]["video"]["mean"]
    actions = read_set(manifest.root.parent / "toy_actions")
    other = probe_accuracy("linear", actions, features_of(run, actions, num_clips=1))
    return families.measure(run, manifest) | {"few": few, "other": other["accuracy"]}


def without(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}={NO_CHANGE[name]}" for name in names)


def batches(config: str) -> tuple[Row, ...]:
    """Equal epochs (batches that are not full are left out); the rate grows with the batch."""
    return tuple(
        Row(f"{config}, batch {size}", config, (*ALIKE, f"data.batch_size={size}"), size / 64) for size in (16, 64, 256)
    )


def augmentations(config: str) -> tuple[Row, ...]:
    plain = ("method.first={}", "method.second={}") if config in ("byol", "barlow") else ()  # no blur, no solarizing
    steps = {"all": (), "no color": ("data.jitter", "data.gray"), "no color, no crops": tuple(NO_CHANGE)}
    return tuple(Row(f"{config}, {name}", config, (*ALIKE, *plain, *without(gone))) for name, gone in steps.items())


def widths(config: str, option: str) -> tuple[Row, ...]:
    return tuple(Row(f"{config}, {width}", config, (f"method.{option}={width}",)) for width in (16, 128, 1024))


def switches(**options: bool) -> tuple[str, ...]:
    return tuple(f"method.{name}={str(on).lower()}" for name, on in options.items())


STAGES = {f"linear {name}": ("stage", name) for name in ("conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool")}
FEW = {"1 % of labels": ("few", "1%"), "10 % of labels": ("few", "10%"), "other classes": ("other", "video")}
AFTER = {f"after {epoch} epochs": ("after", str(epoch)) for epoch in (1, 2, 3)}
CLAIMS = {
    "layers": Claim(
        "Features of pretext tasks get worse towards the last layer, those of PIRL do not.",
        "",
        (Row("rotation", "pretext_rotation"), Row("jigsaw", "pretext_jigsaw"), Row("PIRL", "pirl")),
        STAGES,
        stages,
        over="stage",
    ),
    "batch": Claim(
        "SimCLR needs large batches, BYOL does not, Barlow Twins lies between; queues and banks do not either.",
        "",
        tuple(row for config in ("simclr", "byol", "barlow", "moco") for row in batches(config)),
    ),
    "augmentations": Claim(
        "SimCLR and Barlow Twins are alike sensitive to augmentations that are taken away, BYOL is robust.",
        "MoCo and BYOL are the most robust (weakest augmentations: MoCo 42.2, BYOL 32.4).",
        tuple(row for config in ("simclr", "byol", "barlow", "moco") for row in augmentations(config)),
    ),
    "width": Claim(
        "Barlow Twins gains from wider projections, BYOL and SimSiam little.",
        "",
        (*widths("barlow", "embedding_dim"), *widths("byol", "embedding_dim"), *widths("simsiam", "embedding_dim")),
    ),
    "asymmetry": Claim(
        "A predictor or a stopped gradient does not help Barlow Twins, both together hurt.",
        "",
        tuple(
            Row(
                f"{'with' if predictor else 'no'} predictor, {'stopped' if stopped else 'full'} gradient",
                "barlow",
                switches(predictor=predictor, stop_gradient=stopped),
            )
            for predictor in (False, True)
            for stopped in (False, True)
        ),
    ),
    "codes": Claim(
        "Soft codes are better than hard ones; the number of prototypes matters little.",
        "",
        (
            *(Row(f"{number} prototypes", "swav", (f"method.num_prototypes={number}",)) for number in (24, 60, 240)),
            Row("60 prototypes, hard codes", "swav", ("method.codes=hard",)),
            Row("60 prototypes, power-law marginals", "swav", ("method.marginals=power_law",)),
        ),
    ),
    "epochs": Claim(
        "Clustering converges in fewer epochs.",
        "SwAV is the strongest at 50 epochs.",
        tuple(Row(config, config, ALIKE) for config in ("swav", "simclr", "moco", "byol")),
        AFTER | LINEAR,
        epochs,
        over="after",
    ),
    "across": Claim(
        "Across picture and sound plain contrast is the easiest to optimize.",
        "",
        tuple(
            Row(config, config, of_families=True)
            for config in ("simclr_across", "infonce", "swav_across", "byol_across", "barlow_across")
        ),
        BOTH,
    ),
    "curated": Claim(
        "One thing in the middle of every picture helps; clips that nobody has chosen show several, or none.",
        "MoCo on 240,000 clips: K400 65.8, curated IG 63.2, unbalanced 63.1, random 60.6.",
        tuple(
            Row(f"{config}, {data}", config, ALIKE, data=folder)
            for config in ("swav", "moco")
            for data, folder in (("curated", "toy"), ("cluttered", "cluttered/toy"))
        ),
    ),
    "few_labels": Claim(
        "With few labels, pretraining is worth the most; to other classes it transfers as well as labels do.",
        "",
        (
            Row("no pretraining", "simclr", rate=0.0),
            *(Row(config, config) for config in ("simclr", "swav", "byol", "infonce")),
            Row("labels of all clips", "finetune", ("method.warmup_epochs=0",)),
        ),
        FEW | LINEAR,
        few_labels,
    ),
    "signal": Claim(
        "What tells positives: augmentation, time, sound, or agreement.",
        "Positives from other times: SimCLR 36.1 to 60.5, SwAV 38.6 to 61.6.",
        (
            Row("augmentation (SimCLR, same seconds)", "simclr", ("method.interval=same",)),
            Row("time (SimCLR, other seconds)", "simclr", of_families=True),
            Row("time (neighbour)", "neighbour", of_families=True),
            Row("sound (InfoNCE)", "infonce", of_families=True),
            Row("sound (AVID)", "avid", of_families=True),
        ),
        BOTH,
    ),
    "no_batch_norm": Claim(
        "BYOL learns on an encoder without BatchNorm too.",
        "BYOL without BatchNorm in its MLP (here it has it), SyncBN and LARS: 32.9, no collapse.",
        (
            Row("BYOL, R(2+1)D with BatchNorm", "byol", (*ALIKE, "data.size=48")),
            Row("BYOL, ViT with LayerNorm", "byol_vit"),
        ),
    ),
}


def config_of(arguments: argparse.Namespace, claim: str, row: Row, *, seed: int, factor: float) -> Config:
    """The row's configuration with the common settings, at its rate times a factor."""
    folder = arguments.out / claim / slug(row) / f"seed{seed}_x{factor:g}"
    common = [*families.COMMON, *row.changed, *arguments.overrides]
    kept = families.kept_in(arguments, "toy", row.config)
    usual = json.loads(kept.read_text())["rate"] if kept.exists() else load(f"toy/{row.config}").optim.lr
    own = [f"data.manifest={arguments.data / row.data / 'manifest.parquet'}", f"run.dir={folder}", f"run.seed={seed}"]
    return load(f"toy/{row.config}", [*common, *own, f"optim.lr={usual * row.rate * factor:g}"])


def slug(row: Row) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in row.heading.lower())


def measured(arguments: argparse.Namespace, claim: str, row: Row, *, toy: Manifest) -> dict[str, Any] | None:
    """{rate, settings, seeds: [metrics]} of a row; None when a training was stopped."""
    if row.of_families:
        kept = families.kept_in(arguments, "toy", row.config)
        if not kept.exists():
            raise ValueError(f"{row.config} is measured by families.py --only {row.config}: call it first")
        return json.loads(kept.read_text())
    kept = arguments.kept / f"lecture_{claim}_{slug(row)}.json"
    if kept.exists():
        families.check_settings(kept, config_of(arguments, claim, row, seed=arguments.seeds[0], factor=1.0))
        return json.loads(kept.read_text())
    info(f"== {claim}: {row.heading}")

    def config(seed: int, factor: float) -> Config:
        return config_of(arguments, claim, row, seed=seed, factor=factor)

    found = families.swept(config, FACTORS, arguments.seeds, toy, measure=CLAIMS[claim].measure)
    return cached(kept, lambda: found) if found else None


def compare(arguments: argparse.Namespace) -> tuple[dict[str, Any], str] | None:
    """{claim: {row: result}} and the text; None when a training was stopped."""
    toy, results = read_set(arguments.data / "toy"), {}
    for name in arguments.only or CLAIMS:
        results[name] = {}
        for row in CLAIMS[name].rows:
            result = measured(arguments, name, row, toy=toy)
            if result is None:
                return None
            results[name][row.heading] = result
    parts = []
    for name, rows in results.items():
        parts += [f"## {name}", *said(CLAIMS[name]), table(rows, CLAIMS[name].columns)]
    with atomic_write(arguments.out / "report.html") as temporary:
        temporary.write_text(page_of(results), encoding="utf-8")
    info(f"report: {arguments.out / 'report.html'}")
    return results, "\n\n".join(parts)


def said(claim: Claim) -> list[str]:
    on_video = [f"On video (Feichtenhofer et al. 2021): {claim.on_video}"] if claim.on_video else []
    return [f"The lecture: {claim.said}", *on_video]


def values_of(result: Mapping[str, Any], column: tuple[str, str]) -> np.ndarray:
    """Of all seeds; none where a row has no such metric."""
    group, name = column
    return np.array([seed[group][name] for seed in result["seeds"] if name in seed.get(group, {})])


def table(rows: Mapping[str, dict[str, Any]], columns: Columns) -> str:
    """Means and deviations over seeds, with the rate that was taken."""
    lines = [f"| | {' | '.join(columns)} | rate |", "|---|" + "---|" * (len(columns) + 1)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in cells_of(rows, columns))])


def cells_of(rows: Mapping[str, dict[str, Any]], columns: Columns) -> list[tuple[str, ...]]:
    """Heading, metrics and rate of each row."""
    return [
        (heading, *(spread(values_of(row, column)) for column in columns.values()), f"{row['rate']:g}")
        for heading, row in rows.items()
    ]


def page_of(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    """The report: of each claim what was said, a figure, and the table."""
    sections = []
    for name, rows in results.items():
        columns = CLAIMS[name].columns
        parts = [*map(html.paragraph, said(CLAIMS[name])), html.picture(picture(rows, CLAIMS[name]), name)]
        sections.append(
            Section(
                name, [*parts, html_table("Accuracy on test clips", ("", *columns, "rate"), cells_of(rows, columns))]
            )
        )
    chance = next(row["seeds"][0]["chance"] for rows in results.values() for row in rows.values())
    lead = [note(f"The toy set; chance is {chance:.3f}. Mean and deviation over seeds, where there are several.")]
    return page("The lecture on clips", sections, lead=lead)


def picture(rows: Mapping[str, dict[str, Any]], claim: Claim) -> bytes:
    """A line for each row over the columns of a group, as over stages or epochs; or a dot, of the first column."""
    columns = {name: column for name, column in claim.columns.items() if column[0] == claim.over} or claim.columns
    if claim.over:
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.add_subplot(ylabel="accuracy")
        for heading, result in rows.items():
            axes.plot(list(columns), [values_of(result, each).mean() for each in columns.values()], "o-", label=heading)
        axes.legend(frameon=False)
        return png(figure)
    figure = Figure(figsize=(7, 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel=next(iter(columns)))
    for place, result in enumerate(rows.values()):
        values = values_of(result, next(iter(columns.values())))
        axes.errorbar(values.mean(), place, xerr=values.std(ddof=1) if len(values) > 1 else 0, fmt="o", color="C0")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    return png(figure)


def plan(arguments: argparse.Namespace) -> Iterator[str]:
    total, times = 0, len(FACTORS) + len(arguments.seeds) - 1
    for name in arguments.only or CLAIMS:
        for row in (row for row in CLAIMS[name].rows if not row.of_families):
            total += times
            yield f"{experiment.describe(config_of(arguments, name, row, seed=0, factor=1.0))}, {times} times"
    yield f"train {total} times in all: {total} minutes if each takes {families.SECONDS_EACH} s"


def main() -> int:
    parser = experiment.takes_overrides(experiment.command(__doc__, data="folder with toy"), out="runs/lecture")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, metavar="CLAIM", help=f"of {', '.join(CLAIMS)} (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--kept", type=Path, default=families.DATA, help="of finished rows (default: docs/results/data)"
    )
    return experiment.run(parser, compare, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
