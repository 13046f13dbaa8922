"""The training loop: one for every method. It knows batches, steps and checkpoints, and nothing of what a method does.

Everything random is a function of (seed, step), so a run that is killed and started again continues bit-equal on CPU.
"""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

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
from avssl.config import Config, ConfigError, dumps, loads
from avssl.data.dataset import ClipDataset, apply_views
from avssl.data.loader import build_loader
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.sampling import TrainingBatches
from avssl.files import WriteError, whole_file
from avssl.logs import RunLog, RunningMean, collapse_figures
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.optim import build_optimizer, learning_rate
from avssl.structs import Batch, Embedded, Instances, Progress, Step


class TrainingError(RuntimeError):
    """A run that cannot go on: the message says at which step, why, and which checkpoint is good."""


def train(config: Config) -> bool:
    """Train as `config` says, from the run's last checkpoint when there is one.

    Writes into run.dir: `last.pt`, `encoders.safetensors`, `log.jsonl`, `tensorboard/`, `config.yaml`.

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
    folder = Path(config.run.dir)
    manifest = read_manifest(config.data.manifest, root=config.data.root)
    instances = usable_instances(manifest, config)
    method = build_method(config, instances).to(device)
    to_channels_last(method, enabled=config.run.channels_last)
    optimizer = build_optimizer(method.parameters(), config.optim)
    first_step = _resume(config, manifest, method, optimizer)
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
    dataset = ClipDataset(manifest, config.data, method.views, seed=config.run.seed)
    loader = build_loader(dataset, batches, config.data, device=device)
    model = _wrap(method, config, device)
    if distributed.is_main():
        _open_folder(folder, config)
    distributed.barrier()

    def save(step: int) -> None:
        shared = {n: b for n, b in method.named_buffers() if not n.startswith(("encoders.", "heads."))}
        distributed.check_equal(shared, f"the buffers of method {config.method['name']} at step {step}")
        if distributed.is_main():
            state = {
                "config": dumps(config),
                "manifest_hash": manifest.hash,
                "num_instances": instances.num,
                "step": step,
                "model": method.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            export_encoders(folder / ENCODERS, method)
            save_checkpoint(folder / LAST, state)  # last: killed in between, the resumed run exports them again
        distributed.barrier()

    with (
        _explained(folder / LAST),
        RunLog(folder, first_step=first_step, num_steps=batches.num_steps) as log,
        StopRequest() as stop,
    ):
        log.say(_describe(config, manifest, instances, batches, device))
        model.train()
        figures, waited, since, reported = RunningMean(), 0.0, time.perf_counter(), first_step
        step, saved, arrivals = first_step, first_step, iter(loader)
        while step < batches.num_steps:
            epoch, place = divmod(step, batches.steps_per_epoch)
            if place == 0:
                epoch_figures = method.on_epoch(epoch)
                if epoch_figures:
                    log.report(step, {"epoch": epoch, **epoch_figures})

            asked = time.perf_counter()
            batch = next(arrivals)
            waited += time.perf_counter() - asked
            batch = batch.to(device)
            _check_readable(batch, log, step)

            rate = learning_rate(step, steps_per_epoch=batches.steps_per_epoch, optim=config.optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(_key(config.run.seed, step))  # dropout and the like: a function of the step
            done = _forward_backward(model, batch, config, Progress(epoch, step, batches.num_steps))
            grad_norm = _grad_norm(method, config.optim.clip_norm)
            if not (math.isfinite(grad_norm) and math.isfinite(done.loss)):
                raise TrainingError(_blame(method, step, done, grad_norm, folder / LAST if saved else None))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(done)
            step += 1

            figures.add(
                {"loss": done.loss, "grad_norm": done.loss.new_tensor(grad_norm), **done.logs, **_shares(batch)}
            )
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
                save(step)
                saved = step
            if stopping and step < batches.num_steps:
                log.say(f"stopped and saved at step {step} of {batches.num_steps}: the same command continues")
                return False
        log.say(f"complete: {batches.num_steps} steps, {folder / LAST} and {folder / ENCODERS}")
    return True


def usable_instances(manifest: Manifest, config: Config) -> Instances:
    """Rows that may be trained on.

    Raises:
        ConfigError: the split has no usable clip.
    """
    valid = manifest.valid(config.data.split)
    if not valid.any():
        way_out = "or set data.split=null to train on every row" if config.data.split else "and at the folder it is of"
        raise ConfigError(
            f"no usable clip with data.split={config.data.split or 'null'} in {config.data.manifest}: look at its "
            f"columns split, status and reason, {way_out}"
        )
    return Instances(valid=torch.from_numpy(valid.copy()), has_audio=torch.from_numpy(manifest.has_audio.copy()))


def spare_cores(num_workers: int) -> int:
    """Cores that the decoding workers of this machine's ranks leave to each rank, at least 1.

    More threads than cores cost far more than they bring: on 2 cores with 2 workers, 1 thread trains 1.5 times as
    many clips per second as 2.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, (os.cpu_count() or 1) // ranks - num_workers)


