"""The training loop: one for every method. It knows batches, steps and checkpoints, and nothing of what a method does.

Everything random is a function of (seed, step), so a run that is killed and started again continues bit-equal on CPU.
"""

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from avssl import distributed
from avssl.checkpoint import (
    ENCODERS,
    LAST,
    check_manifest,
    export_encoders,
    load_checkpoint,
    load_initial,
    load_model,
    save_checkpoint,
)
from avssl.config import Config, ConfigError, dumps, loads, without_weights
from avssl.data.dataset import CLOSED, ClipDataset, check_decoder, track_table
from avssl.data.loader import WorkerLost, build_loader, lost_workers_named
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.policy import Admitted, admit
from avssl.data.quarantine import Entry, add_to_quarantine, quarantine_path
from avssl.data.sampling import TrainingBatches
from avssl.data.tracks import read_tracks
from avssl.files import WriteError, whole_file
from avssl.logs import RunLog, RunningMean, collapse_figures
from avssl.media.decoders import in_words
from avssl.methods import build_method, is_supervised, method_options
from avssl.methods.base import Method
from avssl.mining.agreement import agreement_precision, chance_precision
from avssl.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
    peak_rate,
    set_learning_rate,
)
from avssl.sessions import note_session
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import apply_views


class TrainingError(RuntimeError):
    """A run that cannot go on: the message says at which step, why, and which checkpoint is good."""


