"""From trained encoders and a labeled set to a result in plain data, which can be saved and compared."""

import dataclasses
import importlib.metadata
import json
import math
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
from avssl.config import DataConfig
from avssl.data.dataset import check_decoder
from avssl.data.manifest import Manifest
from avssl.evaluate.classify import draw_few
from avssl.evaluate.finetune import train_classifier
from avssl.evaluate.harness import Labels, Predictions, compute_metrics, count_missing, evaluate_split, find_similar
from avssl.evaluate.heads import Head, head_scores
from avssl.evaluate.protocols import Options, classified
from avssl.evaluate.splits import Split
from avssl.files import atomic_write, digest
from avssl.media.decoders import format_decoder
from avssl.methods import method_options
from avssl.training.checkpoint import LAST
from avssl.weights.features import VIEW_OPTIONS, ClipVectors, calibrated, clip_vectors
from avssl.weights.load import Pretrained, Run, untrained

IGNORED = ("manifest", "root", "num_workers", "worker_timeout_seconds", "cache_gigabytes")  # of a result's data section
SECONDS = "seconds.json"  # in the folder of a fine-tuning
# Cosines above which clips nearly equal each other. Random weights tell how clips look, trained ones what they are of:
# with random ones, different scenes of 110 surveillance clips have at most .78 in video and .92 in audio.
SIMILAR, SIMILAR_TRAINED = {"video": 0.9, "audio": 0.95}, {"video": 0.99, "audio": 0.99}
VERSIONS = ("torch", "numpy", "scikit-learn", "av")  # recorded in a result

Parts = Sequence[tuple[ClipVectors, np.ndarray]]  # vectors, and the rows of the manifest that count


@dataclass(frozen=True)
class EvalSpec:
    """What is evaluated, on which clips."""

    protocol: str  # one of PROTOCOLS, retrieval or finetune
    manifest: Manifest
    manifest_path: str  # recorded in the result
    splits: Sequence[Split]
    options: Options
    num_clips: int = 10  # of each video, spread over it
    num_crops: int = 3  # of each clip
    skip_unreadable: bool = False  # leave unanswered videos out; otherwise they count as wrong
    group: str | None = None  # what the groups were made by, if not by the manifest: recorded in the result

    @property
    def rows(self) -> np.ndarray:
        """All rows of any split, sorted."""
        return np.unique(np.concatenate([each for split in self.splits for each in (split.train, split.test)]))


def default_views(manifest: Manifest, data: DataConfig) -> tuple[int, int]:
    """Clips of each video, as many as fit into all but the longest tenth, at most 10; and crops of each clip: 3, or 1
    where every video is square."""
    window = min(data.num_frames / data.fps, data.audio_seconds)
    length = np.fmax(*(np.diff(manifest.bounds(track), axis=1)[:, 0] for track in ("video", "audio")))  # seconds
    known = length[np.isfinite(length)]
    num_clips = math.ceil(np.quantile(known, 0.9) / window) if len(known) else 1
    width, height = (manifest.column(name).astype(np.float64) for name in ("width", "height"))
    is_square = bool((width == height)[manifest.has_video].all())
    return min(max(num_clips, 1), 10), 1 if is_square else 3


