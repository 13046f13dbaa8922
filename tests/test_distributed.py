"""One process equals two: loss, gradients, banks and sets (gloo on CPU)."""

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from avssl import distributed
from avssl.methods.avid import AVIDOptions
from avssl.methods.avid_cma import AVIDCMAOptions
from avssl.structs import Instances, Progress
from tests.support.ranks import on_ranks
from tests.support.tiny import tiny_method, vector_batch

pytestmark = pytest.mark.processes
NUM, ROWS, STEPS = 40, 16, 4
EVERY = torch.ones(NUM, dtype=torch.bool)
HAS_AUDIO = torch.arange(NUM) % 5 != 0
HAS_VIDEO = (torch.arange(NUM) % 7 != 3) | ~HAS_AUDIO  # audio-only files
COMMON = {"embedding_dim": 8, "hidden_dim": 16, "num_negatives": 12}
OPTIONS = {
    "avid": AVIDOptions(**COMMON, within=1.0),
    "avid_cma": AVIDCMAOptions(**COMMON, num_negatives_within=5, num_positives=3, mine_every=1),
}


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 3, 4)])
def test_uniform_rows_are_those_of_one_process(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return tuple(
            distributed.uniform_rows(*shape, generator=generator, device=torch.device("cpu")) for _ in range(2)
        )

    whole = drawn(*shape)
    assert whole[0].shape == shape
    assert not torch.equal(*whole)  # the generator has moved
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        for part, each in zip(drawn(2, *shape[1:]), whole, strict=True):
            assert torch.equal(part, each[2 * rank : 2 * rank + 2])
    monkeypatch.undo()
    many = drawn(300, 101)[0]
    assert 0 <= many.min() < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)
    assert many.var() == pytest.approx(1 / 12, abs=0.005)
    assert np.corrcoef(many[:-1].flatten(), many[1:].flatten())[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_a_fingerprint_sees_values_and_places(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (37, 11), generator=torch.Generator().manual_seed(0)).to(dtype)
    first = distributed.fingerprint(x)
    assert first == distributed.fingerprint(x.clone())
    assert first == distributed.fingerprint(x.t().contiguous().t())
    for place in (0, 200, 406):
        other = x.clone()
        other.view(-1)[place] = 1 - other.view(-1)[place].long()
        assert distributed.fingerprint(other) != first
    rows = torch.arange(37).roll(1)
    assert distributed.fingerprint(x[rows]) != first
    assert distributed.fingerprint(x[1:]) == distributed.fingerprint(x[1:].clone())
    assert distributed.fingerprint(torch.zeros((), dtype=dtype)) == 0


def test_a_fingerprint_of_parts_is_that_of_the_whole() -> None:
    x = torch.randint(-(2**62), 2**62, (1 << 24,), generator=torch.Generator().manual_seed(0))  # two parts
    place = torch.arange(len(x))
    assert distributed.fingerprint(x) == int((x * (2 * place + 1)).sum())


def train_tiny(name: str) -> dict[str, torch.Tensor]:
    """A few steps on this rank's rows; what must not depend on the number of ranks."""
    method = tiny_method(OPTIONS[name], Instances(EVERY, HAS_AUDIO, HAS_VIDEO))
    model = DistributedDataParallel(method, broadcast_buffers=False) if distributed.world_size() > 1 else method
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    rows = ROWS // distributed.world_size()
    losses = []
    for step in range(STEPS):
        if step % 2 == 0:
            method.on_epoch(step // 2)
        ids = torch.randperm(NUM, generator=torch.Generator().manual_seed(step))[:ROWS]
        ids = torch.cat([ids[:-1], ids[:1]])  # an id that occurs twice, on both ranks
        if step % 2:  # silent clips first: all of one kind on one rank
            ids = ids[HAS_AUDIO[ids].int().argsort(stable=True)]
        own = ids[distributed.rank() * rows :][:rows]
        batch = vector_batch(own, step=step, has_audio=HAS_AUDIO[own], has_video=HAS_VIDEO[own])
        done = model(batch, Progress(step // 2, step, STEPS))
        optimizer.zero_grad()
        done.loss.backward()
        optimizer.step()
        method.after_step(done, Progress(step // 2, step, STEPS))
        losses.append(distributed.all_reduce(done.loss.detach()) / distributed.world_size())
    gradients = {f"gradient of {n}": p.grad.clone() for n, p in method.named_parameters()}
    shared = {name: value for name, value in method.named_buffers()}
    distributed.check_equal(shared, "buffers")
    return {"losses": torch.stack(losses), **gradients, **method.state_dict()}


def on_both() -> dict[str, dict[str, torch.Tensor]]:
    rank = distributed.rank()
    results = {name: train_tiny(name) for name in OPTIONS}
    uneven = {"same": torch.ones(2), "bank": torch.full((2,), float(rank))}
    with pytest.raises(RuntimeError, match=r"banks differ between ranks \(bank\)"):
        distributed.check_equal(uneven, "banks")
    x = torch.full((2, 3), float(rank + 1), requires_grad=True)
    gathered = distributed.gather(x)
    assert gathered[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    (gathered * torch.arange(4.0)[:, None]).sum().backward()  # each rank's loss sends the same gradient back
    assert x.grad[:, 0].tolist() == [2 * (2 * rank + i) for i in range(2)]
    assert distributed.any_rank(rank == 1)
    assert distributed.gather(torch.tensor([rank == 0])).tolist() == [True, False]
    assert float(distributed.broadcast(torch.tensor(float(rank)))) == 0
    return results


def test_two_processes_equal_one() -> None:
    results = on_ranks(2, on_both)[0]
    for name, two in results.items():
        one = train_tiny(name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            if value.dtype.is_floating_point:
                assert torch.allclose(value, two[key], rtol=1e-4, atol=1e-5), key
            else:
                assert torch.equal(value, two[key]), key
    assert (results["avid_cma"]["sets"] >= 0).any()
