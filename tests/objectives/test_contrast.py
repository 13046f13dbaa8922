"""nce and info_nce against recorded numbers of the originals (value and gradient), closed forms, and their rules."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl.objectives.contrast import info_nce, log_mean_exp, nce, similarity
from avssl.objectives.negatives import Bank, Queue, in_batch
from avssl.objectives.positives import same_crop, same_instance
from avssl.structs import Embedded

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def avid() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "avid_cma.npz"))


@pytest.fixture(scope="module")
def methods() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(FIXTURES / "methods.npz").items()}


def embedded(z: torch.Tensor, ids: torch.Tensor | None = None, *, view: int = 0, start: float = 0.0) -> Embedded:
    shape = z.shape[:-1]
    ids = torch.arange(shape.numel()).reshape(shape) if ids is None else ids
    return Embedded(z, ids, torch.full(shape, view), torch.full(shape, start, dtype=torch.float64))


def close(ours: torch.Tensor, recorded: np.ndarray | torch.Tensor, *, relative: float = 1e-4) -> bool:
    recorded = torch.as_tensor(recorded).reshape(ours.shape)
    return bool((ours - recorded).norm() <= relative * recorded.norm())


def reference_terms(case: str, k: int, p: int) -> dict[str, tuple[str, str, str, int]]:
    """Name of the recorded loss -> query, bank, positive (own id or set), number of negatives."""
    instance = {
        "v2a": ("video", "audio"),
        "a2v": ("audio", "video"),
        "v2v": ("video", "video"),
        "a2a": ("audio", "audio"),
    }
    if case.startswith("avid"):
        names = {"avid.cross": ("v2a", "a2v"), "avid.self": ("v2v", "a2a"), "avid.joint": tuple(instance)}[case]
        return {name: (*instance[name], "own", k) for name in names}
    terms = {f"inst-{name}": (*instance[name], "own", k) for name in ("v2a", "a2v")}
    if case == "cma.cross_positives":
        terms |= {f"pos-{name}": (*instance[name], "set", k) for name in ("v2a", "a2v")}
    return terms | {f"pos-{name}": (*instance[name], "set", k // 4) for name in ("v2v", "a2a")}


@pytest.mark.parametrize("case", ["avid.cross", "avid.self", "avid.joint", "cma.published", "cma.cross_positives"])
def test_nce_equals_three_recorded_steps_of_avid_cma(avid: dict[str, np.ndarray], case: str) -> None:
    """Three steps with moving banks; recorded CMA negatives may hold the instance itself, so cells are marked by
    place here.
    """
    valid = torch.ones(300, dtype=torch.bool)
    banks = {view: Bank(valid, 32, view=i, generator=torch.Generator()) for i, view in enumerate(("video", "audio"))}
    for view, bank in banks.items():
        bank.z.copy_(torch.from_numpy(avid[f"bank_{view}.start"]))
    sets = torch.from_numpy(avid["mining.consensus.positive_ids"]).long()
    log_z = None
    for step in range(3):
        record = f"{case}.step{step}"
        raw = {v: torch.from_numpy(avid[f"step{step}.{v}"]).requires_grad_() for v in banks}
        ids = torch.from_numpy(avid[f"step{step}.ids"])
        negatives = torch.from_numpy(avid[f"{record}.negative_ids"]).long()
        z = {view: embedded(F.normalize(raw[view], dim=1), ids) for view in banks}
        losses = {}
        for name, (query, bank, kind, num) in reference_terms(case, negatives.shape[1], sets.shape[1]).items():
            positives = ids[:, None] if kind == "own" else sets[ids]
            columns = banks[bank].lookup(torch.cat([positives, negatives[:, :num]], dim=1))
            positive = torch.zeros(columns.ids.shape, dtype=torch.bool)
            positive[:, : positives.shape[1]] = True
            logits = similarity(z[query], columns) / 0.07
            log_z = log_mean_exp(logits, ~positive) if log_z is None else log_z
            losses[name] = nce(logits, positive, log_z=log_z)
            assert close(losses[name], avid[f"{record}.loss_{name}"])
        loss = torch.stack(list(losses.values())).mean()
        loss.backward()
        assert close(loss, avid[f"{record}.loss"])
        assert close(log_z, avid[f"{record}.log_z"])
        for view in banks:
            assert close(raw[view].grad, avid[f"{record}.grad_{view}"])
            banks[view].update(z[view].detach(), momentum=0.5)
    for view in banks:
        if f"{record}.bank_{view}.after" in avid:
            assert (banks[view].z - torch.from_numpy(avid[f"{record}.bank_{view}.after"])).abs().max() < 1e-5


def test_nce_equals_npid_with_its_own_constant(methods: dict[str, torch.Tensor]) -> None:
    bank, ids, negatives = methods["npid.bank"], methods["npid.ids"], methods["npid.negative_ids"]
    columns = torch.cat([ids[:, None], negatives], dim=1) if negatives.shape[1] == 40 else negatives
    logits = torch.einsum("bd,bkd->bk", methods["npid.z"], bank[columns]) / 0.07
    positive = torch.zeros_like(logits, dtype=torch.bool)
    positive[:, 0] = True
    loss = nce(logits, positive, log_z=methods["npid.log_z"])
    assert close(loss, methods["npid.loss"], relative=2e-4)  # NPID adds an epsilon of 1e-7 to its denominators


def test_info_nce_equals_simclr(methods: dict[str, torch.Tensor]) -> None:
    z = methods["simclr.z"].clone().requires_grad_()
    num = len(z) // 2
    ids, unit = torch.arange(num), F.normalize(z, dim=1)
    parts = embedded(unit[:num], ids, view=0), embedded(unit[num:], ids, view=1)
    rows = Embedded.cat([parts[0], parts[1]])
    logits = similarity(rows, in_batch(*parts)) / 0.1
    itself = same_crop(rows, rows)
    loss = info_nce(logits, same_instance(rows, rows) & ~itself, ignore=itself)
    loss.backward()
    assert close(loss, methods["simclr.loss"])
    assert close(z.grad, methods["simclr.grad"])


def test_info_nce_equals_vince(methods: dict[str, torch.Tensor]) -> None:
    frames = 4
    q = methods["vince.q"].clone().requires_grad_()
    ids = torch.arange(len(q)) // frames
    queries = embedded(q, ids)  # recorded as unit vectors, gradient on them
    keys = embedded(methods["vince.k"], ids, view=1)
    queue = Queue(len(methods["vince.queue"]), q.shape[1])
    queue.push(embedded(methods["vince.queue"], torch.arange(len(methods["vince.queue"])) + 1000))
    columns = Embedded.cat([keys, queue.columns()])
    loss = info_nce(similarity(queries, columns) / 0.07, same_instance(queries, columns))
    loss.backward()
    assert close(loss, methods["vince.loss"])
    assert close(q.grad, methods["vince.grad_q"])


def test_info_nce_and_queue_equal_a_moco_step(methods: dict[str, torch.Tensor]) -> None:
    weight_k = 0.9 * methods["moco.weight_k"] + 0.1 * methods["moco.weight_q"]  # MoCo moves the key weights first
    assert torch.allclose(weight_k, methods["moco.weight_k_after"], atol=1e-6)
    q = embedded(F.normalize(methods["moco.x_q"] @ methods["moco.weight_q"].T, dim=1))
    k = embedded(F.normalize(methods["moco.x_k"] @ weight_k.T, dim=1), view=1)
    queue = Queue(len(methods["moco.queue"]), 16)
    queue.push(embedded(methods["moco.queue"], torch.arange(len(methods["moco.queue"])) + 1000))
    own = Embedded(k.z[:, None], k.ids[:, None], k.view[:, None], k.start[:, None])  # each query's key only
    stored = queue.columns()
    shared = Embedded(
        *(getattr(stored, n)[None].expand(len(q.ids), *getattr(stored, n).shape) for n in ("z", "ids", "view", "start"))
    )
    columns = Embedded.cat([own, shared])
    loss = info_nce(similarity(q, columns) / 0.2, same_instance(q, columns))
    assert close(loss, methods["moco.loss"])
    queue.push(k)
    assert torch.allclose(queue.z, methods["moco.queue_after"], atol=1e-5)


def test_info_nce_with_one_positive_is_cross_entropy() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.arange(7)
    positive = F.one_hot(target, 11).bool()
    expected = F.cross_entropy(logits, target)
    expected_grad = torch.autograd.grad(expected, logits)[0]
    for pool in ("mean", "sum"):
        loss = info_nce(logits, positive, pool=pool)
        assert torch.allclose(loss, expected, atol=1e-6)
        assert torch.allclose(torch.autograd.grad(loss, logits)[0], expected_grad, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_info_nce_equals_its_definition_with_many_positives(pool: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(6, 9, generator=generator)
    positive = torch.rand(6, 9, generator=generator) < 0.4
    ignore = torch.rand(6, 9, generator=generator) < 0.2
    positive[4] = False  # a row without positives does not count
    rows = []
    for row in range(6):
        mine = [float(math.exp(s)) for s in logits[row][positive[row] & ~ignore[row]]]
        noise = sum(math.exp(s) for s in logits[row][~positive[row] & ~ignore[row]])
        if mine and pool == "mean":
            rows.append(np.mean([-math.log(e / (e + noise)) for e in mine]))
        elif mine:
            rows.append(-math.log(sum(mine) / (sum(mine) + noise)))
    assert len(rows) < 6
    assert float(info_nce(logits, positive, ignore=ignore, pool=pool)) == pytest.approx(np.mean(rows), rel=1e-5)


def test_nce_equals_its_definition_with_ignored_cells() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(6, 9, generator=generator)
    positive = torch.rand(6, 9, generator=generator) < 0.3
    ignore = torch.rand(6, 9, generator=generator) < 0.2
    positive[2], positive[0, 0], ignore[0, 0] = False, True, False
    rows = []
    for row in range(6):
        mine, noise = logits[row][positive[row] & ~ignore[row]], logits[row][~positive[row] & ~ignore[row]]
        level = len(noise) * math.exp(0.7)  # K Z
        if len(mine):
            rows.append(
                np.mean([-math.log(math.exp(s) / (math.exp(s) + level)) for s in mine])
                - sum(math.log(level / (math.exp(s) + level)) for s in noise)
            )
    assert float(nce(logits, positive, log_z=torch.tensor(0.7), ignore=ignore)) == pytest.approx(
        np.mean(rows), rel=1e-5
    )


@pytest.mark.parametrize(
    "loss", [info_nce, lambda s, p: info_nce(s, p, pool="sum"), lambda s, p: nce(s, p, log_z=torch.tensor(1.0))]
)
def test_no_positive_anywhere_gives_zero_with_a_gradient_path(loss) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    value = loss(logits, torch.zeros(3, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


@pytest.mark.parametrize(
    "loss", [info_nce, lambda s, p: info_nce(s, p, pool="sum"), lambda s, p: nce(s, p, log_z=torch.tensor(1.0))]
)
def test_rows_without_negatives_stay_finite(loss) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    positive = torch.zeros(3, 4, dtype=torch.bool)
    positive[0] = True
    positive[1, 1] = True
    loss(logits, positive).backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[2], torch.zeros(4))


def test_losses_compute_in_float32_under_autocast() -> None:
    q, k = embedded(F.normalize(torch.randn(4, 8), dim=1)), embedded(F.normalize(torch.randn(5, 8), dim=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = similarity(q, k)
        assert scores.dtype == torch.float32
        assert torch.allclose(scores.double(), (q.z.double() @ k.z.double().T), atol=1e-6)
        assert info_nce(scores.bfloat16(), same_instance(q, k)).dtype == torch.float32


def test_log_mean_exp_is_nan_without_cells() -> None:
    assert torch.isnan(log_mean_exp(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)))


def test_wrong_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be bool of that shape, not torch.int64"):
        info_nce(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="pool='max': expected mean or sum"):
        info_nce(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), pool="max")
