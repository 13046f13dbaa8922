"""The definition of agreement, written out, and made banks."""

import torch
import torch.nn.functional as F


def dense(video, audio, *, k, rule, valid=None):
    """ids (N, k) ascending and scores, by sorting every row on (score descending, id ascending)."""
    cosines = {name: (bank.double() @ bank.double().T).float() for name, bank in (("video", video), ("audio", audio))}
    pairs = (cosines["video"], cosines["audio"])
    score = {"consensus": torch.minimum(*pairs), "union": torch.maximum(*pairs)} | cosines
    members = torch.arange(len(video)) if valid is None else valid.nonzero().squeeze(1)
    ids = torch.full((len(video), k), -1)
    scores = torch.zeros(len(video), k)
    for row in members.tolist():
        others = members[members != row]
        order = score[rule][row, others].argsort(descending=True, stable=True)[:k]
        chosen = others[order].sort().values
        ids[row, : len(chosen)] = chosen
        scores[row, : len(chosen)] = score[rule][row, chosen]
    return ids, scores


def unit(shape, generator, *, common=0.0, classes=0):
    """Random unit rows; `common` adds a direction that all share, `classes` gives each row one of that many."""
    rows = F.normalize(torch.randn(shape, generator=generator), dim=1)
    rows = rows + common * F.normalize(torch.randn(shape[1], generator=generator), dim=0)
    if classes:
        centers = F.normalize(torch.randn(classes, shape[1], generator=generator), dim=1)
        rows = 0.8 * rows + centers[torch.randint(classes, shape[:1], generator=generator)]
    return F.normalize(rows, dim=1)


def assert_equal_sets(sets, expected):
    """Equal ids; a score can differ in its last bit, as the sum's order can, and two that close may swap."""
    ids, score = expected
    assert torch.equal(sets.ids < 0, ids < 0)
    torch.testing.assert_close(sets.score.sort(dim=1).values, score.sort(dim=1).values, atol=1e-6, rtol=0)
    different = (sets.ids != ids).any(dim=1)
    assert different.sum() <= len(ids) // 500, f"rows {different.nonzero().squeeze(1).tolist()} differ"
    assert sets.exact.all()
