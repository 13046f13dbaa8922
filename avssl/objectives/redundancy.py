"""Losses on the statistics of a batch, without negatives: Barlow Twins, VICReg, SIGReg.

What lives here: statistics over the rows of all ranks, with the true gradient, and the losses on them. What does not:
predictors and targets (distillation.py). Everything is float32. Rows that are not `present` count nowhere; without any,
a loss is 0 with a gradient path.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed


def barlow(
    z_a: Tensor, z_b: Tensor, *, off_diagonal_weight: float = 0.0051, present: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The cross-correlation of two views' dimensions against the identity: sum_i (1 - C_ii)^2 + weight sum_ij C_ij^2.

    Args:
        z_a, z_b: (B, D).
        off_diagonal_weight: of the sum over i != j.
        present: (B,) bool, rows that count; None = all.
        eps: added to the (biased) variances.

    Returns:
        () the loss of the batch of all ranks.

    Source: Zbontar et al. 2021, eq. 1. Differs from Barlow Twins: the sum over ranks passes the gradient on, theirs
    gives each rank that of its own rows, 1 / W of it after averaging.
    """
    with torch.autocast(z_a.device.type, enabled=False):
        weight, total = _weights(z_a, present)
        count = total.clamp(min=1)
        a, b = (_standardized(z.float(), weight, count, eps=eps) for z in (z_a, z_b))
        correlation = distributed.all_reduce((weight * a).T @ b) / count  # (D, D)
        diagonal = correlation.diagonal()
        off = correlation.square().sum() - diagonal.square().sum()
        return _if_any((1 - diagonal).square().sum() + off_diagonal_weight * off, total)


def vicreg_terms(x: Tensor, y: Tensor, *, present: Tensor | None = None) -> dict[str, Tensor]:
    """The three terms of VICReg, unweighted.

    Args:
        x, y: (B, D) embeddings of two views.
        present: (B,) bool, rows that count; None = all.

    Returns:
        () each, of the batch of all ranks: invariance, `mean_squared_difference`; variance, the mean of max(0, 1 -
        sqrt(var + 1e-4)) over dimensions and views; covariance, the sum over views of the squared off-diagonal
        covariances over D. Variances and covariances divide by the number of rows minus 1.

    Source: Bardes, Ponce, LeCun 2022, eq. 1 to 6, as in its code: there the variance is the mean over both views, and
    the covariance their sum.
    """
    with torch.autocast(x.device.type, enabled=False):
        weight, total = _weights(x, present)
        count = total.clamp(min=1)
        x, y = x.float(), y.float()
        dim = x.shape[1]
        terms = {"invariance": mean_squared_difference(x, y, present=present), "variance": 0.0, "covariance": 0.0}
        for z in (x, y):
            centered = weight * (z - _mean(z, weight, count))  # (B, D)
            covariance = distributed.all_reduce(centered.T @ centered) / (count - 1).clamp(min=1)  # (D, D)
            variance = covariance.diagonal()
            terms["variance"] = terms["variance"] + F.relu(1 - (variance + 1e-4).sqrt()).mean() / 2
            off = covariance.square().sum() - variance.square().sum()
            terms["covariance"] = terms["covariance"] + off / dim
        return {name: _if_any(term, total) for name, term in terms.items()}


def mean_squared_difference(x: Tensor, y: Tensor, *, present: Tensor | None = None) -> Tensor:
    """The mean of (x - y)^2 over the rows that count of all ranks and over dimensions; x, y: (B, D), present: (B,)."""
    with torch.autocast(x.device.type, enabled=False):
        weight, total = _weights(x, present)
        count = total.clamp(min=1)
        return distributed.all_reduce((weight * (x.float() - y.float()).square()).sum()) / (count * x.shape[1])


def sigreg(
    x: Tensor, directions: Tensor, *, num_points: int = 17, max_t: float = 3.0, present: Tensor | None = None
) -> Tensor:
    """How far the rows are from a standard normal distribution, seen along random directions: the mean Epps-Pulley
    statistic, the distance of their characteristic function from exp(-t^2 / 2), weighted with the latter.

    Args:
        x: (B, D) embeddings; neither centered nor scaled.
        directions: (D, S) unit columns.
        num_points: of the integral from 0 to max_t (both sides are equal), by trapezoids.
        max_t: where it ends.
        present: (B,) bool, rows that count; None = all.

    Returns:
        () the mean over directions, of the batch of all ranks; grows with the number of rows, as a test statistic does.

    Source: Balestriero & LeCun 2025 (LeJEPA), SIGReg.
    """
    with torch.autocast(x.device.type, enabled=False):
        weight, total = _weights(x, present)
        count = total.clamp(min=1)
        t = torch.linspace(0, max_t, num_points, device=x.device)
        normal = torch.exp(-t.square() / 2)  # (T,) characteristic function, and weight
        angles = (x.float() @ directions.float())[:, :, None] * t  # (B, S, T)
        parts = torch.stack([angles.cos(), angles.sin()])  # (2, B, S, T)
        real, imaginary = distributed.all_reduce((weight[:, :, None] * parts).sum(dim=1)) / count  # (S, T) each
        error = (real - normal).square() + imaginary.square()
        integral = 2 * torch.trapezoid(error * normal, t, dim=1)  # (S,) over both sides
        return _if_any(count * integral.mean(), total)


def _weights(z: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 for rows that count and 0 for others (B, 1), and their number over all ranks ()."""
    weight = torch.ones(len(z), 1, device=z.device) if present is None else present.float()[:, None]
    return weight, distributed.all_reduce(weight.sum())


def _mean(z: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    return distributed.all_reduce((weight * z).sum(dim=0)) / count  # (D,)


def _standardized(z: Tensor, weight: Tensor, count: Tensor, *, eps: float) -> Tensor:
    """Rows (B, D) with zero mean and unit variance in each dimension over all ranks, as BatchNorm without affine."""
    centered = z - _mean(z, weight, count)
    return centered * torch.rsqrt(_mean(centered.square(), weight, count) + eps)


def _if_any(loss: Tensor, total: Tensor) -> Tensor:
    """The loss, or 0 times it where no row of any rank counts."""
    return loss * total.clamp(max=1)
