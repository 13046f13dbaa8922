"""Each rule marks exactly the cells that its definition names, for shared and own columns."""

import pytest
import torch

from avssl.objectives.positives import in_set, neighbor, same_crop, same_instance
from avssl.structs import Embedded


def random_embedded(shape: tuple[int, ...], seed: int) -> Embedded:
    g = torch.Generator().manual_seed(seed)
    return Embedded(
        z=torch.randn(*shape, 2, generator=g),
        ids=torch.randint(-1, 5, shape, generator=g),
        view=torch.randint(0, 2, shape, generator=g),
        start=torch.randint(0, 4, shape, generator=g).double() / 2,
    )


SETS = torch.tensor([[1, 3, -1], [0, 2, 4], [-1, -1, -1], [0, -1, -1], [1, 2, 3]])
RULES = {
    "same_instance": (same_instance, lambda q, k: q["id"] == k["id"]),
    "same_crop": (same_crop, lambda q, k: q == k),
    "neighbour": (
        lambda q, k: neighbor(q, k, max_seconds=0.5),
        lambda q, k: q["id"] == k["id"] and abs(q["start"] - k["start"]) <= 0.5,
    ),
    "in_set": (lambda q, k: in_set(q, k, SETS), lambda q, k: k["id"] in SETS[q["id"]].tolist()),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_rule_equals_a_loop_over_cells(rule: str, own: bool) -> None:
    marks, definition = RULES[rule]
    q, k = random_embedded((40,), 0), random_embedded((40, 30) if own else (30,), 1)
    found = marks(q, k)

    def cell(e: Embedded, place: tuple[int, ...]) -> dict[str, float]:
        return {"id": int(e.ids[place]), "view": int(e.view[place]), "start": float(e.start[place])}

    for i in range(40):
        for j in range(30):
            query, key = cell(q, (i,)), cell(k, (i, j) if own else (j,))
            expected = query["id"] >= 0 and key["id"] >= 0 and definition(query, key)
            assert bool(found[i, j]) == expected
    assert found.any()
