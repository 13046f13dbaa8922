"""The contrastive random walk: patches of a video are nodes, and whoever walks along their similarities to a later
frame and back must come home.

Letters: B clips per rank, W ranks, T frames, N nodes of a frame, D embedding.
"""

import torch
from torch import Tensor

from avssl import distributed
from avssl.objectives.contrast import mean_over_rows

FLOOR = 1e-20  # of a probability before its logarithm


def walk_loss(
    nodes: Tensor,
    *,
    temperature: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """How surprising it is that walks return: cross-entropy of the end of each palindrome 0, 1, .., i, .., 1, 0 with
    its start, averaged over the turning points i = 2 .. T - 1 and over the nodes.

    The chain of transitions is multiplied in float32 as probabilities, whatever the autocast: matrix products are what
    hardware does fast, nothing can overflow, and only a return less likely than 1e-20 is rounded. It costs 46 and its
    gradient fades, as in videowalk; in logarithms it would keep its gradient and differ from the published loss.

    Args:
        nodes: (B, T, N, D) unit length, T >= 3, N >= 2.
        temperature: of the transitions softmax(cosine / temperature).
        dropout: fraction of edges cut on either way, in [0, 1); a node without any edge left walks to any node.
        generator: of the cut edges, on the CPU; needed with dropout. With the same state on every rank the loss of one
            process is that of several.
        valid: (B,) bool, clips that count; None = all.

    Returns:
        () the mean over the clips of all ranks that count; 0 with a gradient path when there is none.

    Raises:
        ValueError: fewer than 3 frames or 2 nodes, a temperature or dropout out of range, dropout without generator.

    Source: Jabri et al. 2020 (CRW), the loss over palindromes of every length with edge dropout, as in videowalk
    code/model.py; like there, the shortest palindrome 0, 1, 0 is left out.
    Differs from videowalk: edges are cut independently on the way there and back. There the affinities are changed in
    place, so that the way back lacks both draws' edges, a fraction of 1 - (1 - dropout)^2.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected a fraction of edges in [0, 1), such as 0.1")
    if dropout and generator is None:
        raise ValueError(f"dropout={dropout} needs a generator, which says which edges are cut")
    nodes, counted = _checked(nodes, temperature, valid)
    there, back = _affinities(nodes)  # (B, T - 1, N, N) each
    if dropout:
        there, back = (_cut_edges(affinity, dropout, generator) for affinity in (there, back))
    costs = []
    for outward, homeward in _palindromes(there, back, temperature):
        home = (outward * homeward.transpose(1, 2)).sum(dim=2)  # (B, N) diagonal of their product
        costs.append(-(home + FLOOR).log().mean(dim=1))  # (B,)
    # Every rank has B clips, so this is the plain mean over ranks but for clips that do not count.
    return mean_over_rows(torch.stack(costs).mean(dim=0), counted, nodes)


@torch.no_grad()
def walk_accuracy(nodes: Tensor, *, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Share of nodes for which the likeliest end of the longest palindrome is their start -> (); 1 / N by chance.

    For the log: unlike the loss it does not depend on how sharp the transitions are. Arguments as in `walk_loss`.
    """
    nodes, counted = _checked(nodes, temperature, valid)
    outward, homeward = _palindromes(*_affinities(nodes), temperature)[-1]
    with torch.autocast(nodes.device.type, enabled=False):
        ends = (outward @ homeward).argmax(dim=2)  # (B, N)
    home = ends == torch.arange(nodes.shape[2], device=nodes.device)
    return mean_over_rows(home.float().mean(dim=1), counted, nodes)


def _checked(nodes: Tensor, temperature: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Float32 nodes, zero in clips that do not count, and (B,) bool which do."""
    if nodes.dim() != 4 or nodes.shape[1] < 3 or nodes.shape[2] < 2:
        raise ValueError(
            f"nodes of shape {tuple(nodes.shape)}: expected (B, T, N, D) with at least 3 frames (a walk to the second "
            "and back is left out) and 2 nodes: use longer clips or more patches"
        )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a positive number, such as 0.05")
    if valid is None:
        valid = torch.ones(len(nodes), dtype=torch.bool, device=nodes.device)
    if valid.shape != nodes.shape[:1] or valid.dtype != torch.bool:
        raise ValueError(
            f"valid is {valid.dtype} {tuple(valid.shape)}: expected bool ({len(nodes)},), one for each clip of nodes"
        )
    # What stands in the place of a lost clip may be anything, NaN included: it must not reach a gradient.
    return nodes.float().masked_fill(~valid[:, None, None, None], 0.0), valid


def _affinities(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of neighboring frames' nodes (B, T - 1, N, N): rows of frame t and columns of t + 1, and the reverse."""
    with torch.autocast(nodes.device.type, enabled=False):
        there = nodes[:, :-1] @ nodes[:, 1:].transpose(2, 3)
    return there, there.transpose(2, 3)


def _cut_edges(affinity: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Cut a fraction of the edges; a row that loses all has equal entries, hence equal probabilities."""
    drawn = distributed.uniform_rows(*affinity.shape, generator=generator, device=affinity.device)  # (B, T - 1, N, N)
    return affinity.masked_fill(drawn < share, -1e20)


def _palindromes(there: Tensor, back: Tensor, temperature: float) -> list[tuple[Tensor, Tensor]]:
    """For i = 2 .. T - 1, the transitions from frame 0 to frame i and those from i to 0, each (B, N, N)."""
    walks = []
    with torch.autocast(there.device.type, enabled=False):
        there, back = (torch.softmax(affinity / temperature, dim=3) for affinity in (there, back))
        outward, homeward = there[:, 0], back[:, 0]
        for step in range(1, there.shape[1]):
            outward = outward @ there[:, step]  # P_0 P_1 .. P_step
            homeward = back[:, step] @ homeward  # R_step .. R_1 R_0
            walks.append((outward, homeward))
    return walks
