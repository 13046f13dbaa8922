"""Shared code of the experiments: options, --dry-run, cached work, a table of means over seeds."""

import avssl  # noqa: F401  before torch: how its threads wait

# isort: split
import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from extra_metrics import recall_hits, recall_metrics

from avssl.cli import common
from avssl.cli.common import info
from avssl.config import Config
from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.classify import linear_predict
from avssl.evaluate.harness import Labels, Predictions, compute_metrics, evaluate_split
from avssl.evaluate.metrics import Interval, bootstrap_interval
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import Split, read_splits
from avssl.files import Parser, atomic_write, print_result
from avssl.mining.agreement import agreement_precision, mine_agreement
from avssl.mining.definition import RULES
from avssl.training.checkpoint import LAST
from avssl.training.loop import train
from avssl.training.session import TrainingError
from avssl.weights.features import ClipVectors, Extracted, calibrated, clip_vectors
from avssl.weights.load import Run, load_run

SECONDS = "seconds.json"  # in the folder of a run


def command(doc: str, **positional: str) -> argparse.ArgumentParser:
    """A parser with the given positional arguments {name: help}, --json and --dry-run."""
    parser = Parser(description=doc)
    for name, help in positional.items():
        parser.add_argument(name, type=Path, help=help)
    common.add_json(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    return parser


def takes_overrides(parser: argparse.ArgumentParser, *, out: str) -> argparse.ArgumentParser:
    """Add overrides for every training, and --out."""
    parser.add_argument("overrides", nargs="*", help="section.key=value for every training, such as optim.epochs=2")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of the runs (default: {out})")
    return parser


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], tuple[Any, str] | None],
    *,
    plan: Callable[[argparse.Namespace], Iterable[str]],
) -> int:
    """Parse, work, print.

    Args:
        work: arguments -> the result and its text, or None when a training was stopped. A ValueError is a wrong call.
        plan: arguments -> the lines of --dry-run; it reads nothing but the configurations.

    Returns:
        Exit code: 0 done, 1 stopped or failed while training, 2 wrong call.
    """

    def command(arguments: argparse.Namespace) -> int:
        if arguments.dry_run:
            print("\n".join(f"would {line}" for line in plan(arguments)))
            return 0
        found = work(arguments)
        if found is None:
            return 1
        print_result(*found, to=arguments.json)
        return 0

    arguments = parser.parse_intermixed_args()
    if arguments.dry_run:
        arguments.json = None  # nothing is written
    return common.run(command, arguments, failures=(TrainingError,))


def describe(config: Config) -> str:
    """A training in a line of --dry-run."""
    data, epochs = config.data, config.optim.epochs
    return (
        f"train {config.method['name']}, {epochs} epochs of {data.clips_per_video} clips a video, batches of "
        f"{data.batch_size} x {data.num_frames} x {data.size} x {data.size}: {config.run.dir}"
    )


def train_timed(config: Config) -> bool:
    """Train or resume; False when stopped. `train_seconds` and, on Linux, `peak_gigabytes` of this process (its workers
    have their own) are cached in SECONDS; nothing for a resumed run.
    """
    folder, since = Path(config.run.dir), time.perf_counter()
    resumed = (folder / LAST).exists()
    info(f"== {'resume' if resumed else 'train'} {folder}")
    with measured_peak() as peak:
        if not train(config):
            return False
    cost = {} if resumed else {"train_seconds": time.perf_counter() - since, **peak}
    cached(folder / SECONDS, lambda: cost)
    return True


@contextmanager
def measured_peak() -> Iterator[dict[str, float]]:
    """Receives `peak_gigabytes`, the largest memory of this process inside; nothing where the system does not tell."""
    peak: dict[str, float] = {}
    known = sys.platform == "linux"
    if known:
        Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what is in use now
    yield peak
    if known:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        peak["peak_gigabytes"] = int(line.split()[1]) / 1e6