def train(config: Config) -> bool:
    """Train as `config` says, from the run's last checkpoint when there is one.

    Writes into run.dir: `last.pt`, `encoders.safetensors`, `log.jsonl`, `sessions.jsonl`, `tensorboard/`,
    `config.yaml`.

    Returns:
        True when the run is complete; False when it was asked to stop (SIGTERM, Ctrl-C, run.max_steps) and saved
        itself.

    Raises:
        ConfigError, ManifestError, CheckpointError: before any work starts.
        TrainingError: a loss or a gradient is not finite, no file of a batch can be read, or the run's folder can no
            longer be written to.
    """
    device = distributed.init(config.run.device)
    if device.type == "cpu":
        torch.set_num_threads(config.run.num_threads or spare_cores(config.data.num_workers))
        keep_freed_memory()
    folder = Path(config.run.dir)
    decoder = check_decoder(config.data)
    manifest = read_manifest(config.data.manifest, root=config.data.root)
    before = load_checkpoint(folder / LAST) if (folder / LAST).exists() else None
    if before is None:
        instances = usable_instances(manifest, config)
    else:
        check_manifest(before, manifest.hash, path=folder / LAST, manifest=config.data.manifest)
        # Rows that can no longer be read keep their place: steps, memories and draws are those of the run.
        instances = Instances(**before["instances"])
    method = build_method(without_weights(config) if before else config, instances).to(device)
    to_channels_last(method, enabled=config.run.channels_last)
    optimizer = build_optimizer(method.named_parameters(), config.optim, lr_scales=method.lr_scales())
    dataset = training_clips(manifest, config, method)
    check_tracked(dataset, instances, config)
    first_step = _resume(config, manifest, method, optimizer, before, dataset)
    if config.run.compile:
        compile_encoders(method, device)
    batches = TrainingBatches(
        instances.valid.nonzero().squeeze(1).numpy(),
        clips_per_video=config.data.clips_per_video,
        batch_size=config.data.batch_size,
        num_epochs=config.optim.epochs,
        seed=config.run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        first_step=first_step,
    )
    if batches.rows % config.optim.accumulate:
        raise ConfigError(
            f"optim.accumulate={config.optim.accumulate} does not divide the {batches.rows} clips per process of "
            f"data.batch_size={config.data.batch_size}: choose a divisor"
        )
    loader = build_loader(dataset, batches, config.data, device=device)
    model = _wrap(method, config, device)
    if distributed.is_main():
        _open_folder(folder, config)
        note_session(
            folder,
            first_step=first_step,
            decoder=decoder,
            num_processes=distributed.world_size(),
            device=device.type,
        )
    distributed.barrier()

    def save(step: int) -> None:
        distributed.check_equal(shared_buffers(method), f"the buffers of method {config.method['name']} at step {step}")
        if distributed.is_main():
            state = {
                "config": dumps(config),
                "manifest_hash": manifest.hash,
                "instances": vars(instances),
                "decoder": decoder,
                "tracks": tracks_of(dataset),
                "step": step,
                "model": method.state_dict(),
                "optimizer": optimizer_state(optimizer),
            }
            export_encoders(folder / ENCODERS, method)
            save_checkpoint(folder / LAST, state)  # last: killed in between, the resumed run exports them again
        distributed.barrier()

    with (
        _explained(folder / LAST, config, manifest),
        lost_workers_named(dataset, config.data),
        RunLog(folder, first_step=first_step, num_steps=batches.num_steps) as log,
        StopRequest() as stop,
    ):
        log.say(_describe(config, manifest, instances, batches, device, in_words(decoder)))
        if before is None:
            log.say(_left_out(admit(manifest, config.data), instances))
        elif before["decoder"] != decoder:
            log.say(
                f"note: the run was decoded with {in_words(before['decoder'])} before, now with {in_words(decoder)}: "
                "pictures may differ in a bit or two, so going on is not bit-equal to never having stopped"
            )
        model.train()
        figures, waited, since, reported = RunningMean(), 0.0, time.perf_counter(), first_step
        check = FiniteCheck(folder / LAST, delayed=device.type == "cuda")
        step, arrivals = first_step, iter(loader)
        while step < batches.num_steps:
            epoch, place = divmod(step, batches.steps_per_epoch)
            if place == 0:
                epoch_figures = method.on_epoch(epoch)
                if epoch_figures:
                    log.report(step, {"epoch": epoch, **epoch_figures, **_precision(method, epoch_figures, manifest)})

            asked = time.perf_counter()
            batch = next(arrivals)
            waited += time.perf_counter() - asked
            batch = batch.to(device)
            _check_readable(batch, log, step)

            batch_size = config.data.batch_size
            rate = learning_rate(
                step, steps_per_epoch=batches.steps_per_epoch, optim=config.optim, batch_size=batch_size
            )
            set_learning_rate(optimizer, rate, peak=peak_rate(config.optim, batch_size=batch_size))
            torch.manual_seed(_key(config.run.seed, step))  # dropout and the like: a function of the step
            done, norms = train_step(model, optimizer, batch, config, Progress(epoch, step, batches.num_steps))
            check.add(step, done.loss, norms)
            step += 1

            figures.add({"loss": done.loss, "grad_norm": norms.total, **done.logs, **_shares(batch)})
            log.advance()
            if step % config.run.log_every == 0 or step % batches.steps_per_epoch == 0:
                seconds = time.perf_counter() - since
                speed = {
                    "clips_per_second": (step - reported) * config.data.batch_size / seconds,
                    "data_wait": waited / seconds,
                }
                report = {"epoch": epoch, **figures.pop(), "lr": rate, **speed, **_collapse(done)}
                log.report(step, report)
                waited, since, reported = 0.0, time.perf_counter(), step
            stopping = distributed.any_rank(stop.asked) or step == config.run.max_steps
            if stopping or step % config.run.checkpoint_every == 0 or step % batches.steps_per_epoch == 0:
                check.settle()
                save(step)
            if stopping and step < batches.num_steps:
                log.say(f"stopped and saved at step {step} of {batches.num_steps}: the same command continues")
                return False
        log.say(f"complete: {batches.num_steps} steps, {folder / LAST} and {folder / ENCODERS}")
    return True


def training_clips(manifest: Manifest, config: Config, method: Method) -> ClipDataset:
    """The clips as the method wants them.

    Raises:
        TracksError: the tracks that it wants cannot be read, or are of another manifest.
    """
    table = track_table(method.views)
    tracks = None if table is None else read_tracks(table, manifest_hash=manifest.hash)
    return ClipDataset(manifest, config.data, method.views, tracks=tracks, seed=config.run.seed)


def check_tracked(dataset: ClipDataset, instances: Instances, config: Config) -> None:
    """Raise ConfigError when a method wants tracked patches and no clip of the split has any."""
    if dataset.tracks is not None and not instances.valid.numpy()[dataset.tracks.ids].any():
        raise ConfigError(
            f"no clip with data.split={config.data.split or 'null'} has a track in {track_table(dataset.views)}: mine "
            "that split with python tools/track.py, and look at the reasons that it prints"
        )


