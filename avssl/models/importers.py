"""Weights from a local file into an encoder: the libraries' own checkpoints, AVID-CMA's, and what avssl exports.

Nothing is downloaded, and no code of the file is run.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from avssl.models.heads import Encoder

WRAPPERS = ("model_state", "state_dict", "model")  # pytorchvideo; lightning, MoCo; AVID-CMA, avssl
OWNERS = ("{}.", "{}_model.", "encoders.{}.")  # before a tower's names: encoders.safetensors; AVID-CMA; last.pt


def load_weights(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder from a file of the same network.

    Args:
        path: .safetensors, or anything that `torch.load(weights_only=True)` reads (.pt, .pth, .pyth). Wrappers around
            the weights, a leading `module.`, the other tower and the library's classifier are passed over.

    Raises:
        ValueError: the file is missing or cannot be read, or it lacks an entry, has one too many, or has one of
            another shape.
    """
    option = f"model.{encoder.modality}_weights={path}"
    given = _own_entries(_read(Path(path), option), encoder)
    own = encoder.state_dict()
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    other = [name for name in own if name in given and own[name].shape != given[name].shape]
    way_out = f"choose the file of this network, or the model.{encoder.modality} that the file belongs to"
    if missing:
        raise ValueError(f"{option} has no {missing[0]} ({len(missing)} of {len(own)} entries missing): {way_out}")
    if unexpected:
        raise ValueError(
            f"{option} has {unexpected[0]}, which the encoder has not ({len(unexpected)} such entries): {way_out}"
        )
    if other:
        name = other[0]
        raise ValueError(
            f"{option}: {name} is {tuple(given[name].shape)}, in the encoder {tuple(own[name].shape)} "
            f"({len(other)} such entries): {way_out}"
        )
    encoder.load_state_dict(given)


def _read(path: Path, option: str) -> dict[str, Any]:
    """The outermost mapping of a file that may be called weights."""
    if not path.is_file():
        raise ValueError(f"{option} does not exist: give the path of a local file, nothing is downloaded")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, SafetensorError) as error:
        # torch's own words recommend weights_only=False, which would run the code in a foreign file
        why = "holds more than tensors" if isinstance(error, pickle.UnpicklingError) else "is damaged or cut short"
        raise ValueError(f"{option} cannot be used, it {why}: give a complete file of tensors") from error
    while isinstance(state, dict) and (inner := [name for name in WRAPPERS if isinstance(state.get(name), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{option} holds no weights: expected tensors by name, bare or under {', '.join(WRAPPERS)}")
    return state


def _own_entries(state: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    """What belongs to this encoder, under the encoder's names."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    for owner in OWNERS:
        prefix = owner.format(encoder.modality)
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            break
    return {
        name: value for name, value in state.items() if not (encoder.classifier and name.startswith(encoder.classifier))
    }
