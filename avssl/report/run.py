"""The report of a run: in short, then neighbors, training, evaluation, clips, what ran and its configuration.

avssl report RUN
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.config import Config, DataConfig, RunConfig, dumps
from avssl.data.manifest import Manifest, ManifestError, read_manifest
from avssl.data.sampling import num_steps_per_epoch
from avssl.files import atomic_write
from avssl.methods import METHODS, method_options
from avssl.report.clips import (
    SEED,
    clips_html,
    reference_clips,
    vectors_of_banks,
    vectors_of_some,
    vectors_of_store,
)
from avssl.report.dataset import dataset_parts
from avssl.report.evaluation import evaluation_parts, find_results
from avssl.report.history import History, read_history, refresh_parts, training_parts
from avssl.report.page import Section, heading, html, note, page, paragraph, table, warning
from avssl.report.summary import WORDS, loss_limits, summary_parts
from avssl.training.checkpoint import LAST, CheckpointError, check_manifest, load_checkpoint
from avssl.training.session import read_sessions
from avssl.training.setup import FEW_STEPS
from avssl.weights.load import Run, load_run, with_data

REPORT = "report.html"
MAX_UNREADABLE = 10  # unreadable files listed
MAX_SESSIONS = 20  # last starts of the run that are listed


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Input of the sections."""

    run: Run
    state: Mapping[str, Any]  # of the checkpoint
    history: History
    manifest: Manifest | None  # None = not found, or another one
    missing: str  # the reason


def write_run_report(
    folder: Path,
    *,
    out: Path | None = None,
    manifest: Path | None = None,
    root: Path | None = None,
    embeddings: Path | None = None,
    evaluations: Sequence[Path] = (),
) -> tuple[Path, list[str]]:
    """Write the page of a complete or interrupted run.

    Args:
        folder: of the run.
        out: the page; None = report.html in the folder.
        manifest, root: new locations of the manifest and its clips, if moved.
        embeddings: folder of avssl embed to search for neighbors, for a run without memory bank.
        evaluations: results of avssl evaluate besides those in the folder.

    Returns:
        Path of the page, and a sentence for everything missing in it.

    Raises:
        CheckpointError: there is no run, or the given manifest is not the run's.
        ManifestError, StoreError, ValueError: the given manifest, embeddings or an evaluation cannot be used.
        WriteError: the page cannot be written.
    """
    state = load_checkpoint(folder)
    # explicit, so that no process group is joined
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(folder, device=device)
    config = run.config
    found, missing = _manifest_of(state, config, folder, manifest, root)
    history = read_history(folder / "log.jsonl", batch_size=config.data.batch_size)
    data = ReportData(run, state, history, found, missing)
    results, others = find_results(folder, run.weights_hash, named=evaluations)
    command = ["avssl", "evaluate", folder, "knn", "--dataset", config.data.manifest, "--json", folder / "knn.json"]
    none = f"No results yet. Measure, then write this page again: {shlex.join(map(str, command))}"
    if found is not None and not found.class_names:
        none = "No results: the clips have no labels, by which features are measured (folders of classes, or a list)."
    path, name, total = out or folder / REPORT, config.method["name"], _total_steps(state, config)
    stand = "complete" if state["step"] >= total else f"not complete, {state['step']:,} of {total:,} steps"
    classes = [] if found is None else found.class_names
    limits = loss_limits(config, num_classes=len(classes))
    in_short = summary_parts(
        history,
        results,
        stand=f"{stand}, {_duration(history.seconds)}{'' if total >= FEW_STEPS else '; so few steps learn nothing'}",
        clips=_clips_trained(state["instances"]),
        has_labels=None if found is None else bool(classes),
        disk_bytes=(folder / LAST).stat().st_size,
        limits=limits,
    )
    sections = [
        Section("In short", in_short),
        Section("Neighbors", _neighbor_parts(data, embeddings)),
        Section("Training", training_parts(history, limits=limits)),
        Section("Agreement sets", refresh_parts(history, has_labels=bool(classes))),
        Section("Evaluation", [*(evaluation_parts(results) or [note(none)]), *(note(other) for other in others)]),
        Section("Clips", _clip_parts(data)),
        Section("What ran", _run_parts(data, folder)),
        Section("Configuration", _config_parts(config), folded=True),
        Section("Words", [table("What they mean here", (), WORDS)], folded=True),
    ]
    now = datetime.now(UTC).strftime("%d %B %Y, %H:%M")
    lead = [paragraph(f"Run of avssl with method {name}, {stand}. Page of {now} UTC.")]
    with atomic_write(path) as temporary:
        temporary.write_text(page(f"{name}: {folder.resolve().name}", sections, lead=lead), encoding="utf-8")
    return path, [missing] if missing else []


