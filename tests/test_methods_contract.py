"""What every method must do, whatever its algorithm: finite loss, gradients everywhere, learning, no collapse, all
state in state_dict.
"""

import dataclasses

import pytest
import torch

from avssl.config import from_dict
from avssl.logs import collapse_figures
from avssl.methods import METHODS, build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Instances, Progress, Step

NUM = 16  # instances, all of them in every batch
STEPS, EPOCH = 30, 10
SMALL = {  # options at miniature size, for the methods that have them
    "num_negatives": 12, "num_negatives_within": 6, "hidden_dim": 32, "embedding_dim": 16, "head_batch_norm": True,
    "num_positives": 2, "mine_every": 1,
}  # fmt: skip


def build(name: str) -> Method:
    known = {field.name for field in dataclasses.fields(METHODS[name][1])}
    options = {option: value for option, value in SMALL.items() if option in known}
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": name, **options},
        "run": {"dir": "none"},
    }
    everything = torch.ones(NUM, dtype=torch.bool)
    return build_method(from_dict(given, source="test"), Instances(everything, everything, everything))


def paired_batch(step: int) -> Batch:
    """Every instance has a picture and a spectrogram of its own; each step sees them under new noise."""
    own, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    shapes = {"video": (NUM, 3, 2, 32, 32), "audio": (NUM, 1, 40, 24)}
    seen = {
        view: torch.randn(shape, generator=own) + 0.3 * torch.randn(shape, generator=noise)
        for view, shape in shapes.items()
    }
    return Batch(
        video={"video": seen["video"]},
        audio={"audio": seen["audio"]},
        ids=torch.arange(NUM),
        start={view: torch.zeros(NUM, dtype=torch.float64) for view in shapes},
        has_audio=torch.ones(NUM, dtype=torch.bool),
        has_video=torch.ones(NUM, dtype=torch.bool),
        params={},
        padded={view: torch.zeros(NUM, dtype=torch.bool) for view in shapes},
    )


def progress(step: int) -> Progress:
    return Progress(epoch=step // EPOCH, step=step, num_steps=STEPS)


@pytest.fixture(scope="module", params=list(METHODS))
def trained(request: pytest.FixtureRequest) -> tuple[str, Method, list[Step]]:
    """A method after a few epochs, and what its steps returned."""
    torch.set_num_threads(1)
    method = build(request.param).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    steps = []
    for number in range(STEPS):
        if number % EPOCH == 0:
            method.on_epoch(number // EPOCH)
        step = method(paired_batch(number), progress(number))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        method.after_step(step)
        steps.append(dataclasses.replace(step, loss=step.loss.detach()))
    return request.param, method, steps


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_finite_and_its_gradient_reaches_every_part(name: str) -> None:
    method = build(name).train()
    method.on_epoch(0)
    step = method(paired_batch(0), progress(0))
    assert step.loss.shape == ()
    assert step.loss.isfinite()
    assert all(value.isfinite() for value in step.logs.values())
    step.loss.backward()
    gradients = {parameter: value.grad for parameter, value in method.named_parameters()}
    lost = [parameter for parameter, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert not lost
    for part in [*(f"encoders.{view}" for view in ("video", "audio")), *(f"heads.{view}" for view in method.heads)]:
        assert sum(float(g.abs().sum()) for name, g in gradients.items() if name.startswith(part)) > 0, part


def test_loss_falls(trained: tuple[str, Method, list[Step]]) -> None:
    losses = torch.stack([step.loss for step in trained[2]])
    assert losses.isfinite().all()
    assert losses[-5:].mean() < 0.8 * losses[:5].mean(), losses.tolist()


def test_embeddings_do_not_collapse(trained: tuple[str, Method, list[Step]]) -> None:
    _, method, steps = trained
    for view in method.views:
        figures = collapse_figures(steps[-1].memo[view].z)
        assert figures["std"] > 0.5, view
        assert figures["rank"] > 5, view  # of at most 15


def test_all_state_is_in_state_dict(trained: tuple[str, Method, list[Step]]) -> None:
    name, method, _ = trained
    fresh = build(name).train()
    unloaded = fresh(paired_batch(99), progress(STEPS)).loss
    fresh.load_state_dict(method.state_dict())
    before = {entry: value.clone() for entry, value in method.state_dict().items()}
    assert all(torch.equal(value, before[entry]) for entry, value in fresh.state_dict().items())
    losses = [each(paired_batch(99), progress(STEPS)).loss.item() for each in (method, fresh)]
    assert losses[0] == losses[1] != unloaded.item()
