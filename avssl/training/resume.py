"""Saving a run and going on with it, or starting from another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avssl.config import Config, ConfigError, loads
from avssl.data.dataset import ClipDataset, track_table
from avssl.data.manifest import Manifest
from avssl.methods import foreign_methods, method_options, own_files
from avssl.methods.base import Method
from avssl.objectives.negatives import Bank
from avssl.structs import SameRows
from avssl.training.checkpoint import LAST, damage_named, load_checkpoint, load_initial, load_model
from avssl.training.optim import load_optimizer_state


def resume(
    config: Config,
    manifest: Manifest,
    method: Method,
    optimizer: torch.optim.Optimizer,
    before: dict[str, Any] | None,
    dataset: ClipDataset,
) -> tuple[int, list[str]]:
    """Load the run's last checkpoint, or the one to start from; returns the step to continue at, and notes for a
    person.

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
        with damage_named(last):
            load_optimizer_state(optimizer, before["optimizer"])
        changed = [
            name for name, hash in own_files(config).items() if before.get("own_files", {}).get(name, hash) != hash
        ]
        return before["step"], [
            f"note: {name.rpartition(':')[0]} has changed since the run was saved: going on is not bit-equal"
            for name in changed
        ]
    notes = []
    if config.model.init:
        state = load_checkpoint(Path(config.model.init))
        valid = method.instances.valid
        rows = SameRows.of_keys(torch.from_numpy(manifest.keys), state["rows"], valid=valid)
        left = load_initial(method, state, path=config.model.init, rows=rows)
        if left:
            notes.append(f"note: this method has no {_some(left)}, so those of {config.model.init} are not taken over")
        known = (rows.there >= 0) & state["instances"]["valid"][rows.there.clamp(min=0)]
        num_new = int((valid & ~known).sum())
        has_banks = any(isinstance(module, Bank) for module in method.modules())
        if num_new and has_banks:
            notes.append(
                f"note: {num_new} of {int(valid.sum())} clips are not among those that {config.model.init} was trained "
                "on: their vectors in the memory banks start at random"
            )
        elif has_banks:
            notes.append(f"starts from {config.model.init}, with its bank vectors of all {int(valid.sum())} clips")
        else:
            notes.append(f"starts from {config.model.init}")
    method.check_start()
    return 0, notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _check_same_run(config: Config, before: Config, last: Path) -> None:
    """A resumed run must be the same run; where it lives and how it is executed may differ."""
    free = {"data.manifest", "data.root", "data.num_workers", "data.worker_timeout_seconds", "data.cache_gigabytes"}
    free |= {"data.max_pixels", "data.max_seconds"}  # and where tracks lie: what they say is compared apart
    free |= {"model.init", "model.video_weights", "model.audio_weights"}  # the weights are those of the checkpoint
    if foreign := foreign_methods(before):
        raise ConfigError(
            f"method {foreign[0]} of the run in {last.parent} is not named by this configuration: repeat the name to "
            "continue, or choose another run.dir for a new run"
        )
    sections = [entry.model_dump() | {"method": method_options(entry)} for entry in (config, before)]
    for section in ("data", "model", "method", "optim"):
        now, then = (_flat(entry[section]) for entry in sections)
        for name in sorted(now.keys() | then.keys()):
            is_free = f"{section}.{name}" in free
            is_free |= section == "method" and name.split(".")[-1] in ("tracks", "shard_bank")
            same = _within(config.run.dir, now.get(name)) == _within(before.run.dir, then.get(name))
            if not (same or is_free):
                raise ConfigError(
                    f"{section}.{name}={now.get(name)}, but the run in {last.parent} was started with "
                    f"{then.get(name)}: repeat the old value to continue, or choose another run.dir for a new run, "
                    f"which model.init={last.parent} lets start from this one"
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


def whole_state(method: Method) -> dict[str, torch.Tensor]:
    """The state of a method for a checkpoint, with whole banks on rank 0; all ranks call it."""
    banks = {name: module.whole() for name, module in method.named_modules() if isinstance(module, Bank)}
    return method.state_dict() | {f"{name}.z": z for name, z in banks.items()}


def tracks_of(dataset: ClipDataset) -> str:
    """Digest of the tracks that a run is trained on; empty for a method without."""
    return "" if dataset.tracks is None else dataset.tracks.digest


def shared_buffers(method: Method) -> dict[str, torch.Tensor]:
    """Buffers that must be the same on every rank: all but the statistics of BatchNorm, which each rank has of its own
    clips, and banks in shards."""
    own = {
        f"{name}.{buffer}"
        for name, module in method.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (isinstance(module, Bank) and module.num_shards > 1)
        for buffer, _ in module.named_buffers()
    }
    return {name: value for name, value in method.named_buffers() if name not in own}
