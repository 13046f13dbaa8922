"""Checkpoints: written whole or not at all, read without running code, and bound to their manifest.

A checkpoint holds tensors, str, int, float, bool, None, list and dict only, so that `torch.load(weights_only=True)`
reads it.
"""

import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

import avssl
from avssl.config import loads
from avssl.data.manifest import Manifest
from avssl.files import atomic_write, did_you_mean
from avssl.methods import METHODS
from avssl.methods.base import Method
from avssl.structs import SameRows

LAST = "last.pt"
ENCODERS = "encoders.safetensors"
FORMAT = 3  # of a checkpoint
ENTRIES = {
    "config": str,
    "manifest_hash": str,
    "rows": Tensor,
    "instances": dict,
    "decoder": dict,
    "model": dict,
    "step": int,
}
DAMAGED = (RuntimeError, TypeError, KeyError, AttributeError, IndexError, OverflowError, MemoryError)  # by odd contents
UNREADABLE = (EOFError, pickle.UnpicklingError, ValueError, struct.error, AssertionError, zipfile.BadZipFile)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and the fix."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically: a crash at any moment leaves the old file or the new one.

    Raises:
        WriteError: the disk is full, or the folder may not be written to; the old file stays.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(_plain({"format": FORMAT, "avssl": avssl.__version__, **state}), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch says "unexpected pos" when the file refuses a write
                raise error.__context__ from error
            raise


def _plain(value: Any) -> Any:
    """Lists for the tuples in an optimizer's state (Adam's betas): a checkpoint holds no other containers."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def export_encoders(path: Path, method: Method) -> None:
    """Weights of the encoders alone, as safetensors, keys `video.*` and `audio.*`; atomic too.

    Raises:
        WriteError: as `save_checkpoint`.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in method.encoders.state_dict().items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors))  # save_file writes under a random name, which a kill would leave behind


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file does not exist, is not one of ours, or is damaged.
    """
    try:
        if path.is_dir():
            path = path / LAST
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_sums(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"checkpoint {path} does not exist: {did_you_mean(path)}give the folder of a run, or its {LAST}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error.strerror}): may you read it?") from error
    except (*DAMAGED, *UNREADABLE) as error:
        # torch's own words recommend weights_only=False, which would run the code in a foreign file
        why = "holds more than plain data" if "nsupported global" in str(error) else "is damaged or cut short"
        raise CheckpointError(
            f"checkpoint {path} cannot be used, it {why}: put a whole copy in its place, or move it away to start anew"
        ) from error
    if not isinstance(state, dict) or not {"config", "manifest_hash", "model"} <= state.keys():
        raise CheckpointError(f"{path} is not a checkpoint of avssl: expected the {LAST} of a run")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} is of format {state.get('format', 1)}, which avssl {state.get('avssl', '0.1.0')} "
            f"reads; this is avssl {avssl.__version__} with format {FORMAT}: use that version, or train anew"
        )
    wrong = [name for name, kind in ENTRIES.items() if not isinstance(state.get(name), kind)]
    if (
        wrong
        or not _are_rows(state["instances"])
        or not all(isinstance(each, Tensor) for each in state["model"].values())
    ):
        raise CheckpointError(
            f"checkpoint {path} cannot be used, its {', '.join(wrong) or 'instances or model'} is not avssl's: "
            "put a whole copy in its place, or move it away to start anew"
        )
    return state


def _check_sums(path: Path) -> None:
    """Raise ValueError where a byte of the file's entries has changed: torch does not look at their checksums."""
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is another")


def _are_rows(instances: dict[str, Any]) -> bool:
    """Whether the tensors are about the same rows, each with a value of its own (none is repeated by its stride)."""
    rows = [each for each in instances.values() if isinstance(each, Tensor)]
    has_rows = all(each.dim() in (1, 2) and each.is_contiguous() for each in rows)  # of several classes: (N, C)
    return has_rows and len({len(each) for each in rows}) == 1


@contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Raise CheckpointError, naming the file, for contents that cannot be made use of."""
    try:
        yield
    except DAMAGED as error:
        why = " ".join(f"{type(error).__name__}: {error}".split()[:40])
        raise CheckpointError(
            f"checkpoint {path} cannot be used, it is damaged or of another version of a method ({why}): put a whole "
            "copy in its place, or start a new run"
        ) from error


def check_manifest(state: dict[str, Any], manifest: Manifest, *, path: str | Path, read_from: str | Path) -> None:
    """Refuse a checkpoint of other rows: its memory banks belong to other clips. Training copies are the same rows.

    Raises:
        CheckpointError
    """
    if state["manifest_hash"] != manifest.hash and not np.array_equal(state["rows"].numpy(), manifest.keys):
        raise CheckpointError(
            f"checkpoint {path} belongs to another manifest than {read_from} (hash {state['manifest_hash'][:12]} "
            f"against {manifest.hash[:12]}): rows are instances, so its memory banks would belong to other clips; use "
            "the manifest it was trained on, or start another run from it (model.init)"
        )


def load_model(method: nn.Module, state: dict[str, Any], *, path: str | Path) -> None:
    """Continue a method from its own checkpoint: every entry, and no other.

    Raises:
        CheckpointError: the entries are not those of this version of the method.
    """
    try:
        method.load_state_dict(state["model"])
    except RuntimeError as error:
        difference = " ".join(str(error).split()[:40])
        raise CheckpointError(
            f"checkpoint {path} does not fit this version of the package ({difference}): use the version that wrote "
            "it, or start a new run"
        ) from error


def load_initial(
    method: nn.Module, state: dict[str, Any], *, path: str | Path, rows: SameRows | None = None
) -> list[str]:
    """Start a method from an earlier run of any method: every part (encoder, head, bank, momentum copy) that both have
    is taken over. Of what a row of the manifest has (bank vectors, queued ones, sets) that of the rows which both train
    on. A method of several parts may start from a run of one of them. A momentum copy that the run did not have starts
    equal to the weights that came from it.

    Args:
        rows: which rows of the manifests are the same; None = all, in their order.

    Returns:
        Parts of the checkpoint that are not taken over, such as sets, which AVID does not have.

    Raises:
        CheckpointError: a part that both have is of another size.
    """
    given = state["model"]
    whole, prefix = method, ""
    parts = {
        name: part for name, part in getattr(method, "parts", {}).items() if given.keys() <= part.state_dict().keys()
    }
    if parts:  # the same method first: what a run of patches has, every method with a head for video has too
        kind = METHODS.get(loads(state["config"]).method["name"], Method)
        name, method = min(parts.items(), key=lambda part: not isinstance(part[1], kind))
        prefix = f"parts.{name}."
    if rows is None:
        every = torch.arange(whole.instances.num)
        rows = SameRows.of_keys(every, every, valid=whole.instances.valid)
    for name, module in method.named_modules():
        start = f"{name}." if name else ""
        held = {entry.removeprefix(start): value for entry, value in given.items() if entry.startswith(start)}
        if held and hasattr(module, "of_rows"):
            ours = module.of_rows(held, rows)
            given = given | {f"{start}{entry}": value for entry, value in ours.items()}
    own, theirs = (_by_part(entries, method) for entries in (method.state_dict(), given))
    for name in sorted(theirs.keys() & own.keys()):
        _check_same_size(theirs[name], own[name], path)
    left = [name for name in theirs if name not in own]
    taken = {entry: value for name, entries in theirs.items() if name in own for entry, value in entries.items()}
    method.load_state_dict(taken, strict=False)
    taken = {prefix + entry for entry in taken}
    for name, each in whole.named_modules():
        copies = f"{name}.target." if name else "target."
        if isinstance(each, Method) and not any(entry.startswith(copies) for entry in taken):
            each.reset_target()
    return left


def _by_part(entries: Mapping[str, Tensor], method: nn.Module) -> dict[str, dict[str, Tensor]]:
    """{encoders.video, heads.audio, banks.video, queue, log_z, ...: {entry: value}}: entries that belong together."""
    groups = {name for name, module in method.named_modules() if isinstance(module, nn.ModuleDict | Method)}
    found: dict[str, dict[str, Tensor]] = {}
    for entry, value in entries.items():
        names, depth = entry.split("."), 1
        while ".".join(names[:depth]) in groups:
            depth += 1
        found.setdefault(".".join(names[:depth]), {})[entry] = value
    return found


def _check_same_size(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for a part that cannot be taken over whole."""
    one, two = ({name: tuple(value.shape) for name, value in entries.items()} for entries in (theirs, ours))
    for name in [*one, *two]:
        if one.get(name) != two.get(name):
            raise CheckpointError(
                f"model.init={path}: {name} is {one.get(name, 'missing')}, here {two.get(name, 'missing')}: start from "
                "a run with the same sizes in its sections model and method, or take its encoders alone "
                "(model.video_weights, model.audio_weights)"
            )
