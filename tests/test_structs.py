"""The words check their shapes and keep their order."""

import pytest
import torch

from avssl.structs import Batch, Embedded, Step


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


def test_batch_splits_into_consecutive_parts() -> None:
    parts = batch(6).split(3)
    assert torch.equal(torch.cat([part.ids for part in parts]), torch.arange(6))
    assert torch.equal(parts[1].params["video"]["flip"], torch.tensor([True, True]))
    with pytest.raises(ValueError, match=r"6 clips per rank cannot be split into optim\.accumulate=4"):
        batch(6).split(4)


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


def test_steps_of_an_accumulated_batch_merge() -> None:
    steps = [
        Step(torch.tensor(x), {"v2a": torch.tensor(x)}, {"z": embedded(2), "c": torch.tensor(x)}) for x in (1.0, 3.0)
    ]
    merged = Step.merge(steps)
    assert (float(merged.loss), float(merged.logs["v2a"]), float(merged.memo["c"])) == (2.0, 2.0, 2.0)
    assert merged.memo["z"].ids.tolist() == [0, 1, 0, 1]
