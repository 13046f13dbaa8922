"""A folder of weights on disk: encoders.safetensors, config.json, a model card, and what may stand beside them.

What lives here: the files, their order and what is wrong with them. What does not: towers (pretrained.py), the words of
the card (model_card.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

import avssl
from avssl.checkpoint import ENCODERS, LAST
from avssl.files import digest, whole_file

FORMAT = 1  # of config.json
CONFIG, CARD, MEMORY = "config.json", "README.md", "memory.safetensors"
ONNX = ("video.onnx", "audio.onnx")
SECTIONS = ("data", "model", "heads", "classifier", "facts")


class WeightsError(ValueError):
    """A folder of weights that cannot be used: the message names it and the way out."""


def write_weights(
    folder: Path, state: Mapping[str, Tensor], sections: Mapping[str, Any], *, card: str, memory: Mapping[str, Tensor]
) -> None:
    """Write a folder; files of another one that stood there are replaced or removed.

    Every file is written whole or not at all, config.json last and with the digest of the weights: a folder whose
    writing was interrupted is refused when it is read.

    Args:
        state: entries video.*, audio.*, heads.* and classifier.*
        sections: what config.json holds besides, see SECTIONS.
        memory: for memory.safetensors, where there is any.

    Raises:
        WeightsError: the folder is a run's.
        WriteError: the folder cannot be written to.
    """
    if (folder / LAST).exists():
        raise WeightsError(f"{folder} is the folder of a run, whose {ENCODERS} stays as it is: give another one")
    content = _as_bytes(state)
    about = {"format": FORMAT, "avssl": avssl.__version__, "sha256": digest(content, algorithm="sha256")}
    _write(folder / ENCODERS, content)
    for name in (MEMORY, *ONNX):
        (folder / name).unlink(missing_ok=True)
    if memory:
        _write(folder / MEMORY, _as_bytes(memory))
    _write(folder / CARD, card.encode())
    _write(folder / CONFIG, (json.dumps(about | dict(sections), indent=1) + "\n").encode())


def read_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What config.json holds, and the entries of encoders.safetensors.

    Raises:
        WeightsError: a file is missing or damaged, of a later version, or no export of avssl.
    """
    config, path = _read_config(folder / CONFIG), folder / ENCODERS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): it belongs beside {folder / CONFIG}") from error
    if digest(content, algorithm="sha256") != config["sha256"]:
        raise WeightsError(f"{path} is damaged, or not the one that {CONFIG} beside it was written for: export again")
    return config, safetensors.torch.load(content)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}): export again") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int) or "avssl" not in config:
        raise WeightsError(f"{path} is not of avssl: give a folder that tools/convert.py wrote")
    if config["format"] > FORMAT:
        raise WeightsError(
            f"{path} was written by avssl {config['avssl']}, in format {config['format']}; this is avssl "
            f"{avssl.__version__}, which reads up to {FORMAT}: update it"
        )
    lacking = {"sha256", *SECTIONS} - config.keys()
    if lacking:
        raise WeightsError(f"{path} lacks {', '.join(sorted(lacking))}: export again")
    return config


def _as_bytes(state: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in state.items()})


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
