"""One process equals two for every method and its main settings: losses, gradients, memory banks, queues and copies;
also where the rows of each pass in parts.

BatchNorm stands still, as each rank has its own clips; AVID and AVID-CMA are drawn by hypothesis in test_properties.py.
"""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from avssl import distributed
from avssl.training.resume import shared_buffers
from tests.support.contract import CASES, NUM, batch_of, build, progress
from tests.support.ranks import on_ranks

STEPS = 2  # of whole passes, and of passes in parts
# Nearly constant sound, divided by its deviation: equal to 4e-7 in the first step, apart by rounding after it.
# Adversarial views follow the signs of gradients that are nearly 0.
# Rankings take the most similar vectors, which of these untrained ones are alike to 1e-6: rounding chooses.
FIRST_STEP_ALONE = ("barlow across", "simclr, adversarial", "patch with ranking")
FROZEN, FROZEN_CASE, WARM_UP = "finetune, warming up", ("finetune",), {"warmup_epochs": 1}


def trained(case: str, **other: int) -> dict[str, torch.Tensor]:
    """A few steps on this rank's rows: what must not depend on the number of ranks."""
    rank, world_size = distributed.rank(), distributed.world_size()
    method = build(case, **other).eval()
    model = method
    if world_size > 1:
        model = DistributedDataParallel(
            method, broadcast_buffers=False, find_unused_parameters=method.find_unused_parameters
        )
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    rows = NUM // world_size
    result = {}
    for number in range(STEPS):
        method.on_epoch(number)
        ids = torch.randperm(NUM, generator=torch.Generator().manual_seed(number))[rank * rows :][:rows]
        num_parts = world_size if number % 2 else 1
        done = model(batch_of(method, number, ids=ids), progress(number), num_parts=num_parts)
        optimizer.zero_grad()
        done.loss.backward()
        result[f"loss {number}"] = distributed.all_reduce(done.loss.detach()) / world_size
        result |= {
            f"gradient {number} {name}": torch.zeros(()) if p.grad is None else p.grad.clone()
            for name, p in method.named_parameters()
            if p.requires_grad
        }
        result[f"without gradient {number}"] = torch.tensor(sum(p.grad is None for p in method.parameters()))
        optimizer.step()
        method.after_step(done, progress(number))
    distributed.check_equal(shared_buffers(method), "buffers")
    return result | {f"state {name}": value for name, value in method.state_dict().items()}


def all_trained() -> dict[str, dict[str, torch.Tensor]]:
    return {case: trained(case) for case in CASES} | {FROZEN: trained(*FROZEN_CASE, **WARM_UP)}


@pytest.mark.processes
def test_one_process_equals_two() -> None:
    results = on_ranks(2, all_trained)[0]
    torch.set_num_threads(1)
    for case, two in results.items():
        one = trained(*FROZEN_CASE, **WARM_UP) if case == FROZEN else trained(case)
        assert one.keys() == two.keys()
        if case in FIRST_STEP_ALONE:
            one = {name: value for name, value in one.items() if " 0" in name}
            assert len(one) > 10
        for name, value in one.items():
            difference, size = (
                (two[name].double() - value.double()).nan_to_num().norm(),
                value.double().nan_to_num().norm(),
            )
            # sums of another order through a whole trunk; what belongs to other rows would differ by its own size
            bound = 1e-3 * size + 1e-5 if value.is_floating_point() else 0
            assert difference <= bound, f"{name} of {case}: {value} and {two[name]}"
