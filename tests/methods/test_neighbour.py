"""Temporal-neighbour contrast: the recorded numbers of VINCE and SeCo, which cells are positive, negative and neither,
and what short videos do.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.methods.neighbour import Neighbour, NeighbourOptions
from avssl.structs import Embedded, Instances, Progress, Step
from tests.support import contract
from tests.support.tiny import LinearEncoder, everything, vector_batch

FIXTURES = Path(__file__).parents[1] / "fixtures"
START = Progress(epoch=0, step=0, num_steps=10)
DIM = 16


def build(instances: Instances | None = None, *, seed: int = 0, **options: object) -> Neighbour:
    torch.manual_seed(seed)
    encoders = nn.ModuleDict({"video": LinearEncoder()})
    options = {"embedding_dim": DIM, "hidden_dim": 16} | options
    return Neighbour(NeighbourOptions(**options), encoders, instances=instances or everything(40), seed=seed)


def embedded(z: Tensor, ids: list[int], start: list[float], view: list[int] | None = None) -> Embedded:
    views = torch.zeros(len(ids), dtype=torch.int64) if view is None else torch.tensor(view)
    return Embedded(z, torch.tensor(ids), views, torch.tensor(start, dtype=torch.float64))


def unit(num: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "methods.npz").items()}


def fill(method: Neighbour, queue: Tensor) -> None:
    """A queue of other videos."""
    method.queue.push(embedded(queue, [30] * len(queue), [0.0] * len(queue)))


def test_equals_recorded_vince(recorded: dict[str, Tensor]) -> None:
    """4 query frames and 4 other key frames of each of 3 videos, and a queue: all 16 pairs of a video are positive."""
    method = build(
        num_clips=8, num_queries=4, negatives=["batch", "queue"], queue_size=40, temperature=0.07, momentum=0
    )
    fill(method, recorded["vince.queue"])
    ids = [i // 4 for i in range(12)]
    raw = recorded["vince.q"].clone().requires_grad_()
    queries = embedded(raw, ids, [float(i) for i in range(12)])  # recorded of unit length, as its gradient is
    keys = embedded(recorded["vince.k"], ids, [20.0 + i for i in range(12)], view=[1] * 12)
    loss = method.contrast(queries, keys, START)
    loss.backward()
    assert loss.item() == pytest.approx(recorded["vince.loss"].item(), rel=1e-4)
    gradient = recorded["vince.grad_q"]
    assert (raw.grad - gradient).norm() <= 1e-4 * gradient.norm()


def test_equals_recorded_seco(recorded: dict[str, Tensor]) -> None:
    """The same frame under another augmentation, and two frames of the other half."""
    options = {"num_clips": 4, "num_queries": 1, "interval": "halves", "negatives": ["queue"], "queue_size": 40}
    method = build(**options, intra=1.0, momentum=0.9)
    fill(method, recorded["seco.queue"])
    ids = list(range(12))
    queries = embedded(recorded["seco.q"], ids, [0.0] * 12)
    parts = [embedded(recorded[f"seco.{name}"], ids, [start] * 12, view=[view] * 12) for name, start, view in (
        ("k_same", 0.0, 1), ("k_far1", 5.0, 2), ("k_far2", 6.0, 3),
    )]  # fmt: skip
    keys = Embedded.interleave(parts)
    assert method.contrast(queries, keys, START).item() == pytest.approx(recorded["seco.inter_loss"].item(), rel=1e-4)
    assert method.contrast_intra(queries, keys).item() == pytest.approx(recorded["seco.intra_loss"].item(), rel=1e-4)


def naive(logits: Tensor, kinds: list[str]) -> Tensor:
    """-log softmax of each positive among itself and the negatives, averaged."""
    negatives = sum(score.exp() for score, kind in zip(logits, kinds, strict=True) if kind == "negative")
    costs = [-(s.exp() / (s.exp() + negatives)).log() for s, k in zip(logits, kinds, strict=True) if k == "positive"]
    return torch.stack(costs).mean()


@pytest.mark.parametrize("far", ["negative", "ignore"])
def test_near_is_positive_far_is_as_told_and_the_gap_is_neither(far: str) -> None:
    method = build(num_clips=4, max_seconds=1.0, min_far_seconds=3.0, far=far, temperature=0.5)
    ids, start = [7, 7, 7, 7, 9, 9, -1], [0.0, 1.0, 3.0, 3.5, 0.0, 9.0, 0.0]
    z = unit(7)
    clips = embedded(z, ids, start, view=[0, 1, 2, 3, 0, 1, 0])
    scores = z @ z.T / 0.5
    far_kind = "negative" if far == "negative" else "neither"
    rows = {
        0: ["neither", "positive", "neither", far_kind, "negative", "negative", "neither"],
        1: ["positive", "neither", "neither", "neither", "negative", "negative", "neither"],
        2: ["neither", "neither", "neither", "positive", "negative", "negative", "neither"],
        3: [far_kind, "neither", "positive", "neither", "negative", "negative", "neither"],
    }  # the clips of video 9 lie 9 seconds apart: no row of theirs has a positive
    expected = torch.stack([naive(scores[row], kinds) for row, kinds in rows.items()]).mean()
    torch.testing.assert_close(method.contrast(clips, clips, START), expected)


def test_a_video_too_short_for_a_far_clip_keeps_its_other_negatives() -> None:
    """Its rows are those of a method that asks for no far clips at all."""
    z = unit(4)
    clips = embedded(z, [1, 1, 2, 2], [0.0, 0.3, 0.0, 0.2], view=[0, 1, 0, 1])
    with_far = build(num_clips=3, interval="radii", num_far=1, max_seconds=0.5, min_far_seconds=2, far="negative")
    losses = [method.contrast(clips, clips, START) for method in (with_far, build(num_clips=2))]
    assert torch.equal(*losses)
    assert losses[0] > 0


def test_two_clips_without_time_limit_are_simclr(recorded: dict[str, Tensor]) -> None:
    z = recorded["simclr.z"].clone().requires_grad_()
    ids = [*range(12), *range(12)]  # the two halves are the two views
    clips = embedded(F.normalize(z, dim=1), ids, [0.0] * 24, view=[0] * 12 + [1] * 12)
    loss = build(num_clips=2).contrast(clips, clips, START)
    loss.backward()
    assert loss.item() == pytest.approx(recorded["simclr.loss"].item(), rel=1e-4)
    assert (z.grad - recorded["simclr.grad"]).norm() <= 1e-4 * recorded["simclr.grad"].norm()


def test_rho_moco_pairs_every_clip_with_the_keys_of_the_others_and_the_queue() -> None:
    method = build(num_clips=3, negatives=["queue"], queue_size=8, momentum=0.9, temperature=0.2)
    fill(method, unit(8, seed=1))
    q, k = unit(6, seed=2), unit(6, seed=3)
    ids, start, view = [4, 4, 4, 5, 5, 5], [0.0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2]
    loss = method.contrast(embedded(q, ids, start, view), embedded(k, ids, start, view), START)
    pairs = [(i, j) for i in range(6) for j in range(6) if ids[i] == ids[j] and i != j]
    table = [torch.cat([q[i, None] @ k[j, None].T, q[i, None] @ method.queue.z.T], dim=1) / 0.2 for i, j in pairs]
    expected = F.cross_entropy(torch.cat(table), torch.zeros(len(pairs), dtype=torch.int64))
    torch.testing.assert_close(loss, expected)


def test_own_video_in_the_queue_is_left_out() -> None:
    method = build(negatives=["queue"], queue_size=8, momentum=0.9)
    fill(method, unit(8, seed=1))
    q = unit(2, seed=2)
    clips = embedded(q, [4, 4], [0.0, 1.0], view=[0, 1])
    alone = method.contrast(clips, clips, START)
    method.queue.ids[:3] = 4
    method.queue.z[:3] = 1.0
    method.queue.ids[3:6] = -1
    others = torch.cat([q[0, None] @ q[1, None].T, q[0, None] @ method.queue.z[6:].T], dim=1) / 0.1
    again = torch.cat([q[1, None] @ q[0, None].T, q[1, None] @ method.queue.z[6:].T], dim=1) / 0.1
    expected = F.cross_entropy(torch.cat([others, again]), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(method.contrast(clips, clips, START), expected)
    assert alone != expected


def test_negatives_of_the_bank_are_other_videos() -> None:
    method = build(everything(12), negatives=["bank"], num_negatives=200)
    avoid = torch.tensor([[3], [3], [5]])
    drawn = method.bank.draw(200, avoid=avoid, generator=method.generator(START))
    assert drawn.shape == (3, 200)
    assert not (drawn == torch.tensor([[3], [3], [5]])).any()
    assert set(drawn[0].tolist()) == set(range(12)) - {3}


def batch(ids: list[int], num_clips: int, *, step: int = 0):
    """Clips of a video are related vectors, one second apart."""
    made = vector_batch(torch.tensor(ids), step=step)
    names = ["video", *(f"video.{number}" for number in range(1, num_clips))]
    noise = torch.Generator().manual_seed(step)
    video = {
        name: made.video["video"] + 0.2 * torch.randn(made.video["video"].shape, generator=noise) for name in names
    }
    start = {name: torch.full((len(ids),), float(i), dtype=torch.float64) for i, name in enumerate(names)}
    return dataclasses.replace(made, video=video, audio={}, start=start, padded={})


def test_the_order_of_state_is_optimizer_then_copy_then_queue() -> None:
    """The keys of a step come from the copy as it was; the queue gets them after the loss, the copy follows last."""
    method = build(negatives=["queue"], queue_size=8, momentum=0.9)
    first = batch([0, 1], 2)
    before = {name: value.clone() for name, value in method.target.state_dict().items()}
    step = method(first, START)
    assert (method.queue.ids == -1).all()
    with torch.no_grad():
        keys = F.normalize(method.target["head video"](method.target["video"](first.video["video"])), dim=1)
        for parameter in method.encoders.parameters():
            parameter += 0.5
    method.after_step(step, START)
    torch.testing.assert_close(method.queue.z[[0, 2]], keys)
    assert method.queue.ids.tolist() == [0, 0, 1, 1, -1, -1, -1, -1]
    for name, value in method.encoders["video"].state_dict().items():
        torch.testing.assert_close(
            method.target["video"].state_dict()[name], 0.9 * before[f"networks.video.{name}"] + 0.1 * value
        )


def test_momentum_rises_to_one() -> None:
    method = build(negatives=["queue"], queue_size=8, momentum=0.5, momentum_schedule="cosine")
    steps = [method(batch([0, 1], 2), Progress(0, done, 10)) for done in (0, 10)]
    start = {name: value.clone() for name, value in method.target.state_dict().items()}
    with torch.no_grad():
        for parameter in method.encoders.parameters():
            parameter += 1.0
    method.after_step(steps[1], Progress(0, 10, 10))
    assert all(torch.equal(value, start[name]) for name, value in method.target.state_dict().items())
    method.after_step(steps[0], Progress(0, 0, 10))
    weight = "networks.video.weight"
    torch.testing.assert_close(method.target.state_dict()[weight], start[weight] + 0.5)


def test_clips_of_a_video_come_together() -> None:
    """Training on related vectors brings those of a video together and keeps videos apart."""
    method = build(num_clips=3, max_seconds=1.5, far="negative", min_far_seconds=1.5, temperature=0.5, seed=2)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    steps: list[Step] = []
    for number in range(60):
        steps.append(method(batch([*range(10)], 3, step=number), Progress(0, number, 60)))
        optimizer.zero_grad()
        steps[-1].loss.backward()
        optimizer.step()
        method.after_step(steps[-1], Progress(0, number, 60))
    z = steps[-1].embeddings["video"].z.unflatten(0, (10, 3))
    within = (z[:, 0] * z[:, 1]).sum(dim=1).mean()
    across = (z[:, 0] * z[:, 1].roll(1, dims=0)).sum(dim=1).mean()
    assert within > across + 0.5
    assert steps[-1].loss < steps[0].loss - 0.3


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"interval": "exponential"},
            "interval=exponential in NeighbourOptions: expected one of uniform, radii, halves",
        ),
        ({"far": "positive"}, "far=positive in NeighbourOptions: expected one of negative, ignore"),
        (
            {"negatives": ["batches"]},
            r"negatives=\[batches\] in NeighbourOptions: expected a list of .*, each one of batch, queue, bank",
        ),
        (
            {"negatives": []},
            r"negatives=\[\] in NeighbourOptions: expected .* one or more, each one of batch, queue, bank",
        ),
        ({"num_clips": 1}, "num_clips=1 in NeighbourOptions: expected a whole number of at least 2"),
        ({"num_queries": 2}, "num_queries=2 of num_clips=2: expected 1 to 1"),
        ({"min_far_seconds": 1.0}, "min_far_seconds=1.0 with max_seconds=None: far begins where near ends"),
        ({"min_far_seconds": 1.0, "max_seconds": 2.0}, "far begins where near ends or later"),
        ({"interval": "radii"}, "interval=radii draws clips within max_seconds: set it"),
        ({"max_seconds": 0}, "max_seconds=0 leaves clips drawn anywhere without a near one"),
        ({"num_far": 1}, "num_far=1 needs interval=radii"),
        ({"num_far": 1, "interval": "radii", "max_seconds": 1.0}, "num_clips of at least 3"),
        ({"far": "negative"}, "far=negative needs max_seconds"),
        ({"interval": "halves"}, "interval=halves with num_clips=2 has no clip in the other half: expected"),
        ({"momentum_schedule": "cosine"}, "momentum_schedule=cosine needs momentum"),
        ({"momentum": 1.5}, "momentum=1.5 in NeighbourOptions: expected a number from 0 to 1 or null"),
        ({"max_seconds": -1.0}, "max_seconds=-1.0 in NeighbourOptions: expected a number of at least 0 or null"),
        (
            {"max_seconds": float("nan")},
            "max_seconds=nan in NeighbourOptions: expected a finite number of at least 0 or null",
        ),
        (
            {"num_far": -1, "interval": "radii", "max_seconds": 1.0},
            "num_far=-1 in NeighbourOptions: expected a whole number of at least 0",
        ),
        (
            {"negatives": ["queue"], "queue_size": 0},
            "queue_size=0 in NeighbourOptions: expected a whole number of at least 1",
        ),
        (
            {"negatives": ["bank"], "num_negatives": -1},
            "num_negatives=-1 in NeighbourOptions: expected a whole number of at least 1",
        ),
        ({"bank_momentum": 7.0}, "bank_momentum=7.0 in NeighbourOptions: expected a number of at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature=0.0 in NeighbourOptions: expected a number above 0"),
        ({"intra_temperature": -0.1}, "intra_temperature=-0.1 in NeighbourOptions: expected a number above 0"),
        (
            {"momentum_schedule": "linear"},
            "momentum_schedule=linear in NeighbourOptions: expected one of constant, cosine",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_one_usable_clip_is_refused() -> None:
    lonely = Instances(torch.arange(4) == 1, torch.ones(4) > 0, torch.ones(4) > 0)
    with pytest.raises(ValueError, match="1 usable clips with video"):
        build(lonely)


def test_only_clips_like_the_exported_one_move_the_statistics_of_the_head() -> None:
    method = contract.build("neighbour", further={"size": 32}).train()
    method(contract.batch_of(method, 0), contract.progress(0))
    tracked = {int(module.num_batches_tracked) for module in method.heads.modules() if hasattr(module, "running_mean")}
    assert tracked == {1}  # of three clips
