"""The FAISS wrapper finds what sorting finds."""

import pytest
import torch

from avssl.mining.index import FlatIndex


def test_equals_sorting_all_products():
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.randn(300, 16, generator=generator), torch.randn(9, 16, generator=generator)
    scores, rows = FlatIndex(vectors).search(queries, k=12)
    expected = (queries @ vectors.T).topk(12, dim=1)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(scores, expected.values)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"vectors has shape \(16,\)"):
        FlatIndex(torch.zeros(16))
    index = FlatIndex(torch.zeros(5, 16))
    with pytest.raises(ValueError, match=r"expected \(Q, 16\)"):
        index.search(torch.zeros(2, 8), k=1)
    with pytest.raises(ValueError, match="k is 6, expected 1 to 5"):
        index.search(torch.zeros(2, 16), k=6)