def _clips_trained(instances: Mapping[str, torch.Tensor]) -> str:
    valid, audio, video = (instances[name] for name in ("valid", "has_audio", "has_video"))
    return f"{int(valid.sum()):,} clips, {int((valid & audio & video).sum()):,} of them with video and audio"


def _manifest_of(
    state: Mapping[str, Any], config: Config, folder: Path, manifest: Path | None, root: Path | None
) -> tuple[Manifest | None, str]:
    """The run's manifest, or why there is none; errors about a given one are raised."""
    path = manifest or Path(config.data.manifest)
    try:
        found = read_manifest(path, root=root or (None if manifest else config.data.root))
        check_manifest(state, found, path=folder, read_from=path)
    except (ManifestError, CheckpointError) as error:
        if manifest or root:
            raise
        return None, f"no clips are shown, as the manifest cannot be used: {error}; say --manifest and --root"
    return found, ""


def _total_steps(state: Mapping[str, Any], config: Config) -> int:
    num_videos = int(state["instances"]["valid"].sum())
    per_epoch = num_steps_per_epoch(
        num_videos, clips_per_video=config.data.clips_per_video, batch_size=config.data.batch_size
    )
    return config.optim.epochs * per_epoch


def _run_parts(data: ReportData, folder: Path) -> list[str]:
    state, config, history = data.state, data.run.config, data.history
    sessions = read_sessions(folder)
    weights = [each for each in (config.model.init, config.model.video_weights, config.model.audio_weights) if each]
    resumed = {0: "not known, as the run is of before that was noted", 1: "no, it ran in one piece"}
    facts = [
        ("Method", str(config.method["name"])),
        ("Encoders", ", ".join(f"{modality}: {getattr(config.model, modality)}" for modality in data.run.encoders)),
        ("Steps", f"{state['step']:,} of {_total_steps(state, config):,}, {config.optim.epochs} epochs wanted"),
        ("Clips per step", f"{config.data.batch_size} over all processes"),
        ("Time of training", f"{_duration(history.seconds)} by the log"),
        ("Resumed", resumed.get(len(sessions), f"yes, it was started {len(sessions)} times")),
        ("Seed", str(config.run.seed)),
        ("Precision", config.run.precision),
        ("Started from", ", ".join(weights) or "random weights"),
        ("Manifest", f"{config.data.manifest} (hash {state['manifest_hash'][:12]})"),
        ("Weights now", f"hash {data.run.weights_hash[:12]}"),
    ]
    if len(sessions) == 1:
        facts += [(name.capitalize(), value) for name, value in _facts(sessions[0]).items()]
    if not sessions:
        decoder = state["decoder"]
        facts.append(("Decoder", f"{decoder['name']} {decoder['version']} (FFmpeg {decoder['ffmpeg']})"))
    parts = [table("The run", (), facts)]
    if len(sessions) > 1:  # a run may move to another machine
        lines = [(each["first_step"], *_facts(each).values()) for each in sessions[-MAX_SESSIONS:]]
        many = f", the last {MAX_SESSIONS} of {len(sessions)}" if len(sessions) > MAX_SESSIONS else ""
        parts.append(table(f"Starts of the run{many}", ("from step", *_facts(sessions[0])), lines))
    return parts


