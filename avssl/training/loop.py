"""The training loop: one for every method. It knows batches, steps and checkpoints, and nothing of what a method does.

Everything random is a function of (seed, step), so a run that is killed and started again continues bit-equal on CPU.
"""

import time
from pathlib import Path

import numpy as np
import torch

from avssl import distributed
from avssl.config import Config, dumps
from avssl.data.loader import lost_workers_named
from avssl.logs import RunLog, RunningMean
from avssl.methods import own_files
from avssl.structs import Progress
from avssl.training.checkpoint import ENCODERS, LAST, export_encoders, save_checkpoint
from avssl.training.metrics import batch_metrics, collapse_metrics, set_metrics
from avssl.training.optim import learning_rate, optimizer_state, peak_rate, set_learning_rate
from avssl.training.probe import CollapseWatch, OnlineProbe, describe_probe, encode_clips, validation_rows
from avssl.training.resume import shared_buffers, tracks_of, whole_state
from avssl.training.session import (
    PageWriter,
    StopRequest,
    check_readable,
    hold_folder,
    note_session,
    wrap_errors,
    write_config,
)
from avssl.training.setup import Setup, describe, set_up
from avssl.training.step import FiniteCheck, train_step


def train(config: Config) -> bool:
    """Train as `config` says, from the run's last checkpoint when there is one.

    Writes into run.dir: `last.pt`, `encoders.safetensors`, `log.jsonl`, `sessions.jsonl`, `tensorboard/`,
    `config.yaml`.

    Returns:
        True when the run is complete; False when it was asked to stop (SIGTERM, Ctrl-C, run.max_steps) and saved
        itself.

    Raises:
        ConfigError, ManifestError, CheckpointError: before any work starts.
        LockedError: another process trains in run.dir.
        TrainingError: a loss or a gradient is not finite, no file of a batch can be read, or the run's folder can no
            longer be written to.
    """
    distributed.init(config.run.device)
    with hold_folder(Path(config.run.dir)):
        return _train(set_up(config))


def _train(run: Setup) -> bool:
    config = run.config
    if distributed.is_main():
        write_config(run.folder, config)
        note_session(run.folder, first_step=run.first_step, decoder=run.decoder, device=run.device.type)
    distributed.barrier()
    num_steps, steps_per_epoch, batch_size = run.batches.num_steps, run.batches.steps_per_epoch, config.data.batch_size
    with (
        wrap_errors(run.folder / LAST, config, run.manifest),
        lost_workers_named(run.dataset, config.data),
        RunLog(
            run.folder,
            first_step=run.first_step,
            num_steps=num_steps,
            loggers=config.run.loggers,
            config=config.model_dump(mode="json"),
        ) as log,
        StopRequest() as stop,
        PageWriter(run.folder, plugins=list(own_files(config))) as page,
    ):
        for line in describe(run):
            log.info(line)
        run.model.train()
        metrics, waited, since, reported = RunningMean(), 0.0, time.perf_counter(), run.first_step
        check, watch = FiniteCheck(run.folder / LAST, delayed=run.device.type == "cuda"), CollapseWatch()
        probe = OnlineProbe(
            run.manifest,
            run.instances,
            seed=config.run.seed,
            device=run.device,
            asked=validation_rows(run.manifest, config),
        )
        probe.load(run.before.get("probe", {}) if run.before else {})
        step, arrivals = run.first_step, iter(run.loader)
        last_step, stopping = min(num_steps, config.run.max_steps or num_steps), False
        while step < last_step and not stopping:
            epoch, done_of_epoch = divmod(step, steps_per_epoch)
            if done_of_epoch == 0 and (found := run.method.on_epoch(epoch)):
                log.report(step, {"epoch": epoch, **found, **set_metrics(run.method, found, run.manifest)})

            asked = time.perf_counter()
            batch = next(arrivals)
            waited += time.perf_counter() - asked
            batch = batch.to(run.device)
            check_readable(batch, log, step)

            rate = learning_rate(step, steps_per_epoch=steps_per_epoch, optim=config.optim, batch_size=batch_size)
            set_learning_rate(run.optimizer, rate, peak=peak_rate(config.optim, batch_size=batch_size))
            torch.manual_seed(_key(config.run.seed, step))  # dropout and the like: a function of the step
            done, norms = train_step(run.model, run.optimizer, batch, config, Progress(epoch, step, num_steps))
            check.add(step, done.loss, norms)
            step += 1

            if not run.method.supervised:
                probe.add(done, batch)
            metrics.add(
                {
                    "loss": done.loss,
                    "grad_norm": norms.total,
                    **done.logs,
                    **batch_metrics(batch, batch_size=batch_size),
                }
            )
            log.advance()
            ends_epoch = step % steps_per_epoch == 0
            if ends_epoch or step % config.run.log_every == 0:
                seconds = time.perf_counter() - since
                speed = {"clips_per_second": (step - reported) * batch_size / seconds, "data_wait": waited / seconds}
                signs, votes = collapse_metrics(done), name_classes(run, probe, log) if ends_epoch else {}
                log.report(step, {"epoch": epoch, **metrics.pop(), "lr": rate, **speed, **signs, **votes})
                for line in [*watch.look(step, signs, done), *describe_probe(votes, epoch)]:
                    log.info(line)
                waited, since, reported = 0.0, time.perf_counter(), step
            stopping = distributed.any_rank(stop.asked)
            if stopping or ends_epoch or step == last_step or step % config.run.checkpoint_every == 0:
                check.settle()
                save(run, step, probe)
                if ends_epoch and step < last_step and distributed.is_main():
                    page.look()
        if step < num_steps:
            how = "the same command continues" if step < last_step else f"run.max_steps={last_step}, raise it to go on"
            log.info(f"stopped and saved at step {step} of {num_steps}: {how}")
            return False
        log.info(f"complete: {num_steps} steps, {run.folder / LAST} and {run.folder / ENCODERS}")
    return True


def name_classes(run: Setup, probe: OnlineProbe, log: RunLog) -> dict[str, float]:
    """The votes of an epoch's end; what validation clips cost is said."""
    if not len(probe.asked):
        return probe.pop(run.method.banks)
    started = time.perf_counter()
    asked, errors = encode_clips(run.method.encoders, run.manifest, probe.asked, run.config.data, device=run.device)
    for error in errors:
        log.info(f"validation clip left out: {error}")
    log.info(f"{len(probe.asked)} validation clips took {time.perf_counter() - started:.1f} s (run.probe_clips)")
    return probe.pop(run.method.banks, asked)


def save(run: Setup, step: int, probe: OnlineProbe) -> None:
    """Write the checkpoint and the encoders; all ranks call it, and their buffers must be equal."""
    method, seen = run.method, probe.state()
    method.settle()
    distributed.check_equal(shared_buffers(method), f"the buffers of method {run.config.method['name']} at step {step}")
    model = whole_state(method)
    if distributed.is_main():
        state = {
            "config": dumps(run.config),
            "manifest_hash": run.manifest.hash,
            "rows": torch.from_numpy(run.manifest.keys),
            "instances": vars(run.instances),
            "own_files": own_files(run.config),
            "decoder": run.decoder,
            "num_threads": torch.get_num_threads(),
            "tracks": tracks_of(run.dataset),
            "step": step,
            "model": model,
            "heads": method.describe_heads(),
            "optimizer": optimizer_state(run.optimizer),
            "probe": seen,
        }
        export_encoders(run.folder / ENCODERS, method)
        save_checkpoint(run.folder / LAST, state)  # last: killed in between, the resumed run exports them again
    distributed.barrier()


def _key(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
