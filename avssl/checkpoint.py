"""Checkpoints: written whole or not at all, read without running code, and bound to their manifest.

A checkpoint holds tensors, str, int, float, bool, None, list and dict only, so that `torch.load(weights_only=True)`
reads it.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from avssl.methods.base import Method

LAST = "last.pt"
ENCODERS = "encoders.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and the way out."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically: a temporary name, fsync, rename. A crash at any moment leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        torch.save(state, file)
        os.fsync(file.fileno())
    _replace(temporary, path)


def export_encoders(path: Path, method: Method) -> None:
    """Weights of the encoders alone, as safetensors, keys `video.*` and `audio.*`; atomic too."""
    temporary = path.with_name(f".{path.name}.partial")
    tensors = {name: value.detach().cpu().contiguous() for name, value in method.encoders.state_dict().items()}
    save_file(tensors, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    _replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file does not exist, is not one of ours, or is damaged.
    """
    if path.is_dir():
        path = path / LAST
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist: give the folder of a run, or its {LAST}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({str(error).splitlines()[0]}): is it complete?"
        ) from error
    if not isinstance(state, dict) or not {"config", "manifest_hash", "model"} <= state.keys():
        raise CheckpointError(f"{path} is not a checkpoint of avssl: expected the {LAST} of a run")
    return state


def check_manifest(state: dict[str, Any], manifest_hash: str, *, path: str | Path, manifest: str | Path) -> None:
    """Refuse a checkpoint of another manifest: its memories belong to other clips.

    Raises:
        CheckpointError
    """
    if state["manifest_hash"] != manifest_hash:
        raise CheckpointError(
            f"checkpoint {path} belongs to another manifest than {manifest} (hash {state['manifest_hash'][:12]} "
            f"against "
            f"{manifest_hash[:12]}): rows are instances, so its memories would belong to other clips; use the "
            f"manifest it was "
            "trained on, or start a run of your own without it"
        )


def load_initial(method: nn.Module, state: dict[str, Any], *, path: str | Path) -> list[str]:
    """Start a method from an earlier run: every entry that both have is taken over.

    Returns:
        Names that the method has and the checkpoint has not (such as agreement sets that are not mined yet).

    Raises:
        CheckpointError: an entry has another shape, or the checkpoint has entries that the method does not know.
    """
    own = method.state_dict()
    given = state["model"]
    unknown = sorted(given.keys() - own.keys())
    other = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if unknown or other:
        name = (unknown or sorted(other))[0]
        reason = (
            "is not part of this method" if unknown else f"is {tuple(given[name].shape)}, here {tuple(own[name].shape)}"
        )
        raise CheckpointError(
            f"model.init={path}: {name} {reason} ({len(unknown) + len(other)} such entries): start from a run with "
            f"the same model "
            "section and a method that this one extends"
        )
    method.load_state_dict(given, strict=False)
    return sorted(own.keys() - given.keys())


def _replace(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself reaches the disk
    finally:
        os.close(folder)