def tracks_of(dataset: ClipDataset) -> str:
    """Digest of the tracks that a run is trained on; empty for a method without."""
    return "" if dataset.tracks is None else dataset.tracks.digest


def shared_buffers(method: Method) -> dict[str, torch.Tensor]:
    """Buffers that must be the same on every rank: all but the statistics of BatchNorm, which each rank has of its own
    clips."""
    own = {
        f"{name}.{buffer}"
        for name, module in method.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer, _ in module.named_buffers()
    }
    return {name: value for name, value in method.named_buffers() if name not in own}


def usable_instances(manifest: Manifest, config: Config) -> Instances:
    """Rows that may be trained on, as data.policy says.

    Raises:
        ConfigError: the split has no usable clip, or holds one whose policy is error.
    """
    admitted = admit(manifest, config.data)
    valid = admitted.valid
    if not valid.any():
        way_out = "or set data.split=null to train on every row" if config.data.split else "and at the folder it is of"
        raise ConfigError(
            f"no usable clip with data.split={config.data.split or 'null'} in {config.data.manifest}: look at its "
            f"columns split, status and reason ({admitted.describe()}), {way_out}"
        )
    instances = Instances(
        valid=torch.from_numpy(valid.copy()),
        has_audio=torch.from_numpy(manifest.has_audio.copy()),
        has_video=torch.from_numpy(manifest.has_video.copy()),
    )
    return with_classes(instances, manifest, config) if is_supervised(config) else instances


def with_classes(instances: Instances, manifest: Manifest, config: Config) -> Instances:
    """The same rows with their labels as classes; those without a label are left out.

    Raises:
        ConfigError: fewer than two classes.
    """
    labels = np.array([label or "" for label in manifest.column("label").tolist()])
    valid = instances.valid.numpy() & (labels != "")
    classes = sorted(set(labels[valid].tolist()))
    if len(classes) < 2:
        raise ConfigError(
            f"method.name={config.method['name']} learns labels, and the usable clips with data.split="
            f"{config.data.split or 'null'} in {config.data.manifest} have {len(classes)} of them "
            f"({', '.join(classes) or 'none'}): at least two are needed (column label)"
        )
    target = np.where(np.isin(labels, classes), np.searchsorted(classes, labels), -1)
    return replace(instances, valid=torch.from_numpy(valid), target=torch.from_numpy(target), classes=classes)


def spare_cores(num_workers: int) -> int:
    """Cores that the decoding workers of this machine's ranks leave to each rank, at least 1.

    More threads than cores cost far more than they bring: on 2 cores with 2 workers, 1 thread trains 1.5 times as
    many clips per second as 2.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, (os.cpu_count() or 1) // ranks - num_workers)


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GB of what tensors free, for the tensors of the next step.

    As it comes, the C library hands the end of its memory back to the system whenever some 64 MB are free there, many
    times in a step, and every page that is asked for again has to be cleared: 8 % of a step in bfloat16 with 8 clips of
    AVID's recipe. glibc only (Linux); elsewhere nothing changes.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3  # numbers of options in malloc.h
    library.mallopt(mmap_threshold, 32 << 20)  # where glibc itself ends up; set, since the next call fixes it
    library.mallopt(trim_threshold, 1 << 30)


def to_channels_last(module: nn.Module, *, enabled: bool = True) -> None:
    """Lay convolution weights out with channels last, where the fast kernels of CPUs and GPUs want them.

    By moving the axis: asked for a memory format, torch leaves a kernel of one channel (the first of an audio tower) as
    it is, and that layer's output, the largest of all, comes out with channels first.
    """
    for parameter in module.parameters():
        if enabled and parameter.dim() in (4, 5):
            moved = parameter.data.movedim(1, -1).clone(memory_format=torch.contiguous_format)
            parameter.data = moved.movedim(-1, 1)


def compile_encoders(method: Method, device: torch.device) -> None:
    """torch.compile the encoders, in place (the names of their parameters stay), for each shape that views have.

    Raises:
        ConfigError: no compiler works here.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.ones(2, device=device))
    except RuntimeError as error:
        raise ConfigError(
            f"run.compile=true, but torch.compile fails here ({str(error).strip().splitlines()[0]}): install a C++ "
            "compiler (g++), or set run.compile=false"
        ) from error
    # A shape for every view, in training and in evaluation mode; one more is an error, never a silent fall back.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(method.views))
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for encoder in method.encoders.values():
        encoder.compile(dynamic=False)


