"""Online clustering: codes that fill prototypes evenly, and the loss that predicts one crop's code from another (SwAV).

Letters: B samples per rank, K prototypes, D embedding, L vectors of a queue, W ranks.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed
from avssl.objectives.contrast import mean_over_rows
from avssl.objectives.negatives import Queue


def prototype_scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines of unit vectors (B, D) with unit prototypes (K, D) -> (B, K) float32."""
    with torch.autocast(z.device.type, enabled=False):
        return z.float() @ prototypes.float().T


@torch.no_grad()
def queue_scores(queue: Queue, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's part of a queue as `sinkhorn` takes it: scores (L / W, K), and which rows count (none before the
    queue is full).
    """
    own = slice(distributed.rank(), None, distributed.world_size())
    is_full = queue.z.any(dim=1).all()  # rows start as zeros; what was pushed is of unit length, masked rows too
    return prototype_scores(queue.z[own], prototypes), (queue.ids[own] >= 0) & is_full


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float,
    num_iterations: int,
    valid: Tensor | None = None,
    earlier: tuple[Tensor, Tensor] | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """Codes of the samples of all ranks: each sums to 1, and the prototypes have about the shares of the samples that
    are asked for.

    Args:
        scores: (B, K) cosines with the prototypes, not divided by a temperature.
        epsilon: smoothness; smaller = harder codes.
        num_iterations: of normalizing the prototypes' sums, then the samples'.
        valid: (B,) bool, rows that count; the codes of the others are 0. None = all.
        earlier: scores (L, K) and valid (L,) of earlier samples, which fill the prototypes too and get no code.
        shares: (K,) of the prototypes, with sum 1; None = equal.

    Returns:
        (B, K) float32, without gradient.

    Source: Caron et al. 2020 (SwAV), eq. 3 and appendix A; equal to the authors' distributed_sinkhorn.
    """
    scores, num_rows = scores.float(), len(scores)
    valid = torch.ones_like(scores[:, 0], dtype=torch.bool) if valid is None else valid
    if earlier is not None:
        scores, valid = torch.cat([earlier[0], scores]), torch.cat([earlier[1], valid])
    highest = distributed.gather(scores.masked_fill(~valid[:, None], -torch.inf).amax()[None]).amax()
    codes = torch.exp((scores - highest) / epsilon).masked_fill(~valid[:, None], 0.0)
    tiny, shares = torch.finfo(codes.dtype).tiny, 1 / codes.shape[1] if shares is None else shares
    for _ in range(num_iterations):
        codes = codes / distributed.all_reduce(codes.sum(dim=0)).clamp(min=tiny) * shares  # prototypes to these
        codes = codes / codes.sum(dim=1, keepdim=True).clamp(min=tiny)  # samples to 1
    return codes[-num_rows:]


def power_law(num: int, *, device: torch.device | None = None) -> Tensor:
    """Shares of so many prototypes that fall slowly: (i + 1)^-1/4 of the i-th, (K,) with sum 1.

    Source: vissl, distributed_sinkhornknopp_powerlaw, for data whose classes differ in size.
    """
    shares = torch.arange(1, num + 1, device=device).float() ** -0.25
    return shares / shares.sum()


def swapped_prediction(
    scores: Mapping[str, Tensor],
    codes: Mapping[str, Tensor],
    *,
    temperature: float,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The code of each crop predicted from every other crop.

    Args:
        scores: {crop: (B, K)} cosines with the prototypes, not divided by the temperature.
        codes: {crop: (B, K)} of the crops that have one.
        temperature: of the softmax over prototypes.
        valid: {crop: (B,) bool}, rows that it shows; a row counts where both crops show it. None = all.

    Returns:
        () the mean over crops with a code, over the other crops, over the rows of all ranks.

    Source: Caron et al. 2020 (SwAV), eq. 2 and 6, as main_swav.py averages.
    """
    every = torch.ones_like(next(iter(codes.values()))[:, 0], dtype=torch.bool)  # (B,)
    valid = dict.fromkeys(scores, every) if valid is None else valid
    total = 0.0
    for crop, code in codes.items():
        others = [other for other in scores if other != crop]
        for other in others:
            rows = -(code * F.log_softmax(scores[other].float() / temperature, dim=1)).sum(dim=1)  # (B,)
            both = valid[crop] & valid[other]
            total = total + mean_over_rows(rows, both, scores[other]) / (len(others) * len(codes))
    return total
