"""The words check their shapes and keep their order."""

import pytest
import torch

from avssl.structs import Batch, Embedded


def batch(size: int) -> Batch:
    rows = torch.arange(size)
    return Batch(
        video={"video": rows[:, None, None].expand(size, 2, 3)},
        audio={"audio": rows[:, None].float()},
        ids=rows,
        start={"video": rows.double(), "audio": rows.double()},
        has_audio=rows > 0,
        has_video=rows != 2,
        params={"video": {"flip": rows > 1}},
        padded={"video": rows > 2},
        errors=("one.mp4: broken",),
    )


def embedded(*shape: int) -> Embedded:
    ids = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    return Embedded(torch.randn(*shape, 4), ids, ids, ids.double())


def test_batch_refuses_unequal_rows() -> None:
    with pytest.raises(ValueError, match=r"batch entry has_audio has shape \(3,\), expected 4 rows"):
        Batch({}, {}, torch.arange(4), {}, torch.ones(3) > 0, torch.ones(4) > 0, {}, {})


def test_embedded_refuses_mismatched_origins() -> None:
    with pytest.raises(ValueError, match=r"embedded view has shape \(3,\), expected \(4,\)"):
        Embedded(torch.randn(4, 2), torch.arange(4), torch.arange(3), torch.zeros(4))


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_columns_are_joined_and_taken_along_the_column_axis(shape: tuple[int, ...]) -> None:
    a, b = embedded(*shape), embedded(*shape)
    joined = Embedded.cat([a, b])
    assert joined.z.shape == (*shape[:-1], 10, 4)
    assert torch.equal(joined.take(5).z, a.z)
    assert torch.equal(joined.ids[..., 5:], b.ids)