def cached(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of long work, cached as JSON."""
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(work(), indent=1) + "\n")
    return json.loads(path.read_text())


def rows_of(manifest: Manifest) -> dict[str, np.ndarray]:
    """Rows of the clips with a label: {train, test}."""
    (split,) = read_splits(manifest)
    return {"train": split.train, "test": split.test}


def load_either(folder: Path, clips: Manifest, rows: np.ndarray, *, trained: bool) -> Run:
    """A trained run; or what it started from, with BatchNorm statistics of training clips, as a baseline."""
    run = load_run(folder, trained=trained)
    return run if trained else calibrated(run, clips, rows)


def features_of(run: Run, manifest: Manifest, *, num_clips: int, progress: str = "features") -> ClipVectors:
    """Features of all of `rows_of`, averaged over `num_clips` clips of a video."""
    rows = np.union1d(*rows_of(manifest).values())
    return clip_vectors(run, manifest, rows, num_clips=num_clips, progress=progress)


def predicted(protocol: Literal["knn", "logistic"], vectors: ClipVectors, labels: Labels, split: Split) -> Predictions:
    """Weighted kNN, or logistic regression with all labels, on outputs averaged over the clips of a video. Raises
    ValueError as `evaluate_split`."""
    name, options = ("knn", Options()) if protocol == "knn" else ("fewlabels", Options(shares=(1.0,), draws=1))
    means = {
        modality: {map: each.mean(axis=1, keepdims=True) for map, each in maps.items()}
        for modality, maps in vectors.vectors.items()
    }
    vectors = dataclasses.replace(vectors, vectors=means)
    return evaluate_split(name, vectors, labels, split, options, device=torch.device("cpu"))


def accuracies(
    protocol: Literal["knn", "logistic"], vectors: ClipVectors, manifest: Manifest, split: Split
) -> dict[str, dict[str, Any]]:
    """The metric of each modality (see `compute_metrics`) over the answered videos of `predicted`; `right`: (m,) bool,
    the test videos whose class it names."""
    labels = Labels(manifest, [split])
    part = predicted(protocol, vectors, labels, split)
    metrics = compute_metrics([part], labels, skip_unreadable=True)
    return {
        name.removesuffix(" 100%"): metric | {"right": right_of(part, labels, name)}
        for name, metric in metrics.items()
        if not name.endswith(" plain")
    }


def right_of(part: Predictions, labels: Labels, name: str) -> np.ndarray:
    """(m,) bool: test videos whose class a metric names; unanswered ones are wrong."""
    outcome, answered = part.outcomes[name], part.answered[name]
    truth, right = labels.targets[part.split.test[answered]], np.zeros(len(part.split.test), dtype=bool)
    right[answered] = outcome.hits[0] if outcome.predicted is None else outcome.predicted == truth
    return right


def probe_accuracy(
    kind: Literal["linear", "knn"],
    manifest: Manifest,
    vectors: ClipVectors,
    *,
    train: np.ndarray | None = None,
    test: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """{accuracy, chance, interval: {modality: on the test rows}}, learned on the training rows; or on the rows of
    `test`, learned on those of `train`. The interval is the 95 % one over videos. right: as in `accuracies`."""
    (split,) = read_splits(manifest)
    split = split if train is None else dataclasses.replace(split, train=train)
    split = split if test is None else dataclasses.replace(split, test=test)
    found = accuracies("logistic" if kind == "linear" else "knn", vectors, manifest, split)
    names = {"accuracy": "mean", "chance": "chance", "interval": "interval"}
    return {  # of the test clips that have both, so that modalities are compared on the same clips
        name: {modality: each.get("paired", each)[key] for modality, each in found.items()}
        for name, key in names.items()
    } | {"right": {modality: each["right"] for modality, each in found.items()}}


def linear_accuracy(manifest: Manifest, features: Mapping[str, np.ndarray]) -> float:
    """Accuracy of a linear probe on other features {train, test} of `rows_of`: (n, D)."""
    targets = {split: manifest.targets()[rows] for split, rows in rows_of(manifest).items()}
    predicted, _ = linear_predict(features["train"], targets["train"], features["test"])
    return float((predicted == targets["test"]).mean())


def recall_of(vectors: ClipVectors, manifest: Manifest) -> dict[str, float]:
    """Recall across modalities among the test clips with video and audio."""
    return recall_metrics(*paired_test_clips(vectors, manifest))


def recall_intervals(vectors: ClipVectors, manifest: Manifest) -> dict[str, Interval]:
    """95 % intervals over the queries of `recall_of`."""
    return {name: interval_of(hits) for name, hits in recall_hits(*paired_test_clips(vectors, manifest)).items()}


def paired_test_clips(vectors: ClipVectors, manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (n, D) of video and of audio and classes (n,) of the test clips with both."""
    found = vectors.videos()
    keep = np.isin(found.ids, rows_of(manifest)["test"]) & found.has("both")
    video, audio = (found.embedding[modality][keep] for modality in ("video", "audio"))
    return video, audio, manifest.targets()[found.ids[keep]]


def interval_of(values: np.ndarray) -> Interval:
    """95 % bootstrap interval of the mean of values (n,) of as many clips."""
    return bootstrap_interval(values, np.arange(len(values)))


def measure(run: Run, manifest: Manifest, *, num_clips: int, num_positives: int) -> dict[str, Any]:
    """Evaluate a run on a set of the column `foreign`.

    Args:
        num_clips: averaged per video.
        num_positives: size of the mined sets.

    Returns:
        linear and knn: accuracy of the trunks' features {video, audio, both} on the test split, learned from the
        training clips with their own audio (foreign audio has no right label); precision: fraction of
        positives mined from all training clips' embeddings that share the class {rule}; recall: `recall_metrics` of the
        test clips' embeddings; right: a digit for each test clip, 1 where linear or knn names its class by both.
    """
    found = features_of(run, manifest, num_clips=num_clips)
    train = rows_of(manifest)["train"]
    own_audio = train[~manifest.column("foreign")[train].astype(bool)]
    videos = found.videos()
    probes = {kind: probe_accuracy(kind, manifest, found, train=own_audio) for kind in ("linear", "knn")}
    return {
        **{kind: probe["accuracy"] for kind, probe in probes.items()},
        "precision": mined_precision(videos, manifest, train, k=num_positives),
        "recall": recall_of(found, manifest),
        "right": {kind: "".join(map(str, probe["right"]["both"].astype(int))) for kind, probe in probes.items()},
    }


def mined_precision(found: Extracted, manifest: Manifest, rows: np.ndarray, *, k: int) -> dict[str, float]:
    """Fraction of positives mined from embeddings of these rows that share the class of their clip, by rule."""
    video, audio = (torch.from_numpy(found.embedding[name]) for name in ("video", "audio"))
    targets, valid = (
        torch.from_numpy(manifest.targets()[found.ids]),
        torch.from_numpy(found.has("both") & np.isin(found.ids, rows)),
    )
    return {
        rule: agreement_precision(mine_agreement(video, audio, k=k, rule=rule, valid=valid).ids, targets)
        for rule in RULES
    }


def read_set(folder: Path) -> Manifest:
    """The manifest of a made set. Raises ValueError: it is missing."""
    path = folder / "manifest.parquet"
    if not path.exists():
        raise ValueError(f"{path} does not exist: make the clips with avssl datasets toy {folder.parent}")
    return read_manifest(path)


def gain_of(results: Sequence[dict[str, Any]], row: str, base: str, kind: Literal["linear", "knn"]) -> str:
    """What a row names right beyond `base` on the same test clips, by both modalities: the mean over seeds, and its
    95 % interval over clips. Of results of `measure`."""
    right = [[[int(digit) for digit in r[name]["right"][kind]] for r in results] for name in (row, base)]
    beyond = np.subtract(*(np.mean(each, axis=0) for each in right))  # (m,)
    low, high = interval_of(beyond)
    return f"{beyond.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def table_of(results: Sequence[dict[str, Any]], rows: dict[str, str], columns: dict[str, tuple[str, str]]) -> str:
    """A Markdown table of means and standard deviations over seeds.

    Args:
        results: one per seed, {key of a row: {group: {metric: value}}}.
        rows: {heading: key of the result}.
        columns: {heading: (group, metric)}.
    """
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for heading, key in rows.items():
        cells = []
        for group, name in columns.values():
            values = [result[key][group][name] for result in results if name in result[key].get(group, {})]
            cells.append(spread(values))
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The mean over seeds, and their standard deviation where there are several; "" where there is none."""
    if not len(values):
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
