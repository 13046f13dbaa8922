"""A slowly following copy of networks, which encodes the keys of MoCo and its relatives."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn


class MomentumCopy(nn.Module):
    """A copy that no gradient reaches, whose weights follow those of the networks it is of.

    Statistics of BatchNorm are its own, out of its own passes, as in MoCo.

    Args:
        networks: by name; the copy starts equal.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()})
        self.requires_grad_(False)

    def __getitem__(self, name: str) -> nn.Module:
        return self.networks[name]

    @torch.no_grad()
    def follow(self, networks: Mapping[str, nn.Module], *, momentum: float) -> None:
        """own = momentum * own + (1 - momentum) * theirs, of every weight (He et al. 2020, eq. 2)."""
        for name, own in self.networks.items():
            torch._foreach_lerp_(list(own.parameters()), list(networks[name].parameters()), 1 - momentum)


def cosine_momentum(start: float, share: float) -> float:
    """A momentum that rises from `start` to 1 over a run of which `share` is done (BYOL, MoCo v3)."""
    return 1 - (1 - start) * (math.cos(math.pi * share) + 1) / 2