def measure_frozen(
    pretrained: Pretrained, spec: EvalSpec, *, cache: Path, baseline: bool = True, keep: dict[str, Head] | None = None
) -> dict[str, Any] | None:
    """A protocol on frozen encoders. With several processes each computes its fraction of the vectors.

    Args:
        cache: folder of vectors, which later protocols reuse.
        baseline: evaluate random weights too.
        keep: receives the best linear head of every modality; with several splits one fitted on all labeled clips.

    Returns:
        The result; None on ranks other than the first.

    Raises:
        ValueError: nothing can be compared, or a worker process was lost. WriteError: the cache cannot be written.
    """
    start = time.perf_counter()
    has = {"video": spec.manifest.has_video[spec.rows], "audio": spec.manifest.has_audio[spec.rows]}
    modalities = [name for name in pretrained.encoders if has[name].any()] or list(pretrained.encoders)
    parts = {
        name: nn.ModuleDict({key: each for key, each in getattr(pretrained, name).items() if key in modalities})
        for name in ("encoders", "heads")
    }
    pretrained = dataclasses.replace(pretrained, **parts)  # without encoders that no clip needs
    vectors_of, models = {}, {"scores": pretrained}
    if baseline:
        rows = np.unique(np.concatenate([split.train for split in spec.splits]))
        models["random"] = calibrated(untrained(pretrained), spec.manifest, rows)
    for name, each in models.items():
        vectors_of[name] = clip_vectors(
            each,
            spec.manifest,
            spec.rows,
            num_clips=spec.num_clips,
            num_crops=spec.num_crops,
            maps=spec.protocol == "linear" or spec.options.map != "pool",
            folder=cache,
            progress="vectors" if name == "scores" else "vectors, random weights",
        )
    if not distributed.is_main():
        return None
    extracted = time.perf_counter()
    labels, device = Labels(spec.manifest, spec.splits), pretrained.device
    facts: dict[str, Any] = {"random": None}
    for name, vectors in vectors_of.items():
        more = {"keep": keep} if name == "scores" and keep is not None else {}
        predictions = [
            evaluate_split(spec.protocol, vectors, labels, split, spec.options, device=device, **more)
            for split in spec.splits
        ]
        facts[name] = compute_metrics(predictions, labels, skip_unreadable=spec.skip_unreadable)
    vectors = vectors_of["scores"]
    if keep is not None and len(spec.splits) > 1:
        everything = Split("all labeled clips", spec.rows, spec.rows)
        evaluate_split("linear", vectors, labels, everything, spec.options, device=device, keep=keep)
    facts |= _clip_facts(
        spec, {name: [(vectors, getattr(split, name)) for split in spec.splits] for name in ("train", "test")}
    )
    plain, cosine = (vectors_of["random"], SIMILAR) if baseline else (vectors, SIMILAR_TRAINED)
    facts["similar"] = [find_similar(plain, split, spec.manifest, cosine=cosine) for split in spec.splits]
    seconds = {"vectors": extracted - start, "protocol": time.perf_counter() - extracted}
    return _result(
        pretrained, spec, labels, facts | {"data": _view_options(pretrained), "training": None, "seconds": seconds}
    )


