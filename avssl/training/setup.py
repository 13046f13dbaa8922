"""Everything that a run needs before its first step, from its configuration."""

import ctypes
import os
import platform
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from avssl import distributed
from avssl.config import Config, ConfigError, DataConfig, OptimConfig, loads, without_weights
from avssl.data.dataset import ClipDataset, check_decoder, track_table
from avssl.data.loader import build_loader
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.policy import admit, num_slow, split_of
from avssl.data.sampling import TrainingBatches
from avssl.data.tracks import read_tracks
from avssl.media.decoders import format_decoder
from avssl.methods import build_method, import_methods, is_supervised
from avssl.methods.base import Method
from avssl.mining.tiles import has_fast_bfloat16
from avssl.objectives.negatives import Bank
from avssl.structs import Batch, Instances
from avssl.trackers import check_installed
from avssl.training.checkpoint import LAST, check_manifest, load_checkpoint
from avssl.training.optim import build_optimizer
from avssl.training.resume import resume
from avssl.transforms.views import make_example

FEW_STEPS = 200  # the toy set is learned in some 300


@dataclass(frozen=True)
class Setup:
    """A run before its first step."""

    config: Config
    folder: Path
    device: torch.device
    decoder: dict[str, str]
    manifest: Manifest
    instances: Instances
    dataset: ClipDataset
    batches: TrainingBatches
    loader: DataLoader[Batch]
    method: Method
    model: nn.Module  # the method, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    before: dict[str, Any] | None  # the run's last checkpoint
    first_step: int
    notes: list[str]  # on what it goes on with, for a person


def set_up(config: Config) -> Setup:
    """Read the manifest, build the method and load what the run goes on with. Nothing is written.

    Raises:
        ConfigError, ManifestError, CheckpointError: the run cannot start as it is configured.
    """
    check_installed(config.run.loggers)
    device = distributed.choose_device(config.run.device)
    if device.type == "cpu":
        torch.set_num_threads(config.run.num_threads or spare_cores(config.data.num_workers))
        keep_freed_memory()
    import_methods(config)
    last = Path(config.run.dir) / LAST
    decoder = check_decoder(config.data)
    manifest = read_manifest(config.data.manifest, root=config.data.root)
    config = config.replace(data=config.data.replace(split=split_of(manifest, config.data)))
    before = load_checkpoint(last) if last.exists() else None
    if config.run.precision == "auto":
        precision = loads(before["config"]).run.precision if before else fast_precision(device)
        config = config.replace(run=config.run.replace(precision=precision))
    if before is None:
        instances = usable_instances(manifest, config)
    else:
        check_manifest(before, manifest, path=last, read_from=config.data.manifest)
        # Rows that can no longer be read keep their place: steps, banks and draws are those of the run.
        instances = Instances(**before["instances"])
        if instances.target is not None and instances.labels_hash != manifest.labels_hash:
            raise ConfigError(
                f"labels or splits in {config.data.manifest} are not those that the run in {last.parent} was started "
                "with: put them back, or choose another run.dir for a new run"
            )
    method = build_method(without_weights(config) if before else config, instances).to(device)
    to_channels_last(method, enabled=config.run.channels_last)
    optimizer = build_optimizer(method.named_parameters(), config.optim, lr_scales=method.lr_scales())
    dataset = training_clips(manifest, config, method)
    check_tracked(dataset, instances, config)
    check_inputs(method, config.data)
    first_step, notes = resume(config, manifest, method, optimizer, before, dataset)
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
    least = config.data.batch_size // distributed.world_size()  # clips of a rank, without an empty place
    check_norms(method, config, num_clips=least // config.optim.accumulate)
    return Setup(
        config=config,
        folder=last.parent,
        device=device,
        decoder=decoder,
        manifest=manifest,
        instances=instances,
        dataset=dataset,
        batches=batches,
        loader=build_loader(dataset, batches, config.data, device=device),
        method=method,
        model=_wrap(method, config, device),
        optimizer=optimizer,
        before=before,
        first_step=first_step,
        notes=notes,
    )


def fast_precision(device: torch.device) -> str:
    """bfloat16 where the device multiplies it, else float32. oneDNN also has kernels for AVX-512 without its bfloat16
    instructions, which are slower than float32's; without AVX-512 convolutions take some 30 times as long."""
    if device.type == "cuda":
        has_kernels = torch.cuda.is_bf16_supported(including_emulation=False)
    elif platform.machine() in ("x86_64", "AMD64"):
        has_kernels = has_fast_bfloat16()
    else:
        has_kernels = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if has_kernels else "float32"


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
            "that split with avssl track, and look at the reasons that it prints"
        )


