"""Where positives come from: each rule marks cells of the contrast table by comparing where vectors come from.

Queries q are (Q,), columns k are shared (M,) or own (Q, M) [shapes of `ids`]; every rule returns (Q, M) bool and
never marks an masked row (id -1). A new source of positives is one more function here.
"""

import torch
from torch import Tensor

from avssl.structs import Embedded


def _pairs(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Shape (Q, 1) against (1, M) or (Q, M)."""
    return query[:, None], key if key.dim() == 2 else key[None, :]


def _present(q: Embedded, k: Embedded) -> Tensor:
    query, key = _pairs(q.ids, k.ids)
    return (query >= 0) & (key >= 0)


def same_instance(q: Embedded, k: Embedded) -> Tensor:
    """The column comes from the same video, whatever its view and time (NPID, AVID)."""
    query, key = _pairs(q.ids, k.ids)
    return (query == key) & _present(q, k)


def same_view(q: Embedded, k: Embedded) -> Tensor:
    """The column comes from the same video and view, or is a patch of the same track."""
    query, key = _pairs(q.view, k.view)
    return same_instance(q, k) & (query == key)


def same_crop(q: Embedded, k: Embedded) -> Tensor:
    """The column is the query itself: same video, same view, same start (how to leave out the diagonal of SimCLR)."""
    query, key = _pairs(q.start, k.start)
    return same_view(q, k) & (query == key)


ROUNDING = 1e-4  # seconds, as in decoding


def neighbor(q: Embedded, k: Embedded, *, max_seconds: float) -> Tensor:
    """The column comes from the same video and starts at most `max_seconds` away, up to rounding."""
    query, key = _pairs(q.start, k.start)
    return same_instance(q, k) & ((query - key).abs() <= max_seconds + ROUNDING)


def in_set(q: Embedded, k: Embedded, sets: Tensor) -> Tensor:
    """The column's id is in the query's set (CMA).

    Args:
        q: (Q,) queries.
        k: shared (M,) or own (Q, M) columns.
        sets: (N, P) int64, a row of ids per instance, ascending with -1 for masked rows.
    """
    rows = sets[q.ids.clamp(min=0)]  # (Q, P)
    keys = k.ids if k.ids.dim() == 2 else k.ids.expand(len(q.ids), -1)  # (Q, M)
    rows = rows.sort(dim=1).values  # the masked rows stand first
    place = torch.searchsorted(rows, keys.contiguous()).clamp(max=rows.shape[1] - 1)
    return (rows.gather(1, place) == keys) & _present(q, k)
