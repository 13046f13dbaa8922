"""NPID, MoCo v1 to v3, SimCLR, PIRL, CPC and the pretext tasks as classes: recorded numbers through their state, and
what the contract test does not ask.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avssl.methods.base import encode_each
from avssl.methods.cpc import CPC, CPCOptions
from avssl.methods.moco import MoCo, MoCoOptions
from avssl.methods.moco_v3 import MoCoV3, MoCoV3Options
from avssl.methods.npid import NPID, NPIDOptions, against_bank
from avssl.methods.pirl import PIRL, PIRLOptions, shuffled
from avssl.methods.pretext import Pretext, PretextOptions
from avssl.methods.sigreg import SIGReg, SIGRegOptions
from avssl.methods.simclr import SimCLR, SimCLROptions
from avssl.models.audio import Conv1DCpc
from avssl.objectives.negatives import Bank, hardest
from avssl.structs import Batch, Embedded, Instances, Progress
from tests.support.contract import batch_of, build
from tests.support.tiny import DIM, LinearEncoder, everything

FIXTURES = Path(__file__).parents[1] / "fixtures"
START = Progress(epoch=0, step=0, num_steps=10)


def read(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / name).items()}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return read("methods2.npz")


class Same(nn.Module):
    """An encoder that returns what it is given."""

    min_size = (1, 1, 1)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.feature_dims = {"pool": dim}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def encoders(dim: int | None = None) -> nn.ModuleDict:
    torch.manual_seed(0)
    make = LinearEncoder if dim is None else lambda: Same(dim)
    return nn.ModuleDict({"video": make(), "audio": make()})


def batch_with(views: dict[str, torch.Tensor], *, ids: torch.Tensor | None = None) -> Batch:
    """Vectors (B, dim) instead of clips."""
    num = len(next(iter(views.values())))
    every = torch.ones(num, dtype=torch.bool)
    return Batch(
        video={name: x for name, x in views.items() if not name.startswith("audio")},
        audio={name: x for name, x in views.items() if name.startswith("audio")},
        ids=torch.arange(num) if ids is None else ids,
        start={name: torch.zeros(num, dtype=torch.float64) for name in views},
        has_audio=every,
        has_video=every,
        params={name: {} for name in views},
        padded={name: ~every for name in views},
    )


def unit(raw: torch.Tensor, ids: torch.Tensor, *, view: int = 0) -> Embedded:
    return Embedded(
        F.normalize(raw, dim=1), ids, torch.full_like(ids, view), torch.zeros(len(ids), dtype=torch.float64)
    )


# ---- NPID


def test_npid_equals_the_recorded_step_and_its_constant() -> None:
    methods = read("methods.npz")
    bank = Bank(torch.ones(90, dtype=torch.bool), 16, view=0, generator=torch.Generator())
    bank.z.copy_(methods["npid.bank"])
    ids = methods["npid.ids"].long()
    query = Embedded(methods["npid.z"], ids, torch.zeros_like(ids), torch.zeros(len(ids), dtype=torch.float64))
    unset = torch.tensor(float("nan"))
    drawn = methods["npid.negative_ids"].long()
    drawn = drawn[:, 1:] if torch.equal(drawn[:, 0], ids) else drawn
    loss, log_z = against_bank(query, drawn, bank, log_z=unset, temperature=0.07)
    torch.testing.assert_close(log_z, methods["npid.log_z"].float().reshape(()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, methods["npid.loss"].reshape(()), rtol=2e-4, atol=0)  # NPID adds an epsilon


def test_the_gradient_of_npid_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = Bank(torch.ones(20, dtype=torch.bool), 6, view=0, generator=generator)
    ids, drawn = torch.arange(4), torch.randint(5, 20, (4, 7), generator=generator)
    raw = torch.randn(4, 6, generator=generator, dtype=torch.float64)

    def loss_at(raw: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum(
            "bd,bkd->bk", F.normalize(raw, dim=1), bank.z.double()[torch.cat([ids[:, None], drawn], 1)]
        )
        noise = math.log(7) + 0.3
        positive, negative = F.softplus(noise - logits[:, 0] / 0.1), F.softplus(logits[:, 1:] / 0.1 - noise)
        return (positive + negative.sum(dim=1)).mean()

    x = raw.float().requires_grad_()
    loss, _ = against_bank(unit(x, ids), drawn, bank, log_z=torch.tensor(0.3), temperature=0.1)
    loss.backward()
    for row, column in itertools.product(range(4), range(6)):
        step = torch.zeros_like(raw)
        step[row, column] = 1e-6
        slope = (loss_at(raw + step) - loss_at(raw - step)) / 2e-6
        assert float(x.grad[row, column]) == pytest.approx(float(slope), rel=1e-3, abs=1e-5)


def test_npid_of_both_is_that_of_each() -> None:
    options = {"embedding_dim": 6, "num_negatives": 5}
    views = {
        name: torch.randn(8, DIM, generator=torch.Generator().manual_seed(n))
        for n, name in enumerate(("video", "audio"))
    }
    both = NPID(NPIDOptions(modality="both", **options), encoders(), instances=everything(30), seed=0)
    done = both(batch_with(views), START)
    torch.testing.assert_close(done.loss, (done.logs["video"] + done.logs["audio"]) / 2)
    both.after_step(done, START)
    assert both.log_z.isfinite().all()
    for number, name in enumerate(views):
        moved = F.normalize(0.5 * 0 + done.embeddings[name].z, dim=1)  # the part of the new vector, up to its length
        assert (F.cosine_similarity(both.banks[name].z[:8], moved) > 0.3).all()
        again = both(batch_with(views), dataclasses.replace(START, step=1))
        assert torch.equal(again.memo["log_z"][number], both.log_z[number])


# ---- MoCo


def test_moco_equals_the_recorded_step() -> None:
    """The copy moves in after_step; recorded is MoCo, which moves it before the next loss."""
    methods = read("methods.npz")
    size, dim = methods["moco.queue"].shape
    options = MoCoOptions(head="linear", embedding_dim=dim, queue_size=size, temperature=0.2, momentum=0.9)
    method = MoCo(options, encoders(methods["moco.x_q"].shape[1]), instances=everything(2000), seed=0)
    with torch.no_grad():
        for head, weight in ((method.heads["video"], "q"), (method.target["head"], "k")):
            head.projection[0].weight.copy_(methods[f"moco.weight_{weight}"])
            head.projection[0].bias.zero_()
    x_q, x_k = methods["moco.x_q"], methods["moco.x_k"]
    old = Embedded(
        methods["moco.queue"], torch.arange(size) + 1000, torch.ones(size).long(), torch.zeros(size).double()
    )
    method.queue.push(old)
    method.target.ema_update(method._followed, momentum=0.9)
    torch.testing.assert_close(
        method.target["head"].projection[0].weight.float(), methods["moco.weight_k_after"], rtol=0, atol=1e-6
    )
    done = method(batch_with({"video": x_q, "video.1": x_k}), START)
    torch.testing.assert_close(done.loss.float(), methods["moco.loss"].reshape(()), rtol=1e-4, atol=0)
    method.after_step(done, START)
    torch.testing.assert_close(method.queue.z.float(), methods["moco.queue_after"], rtol=0, atol=1e-5)


def test_keys_of_the_own_video_in_the_queue_are_left_out() -> None:
    options = MoCoOptions(hidden_dim=8, embedding_dim=6, queue_size=12)
    method = MoCo(options, encoders(), instances=everything(30), seed=0)
    views = {
        name: torch.randn(4, DIM, generator=torch.Generator().manual_seed(n))
        for n, name in enumerate(("video", "video.1"))
    }
    method.after_step(method(batch_with(views, ids=torch.arange(4)), START), START)
    method.after_step(method(batch_with(views, ids=torch.arange(4, 8)), START), START)
    before = method(batch_with(views, ids=torch.arange(4)), START).loss
    method.queue.z[:4] = 5.0  # those of ids 0 to 3: row i must not see its own
    assert method(batch_with(views, ids=torch.arange(4)), START).loss > before
    method.queue.ids[:4] = 0
    row = {name: x[:1] for name, x in views.items()}
    alone = method(batch_with(row, ids=torch.arange(1)), START).loss
    method.queue.z[:4] = -5.0
    assert method(batch_with(row, ids=torch.arange(1)), START).loss == alone


@pytest.mark.parametrize("heads", ["resnet", "vit"])
def test_moco_v3_equals_the_recorded_step(recorded: dict[str, torch.Tensor], heads: str) -> None:
    case = {
        key.removeprefix(f"mocov3_{heads}."): value
        for key, value in recorded.items()
        if key.startswith(f"mocov3_{heads}.")
    }
    temperature, momentum = case["constants"].tolist()
    hidden, out = case["predictor.0.weight"].shape
    options = MoCoV3Options(
        layers=heads,
        hidden_dim=hidden,
        embedding_dim=out,
        temperature=temperature,
        momentum=momentum,
        momentum_schedule="constant",
    )
    method = MoCoV3(options, encoders(case["x1"].shape[1]), instances=everything(20), seed=0).train()
    networks = {
        "projector": method.heads["video"],
        "momentum_projector": method.target["video_head"],
        "predictor": method.predictors["video"],
    }
    for name, network in networks.items():
        given = {key.removeprefix(f"{name}."): value for key, value in case.items() if key.startswith(f"{name}.")}
        missing = network.projection.load_state_dict(given, strict=False)
        assert not missing.unexpected_keys
        assert all("running" in key or "num_batches" in key for key in missing.missing_keys)
    method.target.ema_update(method._followed, momentum=momentum)
    done = method(batch_with({"video": case["x1"], "video.1": case["x2"]}), START)
    done.loss.backward()
    torch.testing.assert_close(done.loss, case["loss"].reshape(()), rtol=1e-4, atol=0)
    for name in ("projector", "predictor"):
        for key, parameter in networks[name].projection.named_parameters():
            expected = case[f"{name}_grad.{key}"]
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    after = networks["momentum_projector"].projection.state_dict()
    compared = [key for key in after if f"momentum_projector_after.{key}" in case]
    assert len(compared) >= 6
    for key in compared:
        torch.testing.assert_close(
            after[key].float(), case[f"momentum_projector_after.{key}"].float(), rtol=1e-4, atol=1e-6
        )


# ---- SimCLR


def test_simclr_equals_the_recorded_loss() -> None:
    methods = read("methods.npz")
    z = methods["simclr.z"]
    method = SimCLR(SimCLROptions(hidden_dim=8), encoders(z.shape[1]), instances=everything(30), seed=0)
    method.heads["video"] = nn.Identity()
    first, second = z.chunk(2)
    done = method(batch_with({"video": first.clone(), "video.1": second.clone()}), START)
    torch.testing.assert_close(done.loss, methods["simclr.loss"].reshape(()), rtol=1e-4, atol=0)


def test_batch_norm_of_simclr_sees_both_augmentations() -> None:
    method = SimCLR(SimCLROptions(hidden_dim=8, embedding_dim=4), encoders(), instances=everything(30), seed=0).train()
    generator = torch.Generator().manual_seed(0)
    views = {"video": torch.randn(5, DIM, generator=generator), "video.1": 4 + torch.randn(5, DIM, generator=generator)}
    before = method(batch_with(views), START).embeddings["video"].z
    views["video.1"] = views["video.1"] + 3
    assert not torch.allclose(method(batch_with(views), START).embeddings["video"].z, before)


def test_simclr_across_leaves_out_what_lacks_a_modality() -> None:
    options = SimCLROptions(views="video+audio", hidden_dim=8, embedding_dim=4)
    method = SimCLR(options, encoders(), instances=everything(30), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    views = {name: torch.randn(5, DIM, generator=generator) for name in ("video", "audio")}
    silent = dataclasses.replace(batch_with(views), has_audio=torch.arange(5) != 2)
    loss = method(silent, START).loss
    views["audio"] = views["audio"].clone()
    views["audio"][2] = 9.0
    other = dataclasses.replace(batch_with(views), has_audio=torch.arange(5) != 2)
    assert method(other, START).loss == loss


# ---- PIRL


def pirl(memory: torch.Tensor, constants: torch.Tensor, **options: object) -> PIRL:
    temperature, momentum, weight, _ = constants.tolist()
    chosen = PIRLOptions(
        embedding_dim=memory.shape[1],
        temperature=temperature,
        bank_momentum=momentum,
        weight=weight,
        num_negatives=6,
        **options,
    )
    method = PIRL(chosen, encoders(), instances=everything(len(memory)), seed=0)
    method.bank.z.copy_(memory)
    return method


def test_pirl_equals_three_recorded_steps(recorded: dict[str, torch.Tensor]) -> None:
    method = pirl(recorded["pirl.memory"], recorded["pirl.constants"])
    for step in range(3):
        case = {
            k.removeprefix(f"pirl.step{step}."): v for k, v in recorded.items() if k.startswith(f"pirl.step{step}.")
        }
        raw = {name: case[name].clone().requires_grad_() for name in ("patches", "image")}
        ids = case["ids"].long()
        drawn = {name: case[f"negative_ids_{name}"].long()[:, 1:] for name in raw}
        z = {"transformed": unit(raw["patches"], ids), "plain": unit(raw["image"], ids)}
        done = method.contrast(z, {"transformed": drawn["patches"], "plain": drawn["image"]})
        done.loss.backward()
        method.after_step(done, START)
        torch.testing.assert_close(done.loss, case["loss"].reshape(()), rtol=1e-4, atol=0)
        torch.testing.assert_close(done.logs["transformed"], case["loss_patches"].reshape(()), rtol=1e-4, atol=0)
        for name, x in raw.items():
            expected = case[f"grad_{name}"]
            torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        constant = float(case["z"]) / len(recorded["pirl.memory"])
        assert float(method.log_z) == pytest.approx(math.log(constant), abs=1e-4)
        torch.testing.assert_close(method.bank.z, case["memory_after"], rtol=0, atol=1e-5)


def test_pirl_with_info_nce_equals_the_recorded_step(recorded: dict[str, torch.Tensor]) -> None:
    case = {k.removeprefix("pirl_infonce."): v for k, v in recorded.items() if k.startswith("pirl_infonce.")}
    method = pirl(case["memory"], case["constants"], contrast="info_nce")
    raw = {name: case[name].clone().requires_grad_() for name in ("patches", "image")}
    ids = case["ids"].long()
    z = {"transformed": unit(raw["patches"], ids), "plain": unit(raw["image"], ids)}
    drawn = {"transformed": "patches", "plain": "image"}
    done = method.contrast(z, {name: case[f"negative_ids_{key}"].long()[:, 1:] for name, key in drawn.items()})
    done.loss.backward()
    method.after_step(done, START)
    torch.testing.assert_close(done.loss, case["loss"].reshape(()), rtol=1e-4, atol=0)
    for name, x in raw.items():
        expected = case[f"grad_{name}"]
        torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(method.bank.z, case["memory_after"], rtol=0, atol=1e-5)


def test_pirl_shuffles_each_clips_tiles_by_itself() -> None:
    parts = torch.arange(9.0)[None, :, None].expand(40, 9, 2)
    orders = shuffled(parts, torch.Generator().manual_seed(0))[..., 0]
    assert torch.equal(orders.sort(dim=1).values, parts[..., 0])
    assert len(orders.unique(dim=0)) > 35


# ---- CPC


@pytest.mark.parametrize("predictor", ["linear", "recurrent"])
def test_later_steps_change_no_earlier_prediction(predictor: str) -> None:
    options = CPCOptions(num_blocks=6, num_ahead=2, predictor=predictor, embedding_dim=5, hidden_dim=7)
    method = CPC(options, encoders(4), instances=everything(10), seed=0).eval()
    z = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    for changed in range(6):
        other = z.clone()
        other[:, :, changed:] += 1
        for before, after in zip(method.predictions(z), method.predictions(other), strict=True):
            for place in range(before.shape[2]):
                last_seen = 3 if predictor == "recurrent" else place  # blocks 0 to 3 predict 4 and 5, or block by block
                equal = torch.equal(before[:, :, place], after[:, :, place])
                assert equal == (last_seen < changed), (changed, place)


def test_the_whole_of_cpc_up_to_a_block_is_blind_to_later_blocks() -> None:
    """Through the encoder too, with BatchNorm in evaluation mode: bit-equal."""
    method = build("cpc").eval()
    batch = batch_of(method, 0)
    later = dataclasses.replace(batch, video={name: x.clone() for name, x in batch.video.items()})
    later.video["blocks"][:, 2:] += 1
    found = []
    for each in (batch, later):
        seen = {}
        method.predictions = lambda z, seen=seen: seen.setdefault("z", z) is None or type(method).predictions(method, z)
        method(each, START)
        found.append(type(method).predictions(method, seen["z"]))
    for before, after in zip(*found, strict=True):
        assert torch.equal(before[:, :, :2], after[:, :, :2])
        assert before.shape[2] <= 2 or not torch.equal(before[:, :, 2:], after[:, :, 2:])


def test_nothing_leaks_through_the_encoder_of_samples_in_training() -> None:
    """It has no normalization, so this holds for losses that are trained, not in evaluation alone."""
    torch.manual_seed(0)
    options = CPCOptions(modality="audio", num_blocks=4, num_ahead=1, embedding_dim=5, hidden_dim=7)
    encoder = Conv1DCpc(width=0.1)
    method = CPC(options, nn.ModuleDict({"audio": encoder}), instances=everything(10), seed=0).train()
    before = torch.randn(2, 4, 1, *encoder.min_size)
    after = before.clone()
    after[:, 2:] += 1
    (one,), (other,) = (
        method.predictions(method.heads["audio"](encode_each(encoder, x, None)).unsqueeze(1)) for x in (before, after)
    )
    assert torch.equal(one[:, :, :2], other[:, :, :2])
    assert not torch.equal(one[:, :, 2], other[:, :, 2])


def test_the_first_steps_are_never_targets() -> None:
    """With skip = 1 and two steps ahead, steps 2 and later are predicted from those two and three before."""
    options = CPCOptions(num_blocks=5, skip=1, num_ahead=2, embedding_dim=5, hidden_dim=7)
    method = CPC(options, encoders(4), instances=everything(10), seed=0).eval()
    found = method.predictions(torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert [each.shape for each in found] == [(3, 1, 3, 5), (3, 1, 2, 5)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_blocks": 4, "num_ahead": 4}, "num_ahead=4 behind skip=0 of num_blocks=4"),
        ({"over": "rows", "modality": "audio"}, "over=rows cuts frames into patches"),
        ({"maps": True, "modality": "audio"}, "maps=true takes the places of frames"),
        ({"predictor": "recurrent", "skip": 1}, "skip=1: predictor=recurrent predicts each next step"),
    ],
)
def test_what_cpc_cannot_do_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CPCOptions(**options)


def test_too_few_rows_of_patches_are_refused_by_name() -> None:
    method = build("cpc over rows")
    batch = batch_of(method, 0)
    small = dataclasses.replace(batch, video={name: x[..., :32, :] for name, x in batch.video.items()})
    with pytest.raises(ValueError, match=r"patches of 32 pixels every 16 make 1 rows of 32 pixels, too few for skip=0"):
        method(small, START)


# ---- pretext tasks


def test_the_label_of_a_position_is_that_of_doersch() -> None:
    """The row above 0, 1, 2, the same row 3 and 4, the row below 5, 6, 7, beside the middle tile."""
    method = Pretext(PretextOptions(task="position"), encoders(4), instances=everything(10), seed=0)
    assert method.orders.tolist() == [[4, 0], [4, 1], [4, 2], [4, 3], [4, 5], [4, 6], [4, 7], [4, 8]]


@pytest.mark.parametrize("task, shape", [("jigsaw", (7, 9)), ("order", (6, 3))])
def test_orders_are_permutations_and_belong_to_the_checkpoint(task: str, shape: tuple[int, int]) -> None:
    options = PretextOptions(task=task, num_permutations=7)
    first, other = (Pretext(options, encoders(4), instances=everything(10), seed=seed) for seed in (0, 1))
    assert first.orders.shape == shape
    assert (first.orders.sort(dim=1).values == torch.arange(shape[1])).all()
    assert len(first.orders.unique(dim=0)) == shape[0]
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.orders, first.orders)


@pytest.mark.parametrize("task", ["position", "jigsaw", "order", "order of sound"])
def test_parts_stand_in_the_order_of_their_label(task: str) -> None:
    """The encoder is replaced by the mean of its input, which says which part it is."""
    method = build(f"pretext {task}")
    (view,) = method.views
    batch = batch_of(method, 0)
    group = batch.audio if "sound" in task else batch.video
    parts = group[view.name]
    group[view.name] = torch.arange(parts.shape[1]).view(1, -1, *[1] * (parts.dim() - 2)).expand(parts.shape).float()
    seen = []

    def encode(name: str, *, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.flatten(2).mean(dim=2))
        return torch.zeros(*x.shape[:2], method.part.projection[0].in_features)

    method.loss(encode, batch, START)
    assert torch.equal(seen[0].long(), method.orders[method.labels(batch, START)])


def test_clips_too_short_for_their_segments_do_not_count() -> None:
    method = build("pretext order").eval()
    batch = batch_of(method, 0)
    short = dataclasses.replace(batch, padded={"order": torch.arange(16) >= 8})
    half = method(dataclasses.replace(batch, ids=batch.ids.masked_fill(torch.arange(16) >= 8, -1)), START).loss
    torch.testing.assert_close(method(short, START).loss, half)
    assert method(batch, START).loss != half


@pytest.mark.parametrize("options", [{"task": "jigsaw"}, {"task": "order", "modality": "audio"}])
def test_a_set_without_what_a_task_needs_is_refused(options: dict) -> None:
    none, every = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    modality = options.get("modality", "video")
    lacking = {"has_audio": every, "has_video": every} | {f"has_{modality}": none}
    with pytest.raises(ValueError, match=f"has 0 usable clips with {modality}: train on at least 1"):
        Pretext(PretextOptions(**options), encoders(4), instances=Instances(every, **lacking), seed=0)


def test_sound_has_no_tiles() -> None:
    with pytest.raises(ValueError, match="task=jigsaw is one of pictures: with modality=audio expected order or speed"):
        PretextOptions(task="jigsaw", modality="audio")


# ---- hard negatives


def test_the_hardest_share_of_the_negatives_counts() -> None:
    logits = torch.tensor([[0.5, 0.1, 0.9, -0.3, 0.7], [0.2, 0.2, 0.1, 0.0, 0.9]])
    negative = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    assert hardest(logits, negative, share=0.5).long().tolist() == [[1, 0, 0, 0, 1], [1, 1, 0, 0, 0]]
    assert hardest(logits, negative, share=0.01).long().tolist() == [
        [0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0],
    ]  # equal ones both
    assert torch.equal(hardest(logits, negative, share=1), negative)
    assert not hardest(logits, torch.zeros_like(negative), share=0.5).any()


# ---- LeJEPA


def test_lejepa_equals_the_recorded_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {name.removeprefix("lejepa."): x for name, x in read("redundancy.npz").items() if "lejepa" in name}
    z = recorded["projections"].float().requires_grad_()  # (2, B, D)
    options = SIGRegOptions(embedding_dim=z.shape[2], weight=float(recorded["lambda"]))
    method = SIGReg(options, encoders(z.shape[2]), instances=everything(30), seed=0)
    method.heads["video"] = nn.Identity()
    monkeypatch.setattr(method, "directions", lambda progress: recorded["directions"].float())
    step = method(batch_with(dict(zip(("video", "video.1"), z, strict=True))), START)
    step.loss.backward()
    for name, value in (("sigreg", step.logs["sigreg"]), ("invariance", step.logs["invariance"]), ("loss", step.loss)):
        torch.testing.assert_close(value.detach(), recorded[name].float().reshape(()), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(z.grad, recorded["grad"].float(), rtol=1e-4, atol=1e-6)