class StopRequest:
    """Turns the first SIGTERM or Ctrl-C into a polite request to save and stop; the second acts as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])


def _resume(
    config: Config,
    manifest: Manifest,
    method: Method,
    optimizer: torch.optim.Optimizer,
    before: dict[str, Any] | None,
    dataset: ClipDataset,
) -> int:
    """Load the run's last checkpoint, or the one to start from; returns the step to continue at.

    Args:
        before: the run's last checkpoint, of this manifest; None = there is none.
        dataset: whose tracks must be those of the checkpoint.
    """
    if before is not None:
        last = Path(config.run.dir) / LAST
        if config.run.resume == "never":
            raise ConfigError(
                f"run.resume=never, but {last} holds a run already: choose another run.dir, or delete that folder "
                f"yourself"
            )
        _check_same_run(config, loads(before["config"]), last)
        if before.get("tracks", "") != tracks_of(dataset):
            raise ConfigError(
                f"the tracks in {track_table(dataset.views)} are not those that the run in {last.parent} was trained "
                "on: put that table back, or choose another run.dir for a new run"
            )
        load_model(method, before, path=last)
        load_optimizer_state(optimizer, before["optimizer"])
        return int(before["step"])
    if config.model.init:
        state = load_checkpoint(Path(config.model.init))
        check_manifest(state, manifest.hash, path=config.model.init, manifest=config.data.manifest)
        load_initial(method, state, path=config.model.init)
    return 0


def _open_folder(folder: Path, config: Config) -> None:
    """Make the run's folder and write its config: the first sign of a folder that cannot be used."""
    try:
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(dumps(config))
    except WriteError as error:
        raise ConfigError(f"run.dir={folder}: {error}") from error


@contextmanager
def _explained(last: Path, config: Config, manifest: Manifest) -> Iterator[None]:
    """Say of a run whose folder can no longer be written to, or whose worker is lost, what is left and how to go on.
    The clips that the worker was at go on the manifest's quarantine list.
    """
    try:
        yield
    except WriteError as error:
        raise TrainingError(f"{error}; {_last_good(last)}; the same command continues") from error
    except WorkerLost as error:
        what = _put_away(error, config.data.manifest, manifest)
        raise TrainingError(f"{what}; {_last_good(last)}; the same command continues") from error


def _put_away(lost: WorkerLost, manifest_path: str, manifest: Manifest) -> str:
    """Put the clips that a lost worker was at on the quarantine list, and say so."""
    if not lost.ids:
        return f"{lost.reason}, at no clip that could be named: too little memory, or data.num_workers too high?"
    files = ", ".join(str(manifest.path(row)) for row in lost.ids)
    try:
        for row in lost.ids:
            path, key = (manifest.table.column(name)[row].as_py() for name in ("path", "content_key"))
            add_to_quarantine(manifest_path, Entry(path, key, lost.reason))
    except WriteError as error:
        return f"{lost.reason} at {files}, which will happen again, since the quarantine list {error}"
    return f"{lost.reason} at {files}: on the quarantine list {quarantine_path(manifest_path)} now, no longer read"


def _last_good(last: Path) -> str:
    if not last.exists():
        return "no checkpoint was written yet"
    return f"the last good checkpoint is {last} at step {load_checkpoint(last)['step']}"


def _check_same_run(config: Config, before: Config, last: Path) -> None:
    """A resumed run must be the same run; where it lives and how it is executed may differ."""
    free = {"data.manifest", "data.root", "data.num_workers", "data.worker_timeout_seconds"}
    free |= {"data.max_pixels", "data.max_seconds"}  # and where tracks lie: what they say is compared apart
    sections = [entry.model_dump() | {"method": method_options(entry)} for entry in (config, before)]
    for section in ("data", "model", "method", "optim"):
        now, then = (_flat(entry[section]) for entry in sections)
        for name in sorted(now.keys() | then.keys()):
            is_free = f"{section}.{name}" in free or (section == "method" and name.split(".")[-1] == "tracks")
            same = _within(config.run.dir, now.get(name)) == _within(before.run.dir, then.get(name))
            if not (same or is_free):
                raise ConfigError(
                    f"{section}.{name}={now.get(name)}, but the run in {last.parent} was started with "
                    f"{then.get(name)}: choose "
                    "another run.dir for a new run, or repeat the old value to continue"
                )
    if config.run.seed != before.run.seed:
        raise ConfigError(
            f"run.seed={config.run.seed}, but the run in {last.parent} was started with {before.run.seed}"
        )