def check_inputs(method: Method, data: DataConfig) -> None:
    """Raise ValueError for a view whose clips its encoder cannot take."""
    for view in method.views:
        method.networks[view.network].check_input(make_example(view, data))


def check_norms(method: Method, config: Config, *, num_clips: int) -> None:
    """Raise ConfigError where BatchNorm would normalize over one clip."""
    if config.run.sync_batchnorm:
        num_clips *= distributed.world_size()
    if num_clips < 2 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules()):
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} on {distributed.world_size()} processes with optim.accumulate="
            f"{config.optim.accumulate} leaves BatchNorm one clip to normalize over: at least 2 are needed"
        )


def usable_instances(manifest: Manifest, config: Config) -> Instances:
    """Rows that may be trained on, as data.policy says.

    Raises:
        ConfigError: the split has no usable clip, or holds one whose policy is error.
    """
    admitted = admit(manifest, config.data)
    valid = admitted.valid
    if not valid.any():
        hint = "or set data.split=null to train on every row" if config.data.split else "and at the folder it is of"
        raise ConfigError(
            f"no usable clip with data.split={config.data.split or 'null'} in {config.data.manifest}: look at its "
            f"columns split, status and reason ({admitted.describe()}), {hint}"
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
    sets = manifest.label_sets
    valid = instances.valid.numpy() & np.array([len(each) > 0 for each in sets])
    classes = sorted({name for row in np.flatnonzero(valid) for name in sets[row]})
    if len(classes) < 2:
        raise ConfigError(
            f"method.name={config.method['name']} learns labels, and the usable clips with data.split="
            f"{config.data.split or 'null'} in {config.data.manifest} have {len(classes)} of them "
            f"({', '.join(classes) or 'none'}): at least two are needed (column label)"
        )
    number = {name: i for i, name in enumerate(classes)}
    most = max(len(sets[row]) for row in np.flatnonzero(valid))
    known = [[number[name] for name in each if name in number][:most] for each in sets]
    target = torch.tensor([each + [-1] * (most - len(each)) for each in known])  # (N, most)
    return replace(
        instances,
        valid=torch.from_numpy(valid),
        target=target if most > 1 else target[:, 0],
        classes=classes,
        labels_hash=manifest.labels_hash,
    )


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

    By moving the axis: asked for a memory format, torch leaves a kernel of one channel (the first for audio) as it is,
    and that layer's output, the largest of all, comes out with channels first.
    """
    for parameter in module.parameters():
        if enabled and parameter.dim() in (4, 5):
            moved = parameter.data.movedim(1, -1).clone(memory_format=torch.contiguous_format)
            parameter.data = moved.movedim(-1, 1)


def compile_encoders(method: Method, device: torch.device) -> None:
    """torch.compile the encoders and their momentum copies, in place (the names of their parameters stay), for each
    shape that views have.

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
    # A shape for every view, in training and in evaluation mode, of an encoder and its copy; one more is an error,
    # never a silent fall back.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(method.views))
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    copies = {} if method.target is None else dict(method.target.networks)
    for encoder in (*method.networks.values(), *(copies[name] for name in copies if name in method.networks)):
        encoder.compile(dynamic=False)


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


def describe_memory(method: Method, optim: OptimConfig) -> str:
    """What lies in memory whatever the batch: weights, and for those that are trained a gradient and the optimizer's
    state; memory banks, queues, copies."""
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    still = sum(p.nbytes for p in method.parameters() if not p.requires_grad)
    kept = sum(buffer.nbytes for buffer in method.buffers())
    total = (2 + (2 if optim.name in ("adam", "adamw") else 1)) * trained + still + kept
    num = sum(p.numel() for p in method.parameters()) / 1e6
    return f"{num:.1f} million parameters; with gradients, optimizer and banks {total / 1e9:.2f} GB, besides the batch"


def small_set_notes(method: Method, num_steps: int) -> list[str]:
    """Where the set is too small for the settings."""
    lines = []
    if num_steps < FEW_STEPS:
        lines.append(
            f"note: {num_steps} steps are few, the toy set needs some 300 before anything is learned: raise "
            "optim.epochs or data.clips_per_video, or lower data.batch_size"
        )
    for part in method.modules():
        asked = getattr(part.options, "num_negatives", None) if isinstance(part, Method) else None
        sizes = [len(each.valid_ids) for each in part.modules() if isinstance(each, Bank)] if asked else []
        if sizes and min(sizes) <= asked:
            lines.append(
                f"note: method.num_negatives={asked} draws each of {min(sizes)} clips again and again: "
                f"method.num_negatives={max(16, min(sizes) // 10)} is enough"
            )
    return lines


def describe(run: Setup) -> list[str]:
    """What is trained on and with what, in lines for a person."""
    config, instances = run.config, run.instances
    with_sound = int(instances.usable["audio"].sum())
    sound_only = int((instances.usable["audio"] & ~instances.has_video).sum())
    modalities = f"{with_sound} with audio" + (f", {sound_only} of them without video" if sound_only else "")
    classes = f"{len(instances.classes)} classes, " if instances.classes else ""
    lines = [
        f"{config.method['name']}: {int(instances.valid.sum())} clips ({modalities}) of {instances.num} rows, {classes}"
        f"{run.batches.num_steps} steps of {config.data.batch_size} on {distributed.world_size()} x {run.device.type}, "
        f"{config.run.precision}, decoded by {format_decoder(run.decoder)}"
    ]
    lines.append(describe_memory(run.method, config.optim))
    shards = max((each.num_shards for each in run.method.modules() if isinstance(each, Bank)), default=1)
    if shards > 1:
        lines.append(f"note: each process draws negatives from its own 1/{shards} of the clips (method.shard_bank)")
    if num_empty := run.batches.rows * distributed.world_size() - config.data.batch_size:
        lines.append(
            f"note: {distributed.world_size()} processes do not divide data.batch_size={config.data.batch_size}: "
            f"{num_empty} of them have one clip less and an empty place"
        )
    if run.before is None:
        admitted = admit(run.manifest, config.data)
        unlabeled = int(admitted.valid.sum()) - int(instances.valid.sum())
        lines.append(admitted.describe() + (f"; {unlabeled} without a label left out" if unlabeled else ""))
        if config.data.split is None and not any(run.manifest.column("split")):
            lines.append("note: no clip has a split, so all are trained on")
        lines += small_set_notes(run.method, run.batches.num_steps)
    elif run.before["decoder"] != run.decoder:
        lines.append(
            f"note: the run was decoded with {format_decoder(run.before['decoder'])} before, now with "
            f"{format_decoder(run.decoder)}: frames may differ in a bit or two, so going on is not bit-equal to never "
            "having stopped"
        )
    if run.before and run.before["manifest_hash"] != run.manifest.hash:
        lines.append("note: other files of the same clips than before (training copies): going on is not bit-equal")
    if config.run.precision == "bfloat16" and fast_precision(run.device) != "bfloat16":
        lines.append(
            f"note: no fast bfloat16 on this {run.device.type}, so steps may take several times as long as with "
            "run.precision=float32"
        )
    if num := num_slow(run.manifest, instances.valid.numpy()):
        lines.append(
            f"note: {num} clips are of long MPEG files without an index, where every window takes seconds to find: "
            "avssl prepare makes copies that do not"
        )
    threads = torch.get_num_threads()
    if run.before and run.device.type == "cpu" and (before := run.before.get("num_threads", threads)) != threads:
        lines.append(
            f"note: {threads} threads of torch, {before} before: going on is not bit-equal to never having stopped; "
            f"run.num_threads={before} makes it so"
        )
    lines += run.notes
    if "tensorboard" in config.run.loggers:
        lines.append(f"to watch: tensorboard --logdir {shlex.quote(str(run.folder))}")
    return lines