def to_channels_last(module: nn.Module, *, enabled: bool = True) -> None:
    """Lay convolution weights out with channels last, where the fast kernels of CPUs and GPUs want them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if enabled and parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


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


def _resume(config: Config, manifest: Manifest, method: Method, optimizer: torch.optim.Optimizer) -> int:
    """Load the run's last checkpoint, or the one to start from; returns the step to continue at."""
    last = Path(config.run.dir) / LAST
    if last.exists():
        if config.run.resume == "never":
            raise ConfigError(
                f"run.resume=never, but {last} holds a run already: choose another run.dir, or delete that folder "
                f"yourself"
            )
        state = load_checkpoint(last)
        check_manifest(state, manifest.hash, path=last, manifest=config.data.manifest)
        _check_same_run(config, loads(state["config"]), last)
        load_model(method, state, path=last)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
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
def _explained(last: Path) -> Iterator[None]:
    """Say of a run whose folder can no longer be written to what is left and how to go on."""
    try:
        yield
    except WriteError as error:
        good = "no checkpoint was written yet"
        if last.exists():
            good = f"the last good checkpoint is {last} at step {load_checkpoint(last)['step']}"
        raise TrainingError(f"{error}; {good}; the same command continues") from error


def _check_same_run(config: Config, before: Config, last: Path) -> None:
    """A resumed run must be the same run; where it lives and how it is executed may differ."""
    free = {"data.manifest", "data.root", "data.num_workers", "data.worker_timeout_seconds", "data.cache_gigabytes"}
    for section in ("data", "model", "method", "optim"):
        now, then = (getattr(entry, section) for entry in (config, before))
        now, then = (value if isinstance(value, dict) else vars(value) for value in (now, then))
        for name in sorted(now.keys() | then.keys()):
            if now.get(name) != then.get(name) and f"{section}.{name}" not in free:
                raise ConfigError(
                    f"{section}.{name}={now.get(name)}, but the run in {last.parent} was started with "
                    f"{then.get(name)}: choose "
                    "another run.dir for a new run, or repeat the old value to continue"
                )
    if config.run.seed != before.run.seed:
        raise ConfigError(
            f"run.seed={config.run.seed}, but the run in {last.parent} was started with {before.run.seed}"
        )


def _wrap(method: Method, config: Config, device: torch.device) -> nn.Module:
    if config.run.sync_batchnorm:
        if device.type != "cuda":
            raise ConfigError("run.sync_batchnorm=true needs a GPU: PyTorch's SyncBatchNorm does not run on CPU")
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    if distributed.world_size() == 1:
        return method
    # Banks are moved by the same update on every rank; broadcasting them at every step would cost more than the step.
    return DistributedDataParallel(
        method, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def _forward_backward(model: nn.Module, batch: Batch, config: Config, progress: Progress) -> Step:
    """Gradients of one batch, in optim.accumulate parts."""
    steps = []
    parts = batch.split(config.optim.accumulate)
    for index, part in enumerate(parts):
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = index == len(parts) - 1
        ready = apply_views(part, config.data)
        with torch.autocast(ready.ids.device.type, torch.bfloat16, enabled=config.run.precision == "bfloat16"):
            done = model(ready, Progress(progress.epoch, progress.step, progress.num_steps, part=index))
        (done.loss / len(parts)).backward()
        steps.append(Step(done.loss.detach(), done.logs, done.memo))
    return Step.merge(steps)


def _grad_norm(method: Method, clip_norm: float | None) -> float:
    return float(nn.utils.clip_grad_norm_(method.parameters(), clip_norm if clip_norm is not None else math.inf))


def _blame(method: Method, step: int, done: Step, grad_norm: float, last: Path | None) -> str:
    """Name what is not finite."""
    names = [n for n, p in method.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    first = names[0] if names else "none"
    good = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
    return (
        f"step {step}: loss is {float(done.loss)}, gradient norm {grad_norm}, "
        f"first parameter with such a gradient: {first} ({len(names)} in all); {good}. "
        f"Try a lower optim.lr, optim.clip_norm, or run.precision=float32"
    )


def _check_readable(batch: Batch, log: RunLog, step: int) -> None:
    """Name every file that could not be read; stop when a whole batch is lost."""
    for error in batch.errors:
        log.say(f"step {step}: not read, left out: {error}")
    if batch.errors:
        log.report(step, {"unreadable": list(batch.errors)})
    if len(batch.errors) == len(batch):
        raise TrainingError(
            f"step {step}: no file of the batch could be read (first: {batch.errors[0]}): is data.root right?"
        )


def _shares(batch: Batch) -> dict[str, torch.Tensor]:
    """Shares of this batch's clips."""
    lost = batch.ids < 0
    return {
        "share_unreadable": lost.float().mean(),
        "share_soundless": (~batch.has_audio & ~lost).float().mean(),
        "share_padded": torch.stack(list(batch.padded.values())).any(dim=0).float().mean(),
    }


def _collapse(step: Step) -> dict[str, float]:
    return {
        f"{name}_{figure}": float(value)
        for name, vectors in step.memo.items()
        if isinstance(vectors, Embedded)
        for figure, value in collapse_figures(vectors.z).items()
    }


def _key(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def _describe(
    config: Config, manifest: Manifest, instances: Instances, batches: TrainingBatches, device: torch.device
) -> str:
    sounding = int((instances.valid & instances.has_audio).sum())
    return (
        f"{config.method['name']}: {int(instances.valid.sum())} clips ({sounding} with sound) of {instances.num} rows, "
        f"{batches.num_steps} steps of {config.data.batch_size} on {distributed.world_size()} x {device.type}, "
        f"{config.run.precision}"
    )
