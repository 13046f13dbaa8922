"""Checkpoints of others as towers of ours.

What lives here: from a file, or torchvision's cache, to towers with the facts of their source. What does not: what the
checkpoints look like (models/layouts.py), the folder that becomes of them (pretrained.py).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from avssl.config import DataConfig
from avssl.files import digest
from avssl.models.adapters import TORCHVISION
from avssl.models.importers import read_checkpoint
from avssl.models.layouts import LAYOUTS
from avssl.models.published import Report, import_published
from avssl.pretrained import Pretrained, towers_of

BY_NAME = "torchvision:"


@dataclass(frozen=True)
class Converted:
    """What became of a published checkpoint."""

    towers: Pretrained
    memory: dict[str, Tensor]  # see `published.read_memory`
    report: Report


def convert(source: str, *, encoder: str | None = None, trust_pickle: bool = False) -> Converted:
    """Read a published checkpoint.

    Args:
        source: a file, or torchvision:NAME for the weights that torchvision has downloaded before.
        encoder: of the video tower; None = the one that fits.
        trust_pickle: as for `read_checkpoint`: runs whatever code the file holds.

    Raises:
        ValueError: the file is missing or cannot be read, or is of no known layout, or does not fit.
    """
    if source.startswith(BY_NAME):
        if encoder:
            raise ValueError(f"{source} says which encoder it is: leave --encoder out")
        path, encoder = _downloaded(source.removeprefix(BY_NAME))
    else:
        path = Path(source)
    weights, extras = read_checkpoint(path, named=str(path), trust_pickle=trust_pickle)
    found = import_published(weights, path=str(path), encoder=encoder, extras=extras)
    facts = LAYOUTS[found.layout]
    towers = towers_of(
        found.encoders,
        found.heads,
        path=path,
        data=DataConfig(manifest="", **found.data),
        model=found.model,
        facts={
            "kind": "published",
            "layout": found.layout,
            "title": facts.title,
            "file": path.name,
            "sha256": digest(path.read_bytes(), algorithm="sha256"),
            "paper": facts.paper,
            "licence": facts.licence,
            "matched": len(found.report.matched),
            "left_out": found.report.left_out,
            "memory": {name: list(value.shape) for name, value in found.memory.items()},
        },
    )
    return Converted(towers, found.memory, found.report)


def _downloaded(name: str) -> tuple[Path, str]:
    """The file of torchvision's best weights for a network, and our name of it."""
    if name not in TORCHVISION:
        raise ValueError(f"{BY_NAME}{name}: expected one of {', '.join(TORCHVISION)}")
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.exists():
        raise ValueError(f"{BY_NAME}{name} is not in {path.parent}: nothing is downloaded here, put {url} there")
    return path, name