def _within(folder: str, value: object) -> object:
    """A file of the run's own folder as seen from there, since it moves with it; anything else as it is."""
    inside = isinstance(value, str) and Path(value).is_relative_to(folder)
    return str(Path(value).relative_to(folder)) if inside else value


def _flat(section: Mapping[str, object]) -> dict[str, object]:
    """{name: value} of a section, that of a nested one as `policy.silent`."""
    flat = {}
    for name, value in section.items():
        inner = value if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": each for key, each in _flat(inner).items()} or {name: value}
    return flat


def _wrap(method: Method, config: Config, device: torch.device) -> nn.Module:
    if config.run.sync_batchnorm:
        if device.type != "cuda":
            raise ConfigError("run.sync_batchnorm=true needs a GPU: PyTorch's SyncBatchNorm does not run on CPU")
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    if distributed.world_size() == 1:
        return method
    # Banks are moved by the same update on every rank; broadcasting them at every step would cost more than the step.
    return DistributedDataParallel(
        method,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=method.find_unused_parameters,
    )


@dataclass(frozen=True)
class GradientNorms:
    """Norms of one step's gradients, before clipping."""

    names: list[str]  # of the parameters that have a gradient
    each: torch.Tensor  # (P,) in that order
    total: torch.Tensor  # ()


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, config: Config, progress: Progress
) -> tuple[Step, GradientNorms]:
    """One optimiser step on this rank's batch: views, loss, gradients, clipping, weights, state of the method.

    Nothing here makes the host wait for a GPU.

    Args:
        model: the method, or DistributedDataParallel around it.
        optimizer: of its parameters; its gradients are None before and after.
        batch: as loaded, on the model's device.
        config: its sections data, optim and run are used.
        progress: where the run is.
    """
    method = model.module if isinstance(model, DistributedDataParallel) else model
    done = forward_backward(model, batch, config, progress)
    named = {name: p for name, p in method.named_parameters() if p.grad is not None}
    each = torch.stack(torch._foreach_norm([p.grad for p in named.values()]))
    norms = GradientNorms(list(named), each, torch.linalg.vector_norm(each))
    if config.optim.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(named.values(), config.optim.clip_norm, norms.total)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(done, progress)
    return done, norms


