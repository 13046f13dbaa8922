"""SwAV: the method's loss over its crops, frozen prototypes, and the queue that fills the codes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from avssl.config import OptimConfig
from avssl.methods.swav import SwAVOptions
from avssl.objectives.clustering import queue_scores, sinkhorn, swapped_prediction
from avssl.objectives.negatives import Queue
from avssl.structs import Embedded, Progress
from avssl.training.setup import describe_memory
from tests.support.contract import NUM, batch_of, build


def test_the_loss_is_that_of_its_crops() -> None:
    method = build("swav").eval()
    batch = batch_of(method, 0)
    with torch.no_grad():
        heads = {v.name: method.heads["video"](method.encoders["video"](batch.video[v.name])) for v in method.views}
    scores = {name: F.normalize(x, dim=1) @ method.prototypes.detach().T for name, x in heads.items()}
    codes = {name: sinkhorn(scores[name], epsilon=0.05, num_iterations=3) for name in ("video", "video.1")}
    expected = swapped_prediction(scores, codes, temperature=0.1)
    torch.testing.assert_close(method(batch, Progress(0, 0, 10)).loss.detach(), expected)


def test_prototypes_are_unit_and_rest_while_they_are_frozen() -> None:
    method = build("swav", freeze_steps=2)
    assert method.find_unused_parameters
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    start = method.prototypes.detach().clone()
    for number in range(4):
        optimizer.zero_grad(set_to_none=True)
        step = method(batch_of(method, number), Progress(0, number, 10))
        step.loss.backward()
        assert (method.prototypes.grad is None) == (number < 2)
        optimizer.step()
        method.after_step(step, Progress(0, number, 10))
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(len(method.prototypes)))
        assert torch.allclose(method.prototypes, start, atol=1e-6) == (number < 2)


def test_a_full_queue_fills_the_codes() -> None:
    method = build("swav", queue_size=2 * NUM, queue_from_epoch=1).eval()
    with_queue, without = Progress(1, 0, 10), Progress(0, 0, 10)
    batch = batch_of(method, 9)
    for number in range(2):
        losses = [method(batch, at).loss for at in (with_queue, without)]
        assert torch.equal(*losses)  # not full yet
        method.after_step(method(batch_of(method, number), without), without)
    assert (method.queues[0].ids >= 0).all()
    assert not torch.equal(*(method(batch, at).loss for at in (with_queue, without)))
    with torch.no_grad():
        heads = {v.name: method.heads["video"](method.encoders["video"](batch.video[v.name])) for v in method.views}
    prototypes = method.prototypes.detach()
    scores = {name: F.normalize(x, dim=1) @ prototypes.T for name, x in heads.items()}
    codes = {}
    for name, queue in zip(("video", "video.1"), method.queues, strict=True):
        filled = torch.cat([queue.z @ prototypes.T, scores[name]])
        codes[name] = sinkhorn(filled, epsilon=0.05, num_iterations=3)[-NUM:]
    expected = swapped_prediction(scores, codes, temperature=0.1)
    torch.testing.assert_close(method(batch, with_queue).loss.detach(), expected)


def test_only_large_crops_move_the_running_statistics() -> None:
    method = build("swav").train()
    method(batch_of(method, 0), Progress(0, 0, 10))
    norms = [m for part in (method.encoders, method.heads) for m in part.modules() if hasattr(m, "running_mean")]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}


def test_masked_rows_do_not_switch_the_queue_off() -> None:
    queue, prototypes = Queue(8, 4), F.normalize(torch.randn(3, 4), dim=1)
    for number in range(4):
        ids = torch.tensor([number, -1])
        start = torch.zeros(2, dtype=torch.float64)
        assert not queue_scores(queue, prototypes)[1].any()
        queue.push(Embedded(F.normalize(torch.randn(2, 4), dim=1), ids, torch.zeros_like(ids), start))
    assert queue_scores(queue, prototypes)[1].tolist() == [True, False] * 4


def test_one_crop_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="num_large=1 and num_small=0: expected two crops or more"):
        SwAVOptions(num_large=1, num_small=0)
    assert SwAVOptions(small={"size": 48}).small["max_crop_area"] == 0.14  # only what differs needs to be said


def test_across_modalities_the_code_of_one_is_predicted_from_the_other() -> None:
    """One crop and its sound, shared prototypes, clips without sound left out of its codes and of the loss."""
    method = build("swav across").eval()
    batch = batch_of(method, 0)
    silent = torch.arange(NUM) < 5
    batch = dataclasses.replace(batch, has_audio=~silent)
    with torch.no_grad():
        raw = {m: method.heads[m](method.encoders[m](getattr(batch, m)[m])) for m in ("video", "audio")}
    scores = {m: F.normalize(x, dim=1) @ method.prototypes.detach().T for m, x in raw.items()}
    how = {"epsilon": 0.05, "num_iterations": 3}
    codes = {"video": sinkhorn(scores["video"], **how)[~silent], "audio": sinkhorn(scores["audio"][~silent], **how)}
    expected = swapped_prediction({m: x[~silent] for m, x in scores.items()}, codes, temperature=0.1)
    torch.testing.assert_close(method(batch, Progress(0, 0, 10)).loss.detach(), expected)


def test_hard_codes_are_one_prototype_each() -> None:
    soft, hard = build("swav"), build("swav", codes="hard")
    scores, present = torch.rand(9, 24) * 2 - 1, torch.arange(9) != 4
    codes = hard.code(scores, present, None)
    assert codes.sum(dim=1).tolist() == present.tolist()
    assert torch.equal(codes.argmax(dim=1)[present], soft.code(scores, present, None).argmax(dim=1)[present])
    assert set(codes.unique().tolist()) == {0, 1}


def test_a_deeper_head_and_what_lies_in_memory() -> None:
    method = build("swav", head_layers=3, queue_size=24)
    linear = [module for module in method.heads["video"].modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 3
    num = sum(p.numel() for p in method.parameters())
    kept = sum(buffer.nbytes for buffer in method.buffers())
    for name, copies in (("adamw", 4), ("lars", 3)):
        said = describe_memory(method, OptimConfig(name=name))
        size = f"{(copies * 4 * num + kept) / 1e9:.2f} GB"
        assert said.startswith(f"{num / 1e6:.1f} million parameters; with gradients, optimizer and banks {size}")