def measure_finetuned(
    pretrained: Pretrained,
    spec: EvalSpec,
    *,
    out: Path,
    baseline: bool = True,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The whole network trained on the labels of every split, or of a drawn share of its training videos, last epoch;
    random weights too (supervised baseline).

    Args:
        out: folder of the runs, OUT/<split>/{trained, random}, which are resumed.
        recipe, overrides: see `train_classifier`.

    Returns:
        The result; None when interrupted, and on ranks other than the first.

    Raises:
        ValueError: as `train_classifier`, or no test clip could be read.
    """
    if spec.options.share < 1:
        spec = dataclasses.replace(spec, splits=[few_labels(spec, split) for split in spec.splits])
    labels = Labels(spec.manifest, spec.splits)
    facts: dict[str, Any] = {"random": None, "similar": []}
    for name in ("scores", "random") if baseline else ("scores",):
        predictions, parts, seconds = [], [], []
        for split in spec.splits:
            folder = out / split.name / ("trained" if name == "scores" else "random")
            is_resumed, start = (folder / LAST).exists(), time.perf_counter()
            run = train_classifier(
                pretrained,
                _with_split(spec.manifest, split),
                out=folder,
                trained=name == "scores",
                recipe=recipe,
                overrides=overrides,
            )
            if run is None:
                return None
            if not is_resumed and distributed.is_main():
                with atomic_write(folder / SECONDS) as temporary:
                    temporary.write_text(json.dumps(time.perf_counter() - start))
            timed = run.path.with_name(SECONDS)
            seconds.append(json.loads(timed.read_text()) if timed.exists() else None)
            vectors = clip_vectors(
                run,
                spec.manifest,
                split.test,
                num_clips=spec.num_clips,
                num_crops=spec.num_crops,
                folder=out / "vectors",
                progress=f"vectors {split.name}",
            )
            predictions.append(_classify(run, vectors, split, labels, spec.options))
            parts.append((vectors, split.test))
        facts[name] = compute_metrics(predictions, labels, skip_unreadable=spec.skip_unreadable)
        if name == "scores":
            training = run.config.model_dump(mode="json", include={"optim", "data"})
            training["method"] = method_options(run.config, only_given=True)
            training["data"] = {key: value for key, value in training["data"].items() if key not in IGNORED}
            facts |= _clip_facts(spec, {"test": parts})
            facts |= {"data": _view_options(run), "training": training, "seconds": {"training": seconds}}
    return _result(pretrained, spec, labels, facts) if distributed.is_main() else None


def few_labels(spec: EvalSpec, split: Split) -> Split:
    """A split with a share of its training videos, drawn by class (the first of a video's), at least one of each."""
    targets = spec.manifest.targets()[split.train]
    (rows,) = draw_few(targets, spec.options.share, num_draws=1, seed=spec.options.seed)
    return dataclasses.replace(split, train=split.train[rows])


def _view_options(pretrained: Pretrained) -> dict[str, Any]:
    return {name: getattr(pretrained.data, name) for name in VIEW_OPTIONS}


def _classify(run: Run, vectors: ClipVectors, split: Split, labels: Labels, options: Options) -> Predictions:
    """Predictions of a fine-tuned network for the test videos of its split."""
    classifier = run.classifier
    has = vectors.has(classifier.modality)
    if not vectors.readable.any():
        first = next(iter(vectors.errors.values()), "the split has no test clip")
        raise ValueError(f"no test clip of {split.name} could be read (first: {first}): are the clips where they were?")
    scores = head_scores(
        classifier, vectors.vectors[classifier.modality]["pool"], np.flatnonzero(has), average=options.average
    )
    known = [labels.number[name] for name in classifier.classes]  # maybe fewer classes than the set has
    of_all = np.full((len(scores), len(labels.classes)), -np.inf)
    of_all[:, known] = scores
    outcomes = classified(classifier.modality, of_all, labels.num_several > 0)
    lacking = np.delete(np.arange(len(labels.classes)), known)
    unseen = labels.truth(split.test)[:, lacking].any(axis=1)
    none = np.zeros(len(has), dtype=bool)
    return Predictions(split, outcomes, dict.fromkeys(outcomes, has), dict.fromkeys(outcomes, unseen), none)


def _with_split(manifest: Manifest, split: Split) -> Manifest:
    """The manifest with its column split set to train and test of one split, null elsewhere."""
    names = np.full(len(manifest), None, dtype=object)
    names[split.train], names[split.test] = "train", "test"
    column = manifest.table.column_names.index("split")
    return Manifest(manifest.table.set_column(column, "split", pa.array(names, pa.string())), manifest.root)


def _clip_facts(spec: EvalSpec, parts: Mapping[str, Parts]) -> dict[str, Any]:
    """Counts of train and test clips, and {path: reason} of the unreadable ones."""
    paths = spec.manifest.column("path")
    errors = {row: why for each in parts.values() for vectors, _ in each for row, why in vectors.errors.items()}
    return {
        "clips": {name: count_missing(each) for name, each in parts.items()},
        "errors": {str(paths[row]): why for row, why in sorted(errors.items())},
    }


def _result(pretrained: Pretrained, spec: EvalSpec, labels: Labels, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The whole result."""
    manifest = spec.manifest
    sets = [rows for split in spec.splits for rows in (split.train, split.test)]
    keys = np.array([key or "" for key in manifest.column("content_key").tolist()])
    shared = [  # test clips whose file, by content, or whose group is among the training clips too
        {
            name: int((np.isin(of[split.test], of[split.train]) & (of[split.test] != "")).sum())
            for name, of in (("files", keys), ("groups", labels.groups))
        }
        for split in spec.splits
    ]
    return {
        "protocol": spec.protocol,
        "weights": str(pretrained.path),
        "weights_hash": pretrained.weights_hash,
        "manifest": spec.manifest_path,
        "manifest_hash": manifest.hash,
        "splits": [split.name for split in spec.splits],
        "asked_hash": digest(*([(row, labels.sets[row]) for row in rows.tolist()] for rows in sets), num_bytes=12),
        "shared": shared,
        "several_labels": labels.num_several,
        "unlabeled": len({row for split in spec.splits for row in split.unlabeled.tolist()}),
        "own_groups": bool((labels.groups == manifest.column("path")).all()),
        "classes": labels.classes,
        "settings": {
            "num_clips": spec.num_clips,
            "num_crops": spec.num_crops,
            "skip_unreadable": spec.skip_unreadable,
            "group": spec.group,
            **dataclasses.asdict(spec.options),
        },
        **facts,
        "versions": {
            "avssl": avssl.__version__,
            "python": platform.python_version(),
            "decoder": format_decoder(check_decoder(pretrained.data)),
            **{name: importlib.metadata.version(name) for name in VERSIONS},
        },
        "device": str(pretrained.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
