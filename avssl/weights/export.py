"""Write a folder of weights that `load` reads anywhere: encoders.safetensors, config.json and a model card, without any
local path.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor, nn

import avssl
from avssl.files import atomic_write, digest, folder_lock
from avssl.models.heads import MLP
from avssl.training.checkpoint import ENCODERS, LAST
from avssl.weights.load import CONFIG, FORMAT, Pretrained, WeightsError, parts_of, without_files

CARD, MEMORY = "README.md", "memory.safetensors"
ONNX = ("video.onnx", "audio.onnx")
PRIVATE = ("manifest", "root", "policy")  # keys of the data section that are not exported
TEMPLATES = Environment(  # of Markdown: nothing to escape
    loader=PackageLoader("avssl.weights"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
TEMPLATES.filters["num_parameters"] = lambda encoder: sum(parameter.numel() for parameter in encoder.parameters())


def export(
    pretrained: Pretrained,
    folder: str | Path,
    *,
    facts: Mapping[str, Any] | None = None,
    memory: Mapping[str, Tensor] | None = None,
) -> None:
    """Write encoders, heads and classifier, replacing an earlier export. Each file is written atomically, config.json
    last with the digest of the weights, so that `load` refuses a folder whose writing was interrupted.

    Args:
        facts: where the weights come from, plain data; None = as `pretrained` says. kind is run (method, steps, seed,
            precision, optim, manifest_hash, split, num_clips, starts_from) or published (title, file, sha256, paper,
            license, matched, left_out, memory); the card lists the facts of any other kind.
        memory: memory bank tensors to save beside them; nothing here reads them.

    Raises:
        WeightsError: the folder is a run's, or a head is of a kind that cannot be built again.
        LockedError: another process writes there.
        WriteError: the folder cannot be written to.
    """
    folder, classifier = Path(folder), pretrained.classifier
    sections = {
        "data": pretrained.data.model_dump(mode="json", exclude=set(PRIVATE)),
        "model": without_files(pretrained.model).model_dump(mode="json"),
        "heads": {modality: _head_arguments(head) for modality, head in pretrained.heads.items()},
        "classifier": None,
        "facts": dict(pretrained.facts if facts is None else facts),
    }
    if classifier is not None:
        names = ("in_dim", "classes", "modality", "stage", "multi_label")
        sections["classifier"] = {name: getattr(classifier, name) for name in names}
        sections["classifier"]["batch_norm"] = classifier.norm is not None
    if (folder / LAST).exists():
        raise WeightsError(f"{folder} is the folder of a run, whose {ENCODERS} is not replaced: give another one")
    content = _as_bytes(parts_of(pretrained.encoders, pretrained.heads, classifier).state_dict())
    about = {"format": FORMAT, "avssl": avssl.__version__, "sha256": digest(content, algorithm="sha256")}
    template, encoders = TEMPLATES.get_template("card.md"), dict(pretrained.encoders.items())
    card = template.render(sections, encoders=encoders, folder=folder.name, version=avssl.__version__)
    with folder_lock(folder):
        _write(folder / ENCODERS, content)
        for name in (MEMORY, *ONNX):
            (folder / name).unlink(missing_ok=True)
        if memory:
            _write(folder / MEMORY, _as_bytes(memory))
        _write(folder / CARD, card.encode())
        _write(folder / CONFIG, (json.dumps(about | sections, indent=1) + "\n").encode())


def _head_arguments(head: nn.Module) -> dict[str, Any]:
    """The arguments of `mlp` that rebuild a head."""
    if not isinstance(head, MLP):
        raise WeightsError(f"a head of {type(head).__name__} cannot be exported: build it with avssl.models.heads.mlp")
    return head.arguments


def _as_bytes(state: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in state.items()})


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
