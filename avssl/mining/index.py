"""Exact nearest neighbours by inner product, with FAISS.

What lives here: a thin wrapper with torch tensors in and out. What does not: agreement mining, which needs a proof per
row and ties by id (agreement.py); it is faster without FAISS, and `tools/benchmark.py mining` measures by how much.
"""

from __future__ import annotations

import faiss
import torch
from torch import Tensor


class FlatIndex:
    """All vectors as they are; a search visits every one. As many threads as torch uses."""

    def __init__(self, vectors: Tensor) -> None:
        """
        Args:
            vectors: (N, D), copied as float32 to the CPU.

        Raises:
            ValueError: not a matrix.
        """
        if vectors.ndim != 2:
            raise ValueError(f"vectors has shape {tuple(vectors.shape)}, expected (N, D)")
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors.detach().float().cpu().contiguous().numpy())

    def search(self, queries: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
        """The k vectors with the largest inner product.

        Args:
            queries: (Q, D).
            k: 1 to N.

        Returns:
            scores (Q, k) float32, best first, and their rows (Q, k) int64; equal scores come in any order.

        Raises:
            ValueError: another D, or k out of range.
        """
        if queries.ndim != 2 or queries.shape[1] != self.index.d:
            raise ValueError(f"queries has shape {tuple(queries.shape)}, expected (Q, {self.index.d}) as in the index")
        if not 1 <= k <= self.index.ntotal:
            raise ValueError(f"k is {k}, expected 1 to {self.index.ntotal}, the number of indexed vectors")
        faiss.omp_set_num_threads(torch.get_num_threads())
        scores, rows = self.index.search(queries.detach().float().cpu().contiguous().numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(rows)
