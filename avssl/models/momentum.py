"""A momentum copy of networks: the key encoder of MoCo, the target of BYOL."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn


class MomentumCopy(nn.Module):
    """A copy that no gradient reaches, whose weights follow those of the networks it is of.

    Statistics of BatchNorm are its own, out of its own passes, as in MoCo and BYOL.

    Args:
        networks: by name; the copy starts equal.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()})
        self.requires_grad_(False)

    def __getitem__(self, name: str) -> nn.Module:
        return self.networks[name]

    def reset(self, networks: Mapping[str, nn.Module]) -> None:
        """Become equal to networks as those that the copy is of, statistics of BatchNorm included."""
        for name, network in self.networks.items():
            network.load_state_dict(networks[name].state_dict())

    @torch.no_grad()
    def ema_update(self, networks: Mapping[str, nn.Module], *, momentum: float) -> None:
        """own = momentum * own + (1 - momentum) * theirs, of every weight (He et al. 2020, eq. 2).

        Args:
            networks: as those that the copy is of.
            momentum: in [0, 1].
        """
        own = [weight for network in self.networks.values() for weight in network.parameters()]
        theirs = [weight for name in self.networks for weight in networks[name].parameters()]
        difference = torch._foreach_sub(theirs, own)
        torch._foreach_mul_(difference, 1 - momentum)
        torch._foreach_add_(own, difference)


def cosine_momentum(start: float, done: float) -> float:
    """A momentum that rises from `start` to 1 by half a cosine over a run of which the fraction `done` is done.

    Source: Grill et al. 2020 (BYOL), section 3.2; as in SlowFast and MoCo v3.
    """
    return 1 - (1 - start) * (math.cos(math.pi * done) + 1) / 2
