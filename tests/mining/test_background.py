"""A search in a process of its own finds what a search here finds."""

import pytest
import torch
import torch.nn.functional as F

from avssl.mining.agreement import mine_agreement
from avssl.mining.background import BackgroundSearch

pytestmark = pytest.mark.slow


def test_the_sets_are_those_of_the_vectors_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    banks = F.normalize(torch.randn(2, 500, 16, generator=torch.Generator().manual_seed(0)), dim=2)
    asked = {"video": banks[0], "audio": banks[1], "valid": torch.arange(500) % 7 > 0, "min_score": 0.1}
    options = {"k": 5, "rule": "consensus", "engine": "flat"}
    expected = mine_agreement(**asked, **options)
    search, refused = BackgroundSearch(**asked, **options), BackgroundSearch(**asked, **options | {"k": 500})
    banks.zero_()
    found = search.result()
    for name, value in vars(expected).items():
        other = getattr(found, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    with pytest.raises(RuntimeError, match="ended with code 1: what it said stands above"):
        refused.result()
    assert "k is 500, but each of the 428 usable rows" in capfd.readouterr().err
