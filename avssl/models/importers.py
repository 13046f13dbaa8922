"""Weights from a local file into an encoder: the libraries' own checkpoints, AVID-CMA's, and what avssl exports.

Nothing is downloaded, and no code of the file is run, unless `trust_pickle` says so.
"""

import pickle
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from avssl.files import did_you_mean
from avssl.models.heads import Encoder

WRAPPERS = ("model_state", "state_dict", "model", "blobs")  # pytorchvideo; lightning, MoCo; AVID-CMA, avssl; Caffe2
DOT = re.compile(r"\.")
OWNERS = ("{}.", "{}_model.", "encoders.{}.")  # before an encoder's names: encoders.safetensors; AVID-CMA; last.pt


def load_weights(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder from a file of the same network.

    Args:
        path: .safetensors, or anything that `torch.load(weights_only=True)` reads (.pt, .pth, .pyth). Wrappers around
            the weights, one prefix of their names, the other encoder and the library's classifier are passed over.

    Raises:
        ValueError: the file is missing or cannot be read, holds several such networks, or it lacks an entry, has one
            too many, or has one of another shape or with NaN.
    """
    option = f"model.{encoder.modality}_weights={path}"
    given = _own_entries(read_checkpoint(Path(path), named=option)[0], encoder, named=option)
    own = encoder.state_dict()
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    other = [name for name in own if name in given and own[name].shape != given[name].shape]
    hint = f"choose the file of this network, or the model.{encoder.modality} that the file belongs to"
    if missing:
        raise ValueError(f"{option} has no {missing[0]} ({len(missing)} of {len(own)} entries missing): {hint}")
    if unexpected:
        raise ValueError(
            f"{option} has {unexpected[0]}, which the encoder has not ({len(unexpected)} such entries): {hint}"
        )
    if other:
        name = other[0]
        raise ValueError(
            f"{option}: {name} is {tuple(given[name].shape)}, in the encoder {tuple(own[name].shape)} "
            f"({len(other)} such entries): {hint}"
        )
    check_finite(given, named=option)
    encoder.load_state_dict(given)


def read_checkpoint(
    path: Path, *, named: str, trust_pickle: bool = False
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The weights of a file by name, and what lies beside them (nothing in a .safetensors).

    Args:
        named: the file in errors.
        trust_pickle: also read what only Python's pickle reads, which RUNS WHATEVER CODE THE FILE HOLDS: numbers of
            numpy, argparse's namespaces, blobs of Caffe2.

    Raises:
        ValueError: the file is missing, cannot be read, or holds no weights.
    """
    if not path.is_file():
        raise ValueError(
            f"{named} does not exist: {did_you_mean(path)}give the path of a local file, nothing is downloaded"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, SafetensorError) as error:
        # torch's own words recommend weights_only=False, which would run the code in a foreign file
        if not isinstance(error, pickle.UnpicklingError):
            raise ValueError(f"{named} cannot be used, it is damaged or cut short: give a complete file") from error
        if not trust_pickle:
            raise ValueError(
                f"{named} cannot be used, it holds more than tensors: give a file of tensors, or read it by "
                "avssl convert --trust-pickle, which runs whatever code the file holds (only from a source you "
                "trust)"
            ) from error
        whole = _read_pickle(path, named)
    state = whole
    while isinstance(state, dict) and (inner := [name for name in WRAPPERS if isinstance(state.get(name), dict)]):
        state = state[inner[0]]
    entries = state.items() if isinstance(state, dict) else ()
    weights = {name: torch.as_tensor(value) for name, value in entries if isinstance(value, np.ndarray | Tensor)}
    if not weights:
        raise ValueError(f"{named} holds no weights: expected tensors by name, bare or under {', '.join(WRAPPERS)}")
    return weights, {name: value for name, value in whole.items() if value is not state}


def _read_pickle(path: Path, named: str) -> Any:
    """What the file holds; runs its code."""
    try:
        if path.suffix != ".pkl":
            return torch.load(path, map_location="cpu", weights_only=False)
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")  # Caffe2's, of Python 2
    except (ImportError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, EOFError) as error:
        raise ValueError(f"{named} cannot be used, its pickle needs what is not here: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{named} cannot be used, it is no pickle: {error}") from error


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DistributedDataParallel and torch.compile put into names."""
    return {name.replace("_orig_mod.", "").removeprefix("module."): value for name, value in state.items()}


def check_finite(state: Mapping[str, Tensor], *, named: str) -> None:
    """Raise ValueError: an entry holds NaN or infinity."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{named}: {broken[0]} holds NaN or infinity ({len(broken)} such entries): the training failed, or the "
            "file is damaged; give one of an earlier step"
        )


def _own_entries(state: Mapping[str, Tensor], encoder: Encoder, *, named: str) -> dict[str, Tensor]:
    """What belongs to this encoder, under the encoder's names. Raises ValueError: under several prefixes."""
    given, own = plain_names(state), encoder.state_dict().keys()
    prefixes = [owner.format(encoder.modality) for owner in OWNERS]
    prefixes = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in given)][:1]
    if not prefixes:
        places = [(name[:end], name[end:]) for name in given for end in (0, *(dot.end() for dot in DOT.finditer(name)))]
        votes = Counter(prefix for prefix, rest in places if rest in own)
        prefixes = [prefix for prefix in votes if votes[prefix] == max(votes.values())]
        prefixes = [""] if "" in prefixes or not prefixes else prefixes
        if len(prefixes) > 1:
            raise ValueError(
                f"{named} holds {len(prefixes)} such networks, under {' and '.join(prefixes)}: give a file of one"
            )
        if prefixes[0]:
            others = sum(not name.startswith(prefixes[0]) for name in given)
            print(f"note: {named}: names begin with {prefixes[0]}; {others} others are left out", file=sys.stderr)
    entries = {name.removeprefix(prefixes[0]): value for name, value in given.items() if name.startswith(prefixes[0])}
    return {
        name: value
        for name, value in entries.items()
        if not (encoder.classifier and name.startswith(encoder.classifier))
    }
