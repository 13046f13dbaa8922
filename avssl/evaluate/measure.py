"""From trained encoders and a labeled set to a result that can be kept and compared: plain data."""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

import avssl
from avssl import distributed
from avssl.data.dataset import check_decoder
from avssl.data.manifest import Manifest
from avssl.evaluate.features import VIEWED, ClipVectors, clip_vectors
from avssl.evaluate.finetune import train_classifier
from avssl.evaluate.harness import Labels, Predictions, answer, compute_metrics, count_missing
from avssl.evaluate.heads import Head, head_scores
from avssl.evaluate.protocols import Options, Outcome
from avssl.evaluate.splits import Split
from avssl.files import digest
from avssl.media.decoders import format_decoder
from avssl.methods import method_options
from avssl.training.checkpoint import LAST
from avssl.weights.load import Pretrained, Run, untrained

PARTS = ("encoders", "heads")  # of towers
NO_MATTER = ("manifest", "root", "num_workers", "worker_timeout_seconds", "cache_gigabytes")  # of a data section
SECONDS = "seconds.json"  # in the folder of a fine-tuning
VERSIONS = ("torch", "numpy", "scikit-learn", "av")  # noted in a result


@dataclass(frozen=True)
class EvalSpec:
    """What is asked, of which clips."""

    protocol: str  # one of PROTOCOLS, retrieval or finetune
    manifest: Manifest
    manifest_path: str  # where it was read from; it stands in the result
    splits: Sequence[Split]
    options: Options
    num_clips: int = 10  # of each video, spread over it
    num_crops: int = 3  # of each clip
    skip_unreadable: bool = False  # leave videos without an answer out; otherwise they count as wrong

    @property
    def rows(self) -> np.ndarray:
        """All rows of any split, sorted."""
        return np.unique(np.concatenate([each for split in self.splits for each in (split.train, split.test)]))


def measure_frozen(
    pretrained: Pretrained, asked: EvalSpec, *, cache: Path, baseline: bool = True, keep: dict[str, Head] | None = None
) -> dict[str, Any] | None:
    """A protocol that leaves the towers as they are. With several processes each looks at its share of the clips.

    Args:
        cache: folder where vectors are kept, so that the next protocol finds them.
        baseline: ask towers with random weights too.
        keep: receives the best linear head of every modality; with several splits those of all labeled clips together.

    Returns:
        The result; None on ranks other than the first.

    Raises:
        ValueError: nothing can be compared, or a worker process was lost; WriteError, which is one: the cache.
    """
    since = time.perf_counter()
    pretrained = _needed(pretrained, asked)
    seen = {}
    for name, each in (("scores", pretrained), *([("random", untrained(pretrained))] if baseline else [])):
        seen[name] = clip_vectors(
            each,
            asked.manifest,
            asked.rows,
            num_clips=asked.num_clips,
            num_crops=asked.num_crops,
            maps=asked.protocol == "linear" or asked.options.map != "pool",
            folder=cache,
            progress="vectors" if name == "scores" else "vectors, random weights",
        )
    if not distributed.is_main():
        return None
    looked = time.perf_counter()
    labels = Labels(asked.manifest, asked.splits)
    found: dict[str, Any] = {"random": None}
    for name, vectors in seen.items():
        more = {"keep": keep} if name == "scores" and keep is not None else {}
        parts = [
            answer(asked.protocol, vectors, labels, split, asked.options, device=pretrained.device, **more)
            for split in asked.splits
        ]
        found[name] = compute_metrics(parts, labels, skip_unreadable=asked.skip_unreadable)
    if keep is not None and len(asked.splits) > 1:
        everything = Split("all labeled clips", asked.rows, asked.rows)
        answer("linear", seen["scores"], labels, everything, asked.options, device=pretrained.device, keep=keep)
    sides = {side: [(seen["scores"], getattr(split, side)) for split in asked.splits] for side in ("train", "test")}
    seconds = {"vectors": looked - since, "protocol": time.perf_counter() - looked}
    facts = _facts_of_clips(asked, sides) | {"data": _viewed(pretrained), "training": None, "seconds": seconds}
    return _result(pretrained, asked, labels, found | facts)