def _facts(session: Mapping[str, Any]) -> dict[str, str]:
    """Facts about one start of the run."""
    return {
        "started": datetime.fromisoformat(session["started"]).strftime("%d %B %Y, %H:%M UTC"),
        "machine": session["machine"],
        "processes": session["processes"],
        "versions": ", ".join(f"{name} {version}" for name, version in session["versions"].items()),
        "command": session["command"],
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _config_parts(config: Config) -> list[str]:
    given = config.model_dump(mode="json") | {"method": method_options(config, only_given=True)}
    defaults = Config.model_construct(data=DataConfig.model_construct(), run=RunConfig.model_construct())
    usual = defaults.model_dump(mode="json")
    usual["method"] = METHODS[config.method["name"]].Options.model_construct().model_dump(mode="json")
    lines = [(name, str(value), str(before)) for name, value, before in _differing(given, usual, "")]
    return [
        table("What differs from the defaults", ("key", "value", "default"), lines),
        html.details("The whole configuration", dumps(config)),
    ]


def _differing(given: Mapping[str, Any], usual: Mapping[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    """(section.key, value, default) of every non-default value."""
    found: list[tuple[str, Any, Any]] = []
    for name, value in given.items():
        before = usual.get(name, "")
        if isinstance(value, Mapping):
            found += _differing(value, before if isinstance(before, Mapping) else {}, f"{prefix}{name}.")
        elif value != before:
            found.append((f"{prefix}{name}", value, before))
    return found


def _clip_parts(data: ReportData) -> list[str]:
    lost = data.history.unreadable
    if data.manifest is None:
        parts = [warning(data.missing.capitalize() + ".")]
    else:
        num_trained = int(data.state["instances"]["valid"].sum())
        parts = dataset_parts(data.manifest, data.run.config.data, num_trained=num_trained)
    if lost:
        more = f", {MAX_UNREADABLE} of {len(lost)}" if len(lost) > MAX_UNREADABLE else ""
        caption, lines = f"Could not be read while training{more}", lost.most_common(MAX_UNREADABLE)
        parts.append(table(caption, ("file and reason", "times"), lines))
    return parts


def _neighbor_parts(data: ReportData, embeddings: Path | None) -> list[str]:
    """Neighbors in the given embeddings, in the run's memory bank, or among some clips embedded now."""
    manifest = data.manifest
    if manifest is None:
        return [note("No clips, as there is no manifest: see above.")]
    if embeddings is not None:
        vectors = vectors_of_store(embeddings, manifest_hash=manifest.hash)
    elif (vectors := vectors_of_banks(data.run.method)) is None:
        rows = np.flatnonzero(data.state["instances"]["valid"].numpy() & manifest.usable())
        try:  # without workers: starting them would take longer
            vectors = vectors_of_some(with_data(data.run, num_workers=0), manifest, rows)
        except ValueError as error:
            return [note(f"No neighbors, as no clips could be looked at: {error}")]
    vectors = vectors.at(manifest.usable())
    shown = reference_clips(vectors, manifest.targets())
    if not shown:
        return [note("Fewer than three clips can be compared.")]
    one = f" The run has vectors of {' and '.join(vectors.z)} alone." if len(vectors.z) == 1 else ""
    both = (
        " Agreement is the smaller of both cosines; what is alike in one modality only is the clip with the largest "
        "difference of both among the nearest twentieth of that modality."
    )
    words = f"Reference clips drawn at random (seed {SEED}), with clips that are near in {vectors.source}."
    parts = [note(words + (one or both))]
    for name, clips in shown.items():
        parts += [heading(name), clips_html(manifest, clips)]
    return parts
