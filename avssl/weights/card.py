"""The README of a folder of exported weights, out of its facts. No measure of quality stands in it: those are results
of an evaluation.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader
from torch import nn

import avssl

TEMPLATES = Environment(  # of Markdown: nothing to escape
    loader=PackageLoader("avssl.weights"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
TEMPLATES.filters["num_parameters"] = lambda encoder: sum(parameter.numel() for parameter in encoder.parameters())


def write_card(config: Mapping[str, Any], encoders: nn.ModuleDict, *, folder: str) -> str:
    """The card in Markdown.

    Args:
        config: what config.json holds. Its facts are of one of two kinds: run (method, steps, seed, precision, optim,
            manifest_hash, split, num_clips, starts_from) or published (title, file, sha256, paper, license, matched,
            left_out, memory); of any other kind they are listed.
        encoders: {modality: Encoder}.
        folder: its name.
    """
    card = TEMPLATES.get_template("card.md")
    return card.render(config, encoders=dict(encoders.items()), folder=folder, version=avssl.__version__)
