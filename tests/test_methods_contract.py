"""What every method must do, whatever its algorithm: finite loss, gradients everywhere, learning, no collapse, all
state in state_dict.
"""

import copy
import dataclasses

import pytest
import torch

from avssl.logs import embedding_metrics
from avssl.methods import METHODS
from avssl.methods.base import Method
from avssl.structs import Step
from tests.support.contract import CASES, EPOCH, FLOORS, NUM, STEPS, batch_of, build, progress


def test_every_method_is_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(METHODS)


@pytest.fixture(scope="module", params=list(CASES))
def trained(request: pytest.FixtureRequest) -> tuple[str, Method, list[Step]]:
    """A method after a few epochs, and what its steps returned."""
    torch.set_num_threads(1)
    method = build(request.param).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    steps = []
    for number in range(STEPS):
        if number % EPOCH == 0:
            method.on_epoch(number // EPOCH)
        step = method(batch_of(method, number), progress(number))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        method.after_step(step, progress(number))
        steps.append(dataclasses.replace(step, loss=step.loss.detach()))
    return request.param, method, steps


@pytest.mark.parametrize("name", CASES)
def test_loss_is_finite_and_its_gradient_reaches_every_part(name: str) -> None:
    method = build(name).train()
    method.on_epoch(0)
    method.after_step(method(batch_of(method, 0), progress(0)), progress(0))  # queues start empty
    step = method(batch_of(method, 1), progress(1))
    assert step.loss.shape == ()
    assert step.loss.isfinite()
    assert all(value.isfinite() for value in step.logs.values())
    step.loss.backward()
    gradients = {parameter: value.grad for parameter, value in method.named_parameters() if value.requires_grad}
    lost = [parameter for parameter, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert not lost
    networks = {parameter.rsplit(".", 1)[0].partition(".layers")[0] for parameter in gradients}
    parts = {".".join(network.split(".")[: 4 if network.startswith("parts.") else 2]) for network in networks}
    assert parts >= {f"encoders.{modality}" for modality in method.encoders}
    for part in parts:  # encoders.video, heads.video, parts.near.heads.video, ...
        assert sum(float(g.abs().sum()) for name, g in gradients.items() if name.startswith(part)) > 0, part


@pytest.mark.slow
def test_loss_falls(trained: tuple[str, Method, list[Step]]) -> None:
    name, _, steps = trained
    losses = torch.stack([step.loss for step in steps])
    assert losses.isfinite().all()
    floor = FLOORS.get(name, 0.0)
    first, last = losses[:5].mean(), losses[-5:].mean()
    assert last - floor < 0.8 * (first - floor), losses.tolist()


def test_embeddings_do_not_collapse(trained: tuple[str, Method, list[Step]]) -> None:
    name, _, steps = trained
    assert steps[-1].embeddings or name.startswith("pretext")  # which embeds nothing
    for name, value in steps[-1].embeddings.items():
        metrics = embedding_metrics(value.z)
        assert metrics["std"] > 0.5, name
        assert metrics["rank"] > 5, name  # of at most 15


def test_all_state_is_in_state_dict(trained: tuple[str, Method, list[Step]]) -> None:
    name, method, _ = trained
    fresh = build(name).train()
    unloaded = fresh(batch_of(fresh, 99), progress(STEPS)).loss
    fresh.load_state_dict(method.state_dict())
    before = {entry: value.clone() for entry, value in method.state_dict().items()}
    assert all(torch.equal(value, before[entry]) for entry, value in fresh.state_dict().items())
    losses = [each(batch_of(each, 99), progress(STEPS)).loss.item() for each in (method, fresh)]
    assert losses[0] == losses[1] != unloaded.item()


@pytest.mark.parametrize("name", CASES)
def test_loss_is_pure(name: str) -> None:
    method = build(name).eval()  # forward() changes nothing but statistics of BatchNorm, which stand still here
    method.on_epoch(0)
    for step in range(2):
        before = {entry: value.clone() for entry, value in method.state_dict().items()}
        losses = [method(batch_of(method, step), progress(step)) for _ in range(2)]
        assert torch.equal(losses[0].loss, losses[1].loss)
        after = method.state_dict()
        assert all(torch.equal(value.nan_to_num(7e7), after[entry].nan_to_num(7e7)) for entry, value in before.items())
        method.after_step(losses[0], progress(step))


@pytest.mark.parametrize("name", CASES)
def test_a_clip_that_could_not_be_read_teaches_nothing(name: str) -> None:
    """Whatever its masked row holds."""
    method = build(name).eval()
    method.on_epoch(0)
    whole = batch_of(method, 0)
    lost = dataclasses.replace(
        whole,
        ids=whole.ids.masked_fill(torch.arange(NUM) == 3, -1),
        has_audio=torch.arange(NUM) != 3,
        has_video=torch.arange(NUM) != 3,
        target={key: value.masked_fill(torch.arange(NUM)[:, None] == 3, -1) for key, value in whole.target.items()},
    )
    other = dataclasses.replace(lost, video={view: value.clone() for view, value in lost.video.items()})
    for value in other.video.values():
        value[3] = 9.0
    method.after_step(method(whole, progress(0)), progress(0))
    losses = [method(batch, progress(1)).loss for batch in (whole, lost, other)]
    torch.testing.assert_close(losses[1], losses[2])
    assert not torch.equal(losses[0], losses[1])
    losses[2].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "name",
    [
        *("avid", "infonce", "neighbour as SeCo", "finetune", "joint"),  # joint has most others
        *("npid on both", "moco", "moco_v3", "simclr", "pirl", "cpc over rows", "pretext jigsaw"),
    ],
)
def test_a_batch_in_parts_is_the_same_step(name: str) -> None:
    """With BatchNorm standing still: the loss is of the whole batch, whichever rows a part lacks."""
    method = build(name).eval()
    method.on_epoch(0)
    method.after_step(method(batch_of(method, 0), progress(0)), progress(0))
    batch, lost = batch_of(method, 1), torch.arange(NUM) < 3  # all but one of the first part
    batch = dataclasses.replace(batch, ids=batch.ids.masked_fill(lost, -1), has_audio=batch.has_audio & ~lost)
    results = []
    for each, num_parts in ((copy.deepcopy(method), 1), (method, 4)):
        done = each(batch, progress(1), num_parts=num_parts)
        done.loss.backward()
        each.after_step(done, progress(1))
        gradients = {f"gradient of {name}": p.grad for name, p in each.named_parameters() if p.requires_grad}
        results.append({"loss": done.loss, **done.logs, **gradients, **each.state_dict()})
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-4, atol=1e-6, equal_nan=True, msg=key)
