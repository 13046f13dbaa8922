"""What every method must do, whatever its algorithm: finite loss, gradients everywhere, learning, no collapse, all
state in state_dict.
"""

import dataclasses
from typing import Any

import pytest
import torch

from avssl.config import from_dict
from avssl.logs import collapse_figures
from avssl.methods import METHODS, build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Same, TrackFrame, View

NUM = 16  # instances, all of them in every batch
STEPS, EPOCH = 30, 10
HEAD = {"hidden_dim": 32, "embedding_dim": 16, "head_batch_norm": True}
AVID = HEAD | {"num_negatives": 12}
CMA = AVID | {"num_negatives_within": 6, "num_positives": 2, "mine_every": 1}
NEAR = HEAD | {"num_clips": 3, "max_seconds": 0.6}
MOCO = NEAR | {"negatives": ["queue"], "queue_size": 40, "momentum": 0.9, "momentum_schedule": "cosine"}
SECO = HEAD | {"num_clips": 4, "num_queries": 1, "interval": "halves", "negatives": ["queue", "bank"], "intra": 1.0}
SWAV = {"hidden_dim": 32, "embedding_dim": 16, "num_prototypes": 24, "num_small": 2, "freeze_steps": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name: method, its options at miniature size
    "avid": ("avid", AVID),
    "avid_cma": ("avid_cma", CMA),
    "infonce": ("infonce", HEAD),
    "neighbour": ("neighbour", NEAR | {"far": "negative"}),
    "neighbour as MoCo": ("neighbour", MOCO),
    "neighbour as SeCo": ("neighbour", SECO | {"queue_size": 40, "num_negatives": 12, "intra_seconds": 0.5}),
    "patch": ("patch", HEAD | {"tracks": "none", "num_tracks": 2}),
    "walk": ("walk", HEAD | {"dropout": 0.0}),  # each link that is cut costs, however good the links are
    "byol": ("byol", {"hidden_dim": 32, "embedding_dim": 16, "momentum": 0.9}),
    "swav": ("swav", SWAV),
    "rotation": ("rotation", {}),
    "finetune": ("finetune", {"dropout": 0.2, "warmup_epochs": 0}),
    "joint": (
        "joint",
        {
            "parts": {
                "avid_cma": CMA,
                "near": {"name": "neighbour", "weight": 0.5, **MOCO},
                "patch": HEAD | {"tracks": "none"},
                "walk": HEAD | {"weight": 2},
                "byol": {"hidden_dim": 32, "embedding_dim": 16, "momentum": 0.9},
                "swav": SWAV,
                "rotation": {},
            }
        },
    ),
}


def test_every_method_is_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(METHODS)


def build(case: str, **other: Any) -> Method:
    """A case, with other options of its method."""
    name, options = CASES[case]
    options = options | other
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": name, **options},
        "run": {"dir": "none"},
    }
    everything = torch.ones(NUM, dtype=torch.bool)
    classes = {"target": torch.arange(NUM), "classes": [str(i) for i in range(NUM)]} if name == "finetune" else {}
    return build_method(from_dict(given, source="test"), Instances(everything, everything, everything, **classes))


def batch_of(method: Method, step: int, *, ids: torch.Tensor | None = None) -> Batch:
    """Every instance has a picture, a spectrogram and patches of its own; each step sees them under new noise."""
    own, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    shapes = {"video": (NUM, 3, 2, 32, 32), "audio": (NUM, 1, 40, 24), "walk": (NUM, 1, 4, 3, 1, 32, 32)}
    shapes |= {"patch": (NUM, 3, 1, 32, 32)}
    base = {name: torch.randn(shape, generator=own) for name, shape in shapes.items()}
    base["patch 2"] = torch.randn(shapes["patch"], generator=own)  # of another track
    base["rotation"] = base["video"]
    turns = torch.arange(NUM) % 4

    def clean(view: View) -> torch.Tensor:
        if isinstance(view.when, TrackFrame):
            return base["patch 2" if view.when.track else "patch"]
        if view.recipe == "rotation":
            ramp = torch.linspace(-3, 3, 32).expand(3, 2, 32, 32)  # brighter to the right: it can be told
            return torch.stack([torch.rot90(ramp, int(turn), dims=(-2, -1)) for turn in turns])
        return base[view.recipe].repeat_interleave(3 if view.recipe == "walk" else 1, dim=1)  # frames of a walk

    seen = {view.name: clean(view) + 0.3 * torch.randn(clean(view).shape, generator=noise) for view in method.views}
    rows = torch.arange(NUM) if ids is None else ids
    taken = {view: value[rows] for view, value in seen.items()}
    tracks = max((view.when.track + 1 for view in method.views if isinstance(view.when, TrackFrame)), default=0)
    return Batch(
        video={view.name: taken[view.name] for view in method.views if view.modality == "video"},
        audio={view.name: taken[view.name] for view in method.views if view.modality == "audio"},
        ids=rows,
        start={view.name: torch.full((len(rows),), 0.5 * when_of(view), dtype=torch.float64) for view in method.views},
        has_audio=torch.ones(len(rows), dtype=torch.bool),
        has_video=torch.ones(len(rows), dtype=torch.bool),
        params={view.name: {"label": turns[rows]} for view in method.views if view.recipe == "rotation"},
        padded={view.name: torch.zeros(len(rows), dtype=torch.bool) for view in method.views},
        target={"track": torch.arange(tracks).expand(len(rows), tracks)} if tracks else {},
    )


def when_of(view: View) -> int:
    """Views of a patch and the clips video, video.1, ... start one after the other."""
    if isinstance(view.when, TrackFrame):
        return 2 * view.when.track + view.when.end
    return 0 if isinstance(view.when, Same) else int(view.name.rpartition(".")[2]) if "." in view.name else 0


def progress(step: int) -> Progress:
    return Progress(epoch=step // EPOCH, step=step, num_steps=STEPS)


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
    assert parts >= {f"encoders.{modality}" for modality in method.modalities}
    for part in parts:  # encoders.video, heads.video, parts.near.heads.video, ...
        assert sum(float(g.abs().sum()) for name, g in gradients.items() if name.startswith(part)) > 0, part


def test_loss_falls(trained: tuple[str, Method, list[Step]]) -> None:
    losses = torch.stack([step.loss for step in trained[2]])
    assert losses.isfinite().all()
    assert losses[-5:].mean() < 0.8 * losses[:5].mean(), losses.tolist()


def test_embeddings_do_not_collapse(trained: tuple[str, Method, list[Step]]) -> None:
    name, _, steps = trained
    assert steps[-1].embeddings or name == "rotation"  # which embeds nothing
    for name, value in steps[-1].embeddings.items():
        figures = collapse_figures(value.z)
        assert figures["std"] > 0.5, name
        assert figures["rank"] > 5, name  # of at most 15


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
    """Whatever stands in its place."""
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