def measure_finetuned(
    pretrained: Pretrained,
    asked: EvalSpec,
    *,
    out: Path,
    baseline: bool = True,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The whole network trained on the labels of every split, always its last epoch; random weights likewise, which is
    the supervised baseline.

    Args:
        out: folder of the runs, OUT/<split>/{trained, random}: the same call continues them.
        recipe, overrides: see `train_classifier`.

    Returns:
        The result; None when asked to stop, and on ranks other than the first.

    Raises:
        ValueError: as `train_classifier`, or no test clip could be read.
    """
    labels = Labels(asked.manifest, asked.splits)
    scores: dict[str, Any] = {"random": None}
    facts: dict[str, Any] = {}
    for name in ("scores", "random") if baseline else ("scores",):
        parts, seen, seconds = [], [], []
        for split in asked.splits:
            run = _train_timed(
                pretrained,
                _only(asked.manifest, split),
                out=out / split.name / ("trained" if name == "scores" else "random"),
                trained=name == "scores",
                recipe=recipe,
                overrides=overrides,
            )
            if run is None:
                return None
            kept = run.path.with_name(SECONDS)
            seconds.append(json.loads(kept.read_text()) if kept.exists() else None)
            vectors = clip_vectors(
                run,
                asked.manifest,
                split.test,
                num_clips=asked.num_clips,
                num_crops=asked.num_crops,
                folder=out / "vectors",
                progress=f"vectors {split.name}",
            )
            parts.append(_print_result(run, vectors, split, labels, asked.options))
            seen.append((vectors, split.test))
        scores[name] = compute_metrics(parts, labels, skip_unreadable=asked.skip_unreadable)
        if name == "scores":
            training = run.config.model_dump(mode="json", include={"optim", "data"})
            training["method"] = method_options(run.config, only_given=True)
            training["data"] = {key: value for key, value in training["data"].items() if key not in NO_MATTER}
            facts = _facts_of_clips(asked, {"test": seen}) | {"data": _viewed(run), "training": training}
            facts["seconds"] = {"training": seconds}
    return _result(pretrained, asked, labels, scores | facts) if distributed.is_main() else None


def _train_timed(pretrained: Pretrained, manifest: Manifest, *, out: Path, **how: Any) -> Run | None:
    """`train_classifier`; how long it took is kept in the folder, unless it was stopped in between."""
    resumed, since = (out / LAST).exists(), time.perf_counter()
    run = train_classifier(pretrained, manifest, out=out, **how)
    if run is not None and not resumed and distributed.is_main():
        (out / SECONDS).write_text(json.dumps(time.perf_counter() - since))
    return run


def _viewed(pretrained: Pretrained) -> dict[str, Any]:
    """How its clips are read."""
    return {name: getattr(pretrained.data, name) for name in VIEWED}


def _needed(pretrained: Pretrained, asked: EvalSpec) -> Pretrained:
    """Without the tower that none of the clips has anything for."""
    has = {"video": asked.manifest.has_video[asked.rows], "audio": asked.manifest.has_audio[asked.rows]}
    sides = [side for side in pretrained.encoders if has[side].any()] or list(pretrained.encoders)
    parts = {name: {side: each for side, each in getattr(pretrained, name).items() if side in sides} for name in PARTS}
    return dataclasses.replace(pretrained, **{name: nn.ModuleDict(each) for name, each in parts.items()})


def _print_result(run: Run, vectors: ClipVectors, split: Split, labels: Labels, options: Options) -> Predictions:
    """What a fine-tuned network says of the test videos of its split."""
    classifier = run.classifier
    here = vectors.has(classifier.modality)
    if not vectors.readable.any():
        first = next(iter(vectors.errors.values()), "none was asked for")
        raise ValueError(f"no test clip of {split.name} could be read (first: {first}): are the clips where they were?")
    said = head_scores(
        classifier, vectors.vectors[classifier.modality]["pool"], np.flatnonzero(here), average=options.average
    ).argmax(axis=1)
    # it knows the classes of its training clips, which may be fewer
    predicted = np.searchsorted(labels.classes, np.array(classifier.classes))[said]
    right = predicted == labels.targets[split.test[here]]
    outcome = Outcome(values=right.astype(float), predicted=predicted)
    return Predictions(split, {classifier.modality: outcome}, {classifier.modality: here})


def _only(manifest: Manifest, split: Split) -> Manifest:
    """The manifest whose column split says train and test of one split, and nothing else."""
    names = np.full(len(manifest), None, dtype=object)
    names[split.train], names[split.test] = "train", "test"
    place = manifest.table.column_names.index("split")
    return Manifest(manifest.table.set_column(place, "split", pa.array(names, pa.string())), manifest.root)


def _facts_of_clips(asked: EvalSpec, seen: Mapping[str, Sequence[tuple[ClipVectors, np.ndarray]]]) -> dict[str, Any]:
    """Counts of each side, and {path: reason} of what could not be read."""
    paths = asked.manifest.column("path")
    errors = {row: why for parts in seen.values() for vectors, _ in parts for row, why in vectors.errors.items()}
    return {
        "clips": {side: count_missing(parts) for side, parts in seen.items()},
        "errors": {str(paths[row]): why for row, why in sorted(errors.items())},
    }


def _digest(asked: EvalSpec, labels: Labels) -> str:
    """Of which clips, under which names, are on which side of which split."""
    sides = [rows for split in asked.splits for rows in (split.train, split.test)]
    tables = [np.stack([rows, labels.targets[rows]]).astype("<i8").tobytes() + b"\n" for rows in sides]
    return digest("\0".join(labels.classes), *tables, num_bytes=12)


def _shared(manifest: Manifest, split: Split, labels: Labels) -> dict[str, int]:
    """Test clips whose file, by its content, or whose group is among the training clips too."""
    keys = np.array([key or "" for key in manifest.column("content_key").tolist()])
    return {
        name: int((np.isin(of[split.test], of[split.train]) & (of[split.test] != "")).sum())
        for name, of in (("files", keys), ("groups", labels.groups))
    }


def _several_labels(asked: EvalSpec) -> int:
    """Clips with more than one class, of which the first counts (column labels of sets such as AudioSet)."""
    if "labels" not in asked.manifest.table.column_names:
        return 0
    labels = asked.manifest.table.column("labels").take(asked.rows).to_pylist()
    return sum(len(each or []) > 1 for each in labels)


def _result(pretrained: Pretrained, asked: EvalSpec, labels: Labels, found: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a reader of the figures has to know."""
    return {
        "protocol": asked.protocol,
        "weights": str(pretrained.path),
        "weights_hash": pretrained.weights_hash,
        "manifest": asked.manifest_path,
        "manifest_hash": asked.manifest.hash,
        "splits": [split.name for split in asked.splits],
        "asked_hash": _digest(asked, labels),
        "shared": [_shared(asked.manifest, split, labels) for split in asked.splits],
        "several_labels": _several_labels(asked),
        "classes": labels.classes,
        "settings": {
            "num_clips": asked.num_clips,
            "num_crops": asked.num_crops,
            "skip_unreadable": asked.skip_unreadable,
            **dataclasses.asdict(asked.options),
        },
        **found,
        "versions": {
            "avssl": avssl.__version__,
            "python": platform.python_version(),
            "decoder": format_decoder(check_decoder(pretrained.data)),
            **{name: importlib.metadata.version(name) for name in VERSIONS},
        },
        "device": str(pretrained.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