class FiniteCheck:
    """Stops a run whose loss or gradient is not finite, before a checkpoint of it is written.

    At once on CPU. On a GPU a step later, from a copy that arrives while the next step runs, so that the host is never
    kept from handing over the next one.

    Args:
        last: the run's checkpoint, named in the error.
        delayed: look a step later.
    """

    def __init__(self, last: Path, *, delayed: bool) -> None:
        self.last = last
        self.delayed = delayed
        self._waiting: tuple[int, list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, step: int, loss: torch.Tensor, norms: GradientNorms) -> None:
        """Note a step's figures, and look at those noted before (not delayed: at these).

        Raises:
            TrainingError: as `settle`.
        """
        self.settle()
        figures = torch.cat([torch.stack([loss.float(), norms.total]), norms.each])  # (2 + P,)
        arrived = None
        if figures.device.type == "cuda":
            figures = torch.empty_like(figures, device="cpu", pin_memory=True).copy_(figures, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting = (step, norms.names, figures, arrived)
        if not self.delayed:
            self.settle()

    def settle(self) -> None:
        """Look at what was noted.

        Raises:
            TrainingError: a figure is not finite; names the step and the first parameter.
        """
        if self._waiting is None:
            return
        (step, names, figures, arrived), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()
        loss, total, *each = figures.tolist()
        if math.isfinite(loss) and math.isfinite(total):
            return
        bad = [name for name, norm in zip(names, each, strict=True) if not math.isfinite(norm)]
        raise TrainingError(
            f"step {step}: loss is {loss}, gradient norm {total}, "
            f"first parameter with such a gradient: {bad[0] if bad else 'none'} ({len(bad)} in all); "
            f"{_last_good(self.last)}. Try a lower optim.lr, optim.clip_norm, or run.precision=float32"
        )


def forward_backward(model: nn.Module, batch: Batch, config: Config, progress: Progress) -> Step:
    """Gradients of one batch, in optim.accumulate parts."""
    method = model.module if isinstance(model, DistributedDataParallel) else model
    steps = []
    parts = batch.split(config.optim.accumulate)
    for index, part in enumerate(parts):
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = index == len(parts) - 1
        ready = apply_views(part, method.views, config.data)
        with torch.autocast(ready.ids.device.type, torch.bfloat16, enabled=config.run.precision == "bfloat16"):
            done = model(ready, Progress(progress.epoch, progress.step, progress.num_steps, part=index))
        (done.loss / len(parts)).backward()
        steps.append(replace(done, loss=done.loss.detach()))
    return Step.merge(steps)


def _check_readable(batch: Batch, log: RunLog, step: int) -> None:
    """Name every file that could not be read; stop when a whole batch is lost."""
    for error in batch.errors:
        log.say(f"step {step}: not read, left out: {error}")
    if batch.errors:
        log.report(step, {"unreadable": list(batch.errors)})
    closed = [error for error in batch.errors if CLOSED in error]  # a batch of one such clip is no reason to stop
    if len(batch.errors) == len(batch) and not closed:
        raise TrainingError(
            f"step {step}: no file of the batch could be read (first: {batch.errors[0]}): is data.root right?"
        )


def _shares(batch: Batch) -> dict[str, torch.Tensor]:
    """Shares of this batch's clips."""
    lost = batch.ids < 0
    return {
        "share_unreadable": lost.float().mean(),
        "share_soundless": (~batch.has_audio & ~lost).float().mean(),
        "share_pictureless": (~batch.has_video & ~lost).float().mean(),
        "share_padded": torch.stack(list(batch.padded.values())).any(dim=0).float().mean(),
    }


def _precision(method: Method, figures: Mapping[str, float], manifest: Manifest) -> dict[str, float]:
    """How often the sets that `figures` tell of agree with the labels, where there are any, and how often sets drawn at
    random would. The log alone learns it: nothing of it reaches the method.
    """
    targets = torch.from_numpy(manifest.targets())  # (N,)
    found = {}
    for name, sets in method.agreement_sets().items():
        mined = (sets >= 0).any(dim=1).cpu()  # (N,)
        if any(figure.startswith(f"{name}/") for figure in figures) and (targets[mined] >= 0).sum() > 1:
            found[f"{name}/precision"] = agreement_precision(sets, targets)
            found[f"{name}/chance"] = chance_precision(targets, mined)
    return found


def _collapse(step: Step) -> dict[str, float]:
    """Signs of collapse among the clips that have the side in question, where there are two."""
    present = {name: x.z[x.ids >= 0] for name, x in step.embeddings.items()}
    return {
        f"{name}_{figure}": float(value)
        for name, z in present.items()
        if len(z) > 1
        for figure, value in collapse_figures(z).items()
    }


def _key(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def _describe(
    config: Config,
    manifest: Manifest,
    instances: Instances,
    batches: TrainingBatches,
    device: torch.device,
    decoder: str,
) -> str:
    sounding = int(instances.usable["audio"].sum())
    sound_only = int((instances.usable["audio"] & ~instances.has_video).sum())
    sides = f"{sounding} with sound" + (f", {sound_only} of them without picture" if sound_only else "")
    classes = f"{len(instances.classes)} classes, " if instances.classes else ""
    return (
        f"{config.method['name']}: {int(instances.valid.sum())} clips ({sides}) of {instances.num} rows, {classes}"
        f"{batches.num_steps} steps of {config.data.batch_size} on {distributed.world_size()} x {device.type}, "
        f"{config.run.precision}, decoded by {decoder}"
    )


def _left_out(admitted: Admitted, instances: Instances) -> str:
    """What is not trained on, and what is although it lacks something."""
    unlabelled = int(admitted.valid.sum()) - int(instances.valid.sum())
    return admitted.describe() + (f"; {unlabelled} without a label left out" if unlabelled else "")
