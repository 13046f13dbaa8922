"""What must always hold, as properties over sets, batches and ranks that hypothesis draws.

The examples are the same at every run (derandomize). Numbers inside a case come from its seed, so that a failing case
is a handful of small integers; what hypothesis draws is their shape: N, B, K, P, duplicates, clips without audio or
without video, files that could not be read, ragged batches, ranks.

Letters as in structs.py: N instances, B rows, K negatives, P positives, D dimensions.
"""

import collections
import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from avssl import distributed
from avssl.data.manifest import IDENTITY, SCHEMA, Manifest
from avssl.data.sampling import NO_CLIP, TrainingBatches
from avssl.methods.avid import AVID, AVIDOptions
from avssl.methods.avid_cma import AVIDCMAOptions
from avssl.mining import tiles
from avssl.mining.agreement import minable, mine_agreement
from avssl.mining.definition import RULES
from avssl.objectives.negatives import Bank, Queue, draw_negatives
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from tests.support.ranks import on_ranks
from tests.support.runs import CMA, config
from tests.support.tiny import tiny_method, vector_batch

pytestmark = pytest.mark.slow
examples = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=60
)
few_examples = settings(examples, max_examples=20)
seeds = st.integers(0, 2**16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def embedded(z: torch.Tensor, ids: torch.Tensor) -> Embedded:
    return Embedded(z, ids, ids % 3, ids.double() / 7)


# ---- negatives


@st.composite
def draws(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """valid (N,) and avoid (B, P) with repeated, empty and invalid places; every row has something left."""
    num = draw(st.integers(2, 12))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    valid[draw(st.integers(0, num - 1))] = True
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    ids = st.integers(-1, num - 1)
    avoid = torch.tensor(draw(st.lists(st.lists(ids, min_size=width, max_size=width), min_size=rows, max_size=rows)))
    left = draw(st.sampled_from(valid.nonzero().flatten().tolist()))
    return valid, avoid.masked_fill(avoid == left, -1)


@examples
@given(draws(), seeds)
def test_negatives_are_uniform_over_the_valid_ids_that_a_row_does_not_avoid(
    case: tuple[torch.Tensor, torch.Tensor], seed: int
) -> None:
    valid, avoid = case
    num_draws = 3000
    drawn = draw_negatives(valid, num_draws, avoid=avoid, generator=generator(seed))
    for row, avoided in zip(drawn, avoid, strict=True):
        allowed = valid.clone()
        allowed[avoided[avoided >= 0]] = False
        counts = torch.bincount(row, minlength=len(valid)).double()
        assert counts[~allowed].sum() == 0
        expected = num_draws / int(allowed.sum())
        freedom = int(allowed.sum()) - 1
        chi_square = float(((counts[allowed] - expected) ** 2 / expected).sum())
        assert chi_square < freedom + 6 * (2 * freedom) ** 0.5 + 6  # beyond the 1 - 1e-5 quantile for 1 to 11 cells


@examples
@given(draws(), seeds, st.integers(1, 9), st.data())
def test_negatives_depend_neither_on_the_ranks_nor_on_the_order_of_what_is_avoided(
    case: tuple[torch.Tensor, torch.Tensor], seed: int, num: int, data: st.DataObject
) -> None:
    valid, avoid = case
    whole = draw_negatives(valid, num, avoid=avoid, generator=generator(seed))
    rows = data.draw(st.sampled_from([size for size in range(1, len(avoid) + 1) if len(avoid) % size == 0]))
    parts = []
    for rank, part in enumerate(avoid.split(rows)):
        with mock.patch.object(distributed, "rank", lambda rank=rank: rank):
            parts.append(draw_negatives(valid, num, avoid=part, generator=generator(seed)))
    assert torch.equal(torch.cat(parts), whole)
    shuffled = avoid[:, torch.randperm(avoid.shape[1], generator=generator(seed))]
    again = torch.cat([shuffled, shuffled[:, :1], torch.full((len(avoid), 1), -1)], dim=1)  # repeated and empty columns
    assert torch.equal(draw_negatives(valid, num, avoid=again, generator=generator(seed)), whole)


# ---- memory banks


@st.composite
def updates(draw: st.DrawFn) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """valid (N,) and the ids of some batches, with duplicates, masked (-1) and invalid rows."""
    num = draw(st.integers(1, 10))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    batch = st.lists(st.integers(-1, num - 1), min_size=1, max_size=12).map(lambda ids: torch.tensor(ids, dtype=int))
    return valid, draw(st.lists(batch, min_size=1, max_size=4))


@examples
@given(updates(), seeds, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_a_bank_moves_each_named_row_by_the_average_of_its_vectors_and_no_other(
    case: tuple[torch.Tensor, list[torch.Tensor]], seed: int, momentum: float
) -> None:
    valid, batches = case
    bank = Bank(valid, 4, view=0, generator=generator(seed))
    for number, ids in enumerate(batches):
        new, before = unit(seed + 1 + number, len(ids), 4), bank.z.clone()
        bank.update(embedded(new, ids), momentum=momentum)
        named = set(ids[ids >= 0].tolist()) & set(valid.nonzero().flatten().tolist())
        for row in range(len(valid)):
            if row in named:
                average = new[ids == row].double().mean(dim=0)
                expected = F.normalize(momentum * before[row].double() + (1 - momentum) * average, dim=0)
                torch.testing.assert_close(bank.z[row].double(), expected, atol=1e-5, rtol=0)
            else:
                assert torch.equal(bank.z[row], before[row])
        torch.testing.assert_close(bank.z.norm(dim=1), torch.ones(len(valid)), atol=1e-5, rtol=0)


@examples
@given(updates(), seeds)
def test_a_bank_does_not_depend_on_the_order_of_a_batch(
    case: tuple[torch.Tensor, list[torch.Tensor]], seed: int
) -> None:
    valid, batches = case
    banks = [Bank(valid, 4, view=0, generator=generator(seed)) for _ in range(2)]
    for number, ids in enumerate(batches):
        new, order = unit(seed + 1 + number, len(ids), 4), torch.randperm(len(ids), generator=generator(seed))
        banks[0].update(embedded(new, ids), momentum=0.5)
        banks[1].update(embedded(new[order], ids[order]), momentum=0.5)
    torch.testing.assert_close(banks[0].z, banks[1].z, atol=1e-6, rtol=0)


@examples
@given(st.integers(1, 9), st.lists(st.integers(0, 20), max_size=8), seeds)
def test_a_queue_is_a_deque(size: int, batches: list[int], seed: int) -> None:
    queue, plain, pushed = Queue(size, 3), collections.deque(maxlen=size), 0
    for number, rows in enumerate(batches):
        new = embedded(unit(seed + number, rows, 3), torch.arange(pushed, pushed + rows))
        queue.push(new)
        plain.extend(zip(new.z.tolist(), new.ids.tolist(), new.view.tolist(), new.start.tolist(), strict=True))
        pushed += rows
        held = queue.columns()
        entries = list(zip(held.z.tolist(), held.ids.tolist(), held.view.tolist(), held.start.tolist(), strict=True))
        oldest = int(queue.place) % size
        in_order = [entry for entry in entries[oldest:] + entries[:oldest] if entry[1] >= 0]
        assert in_order == list(plain)


# ---- agreement


@st.composite
def spaces(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Two banks of few distinct vectors whose inner products are exact, valid rows, and k: ties everywhere."""
    num, kinds = draw(st.integers(2, 60)), draw(st.integers(1, 12))
    seed = draw(seeds)
    codes = (torch.randint(0, 2, (2, kinds, 16), generator=generator(seed)) * 2 - 1) / 4  # 16 times +-1/4: unit length
    picks = torch.randint(0, kinds, (2, num), generator=generator(seed + 1))
    valid = torch.rand(num, generator=generator(seed + 2)) < draw(st.sampled_from([0.5, 0.9, 1.0]))
    valid[:2] = True
    return codes[0][picks[0]], codes[1][picks[1]], valid, draw(st.integers(1, min(int(valid.sum()) - 1, 5)))


@examples
@given(spaces(), st.sampled_from(RULES), st.sampled_from(["bfloat16", "float32", "float64"]))
def test_sets_are_those_of_the_definition_ties_to_the_smaller_id(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int], rule: str, first_type: str
) -> None:
    video, audio, valid, k = case
    with (
        mock.patch.object(tiles, "has_fast_bfloat16", return_value=first_type == "bfloat16"),
        mock.patch.object(tiles, "_has_true_float32", return_value=first_type != "float64"),
    ):
        sets = mine_agreement(video, audio, k=k, rule=rule, valid=valid)
    cosine = {"video": video @ video.T, "audio": audio @ audio.T}
    score = {"consensus": torch.minimum(*cosine.values()), "union": torch.maximum(*cosine.values())} | cosine
    for row in range(len(video)):
        others = [other for other in range(len(video)) if valid[other] and other != row]
        best = sorted(others, key=lambda other: (-float(score[rule][row, other]), other))[:k]
        expected = sorted(best) if valid[row] else [-1] * k
        assert sets.ids[row].tolist() == expected
        assert sets.score[row].tolist() == [float(score[rule][row, i]) if i >= 0 else 0.0 for i in expected]


# ---- methods


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, its set and a few batches, as small numbers."""

    cma: bool
    num: int  # N
    rows: int  # clips per step over all ranks
    num_negatives: int
    num_positives: int
    within: float
    rule: str
    silent_share: float
    sound_only_share: float  # of the clips that are not silent
    unusable_share: float
    unreadable: bool  # one file of each batch cannot be read
    seed: int

    def instances(self) -> Instances:
        shares = torch.rand(3, self.num, generator=generator(self.seed))
        valid, has_audio = shares[0] >= self.unusable_share, shares[1] >= self.silent_share
        has_video = (shares[2] >= self.sound_only_share) | ~has_audio
        enough = slice(self.num_positives + 3)  # for sets and negatives
        valid[enough] = True
        lone = "video" if self.silent_share == 1 else "audio" if self.sound_only_share == 1 else None
        if lone is None or not self.within or (self.cma and self.rule != lone):  # else nothing has both modalities
            has_audio[enough] = has_video[enough] = True
        return Instances(valid, has_audio, has_video)

    def method(self, *, seed: int | None = None) -> AVID:
        common = {"num_negatives": self.num_negatives, "within": self.within, "embedding_dim": 6, "hidden_dim": 8}
        options = AVIDOptions(**common)
        if self.cma:
            options = AVIDCMAOptions(
                **common,
                num_positives=self.num_positives,
                num_negatives_within=max(1, self.num_negatives // 2),
                positives_cross=0.5,
                mine_every=1,
                rule=self.rule,
            )
        return tiny_method(options, self.instances(), seed=self.seed if seed is None else seed)

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of a step's clips, drawn with duplicates from the valid ones, padded with id -1 where the
        rows do not come out even."""
        instances = self.instances()
        usable = instances.valid.nonzero().flatten()
        picks = torch.randint(0, len(usable), (self.rows,), generator=generator(1000 * self.seed + step))
        ids = usable[picks]
        ids[0] = -1 if self.unreadable else ids[0]
        size = -(-self.rows // world_size)
        ids = torch.cat([ids, torch.full((size * world_size - self.rows,), -1)])[rank * size :][:size]
        has = {name: getattr(instances, name)[ids.clamp(min=0)] & (ids >= 0) for name in ("has_audio", "has_video")}
        return vector_batch(ids, step=step, **has)

    def step(self, method: torch.nn.Module, number: int, **ranks: int) -> Step:
        return method(self.batch(number, **ranks), Progress(number, number, 10))


cases = st.builds(
    Case,
    cma=st.booleans(),
    num=st.integers(8, 24),
    rows=st.integers(1, 9),
    num_negatives=st.integers(1, 8),
    num_positives=st.integers(1, 4),
    within=st.sampled_from([0.0, 1.0]),
    rule=st.sampled_from(RULES),
    silent_share=st.sampled_from([0.0, 0.3, 1.0]),
    sound_only_share=st.sampled_from([0.0, 0.3, 1.0]),
    unusable_share=st.sampled_from([0.0, 0.3]),
    unreadable=st.booleans(),
    seed=seeds,
)


def same_state(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k].nan_to_num(7e7), two[k].nan_to_num(7e7)) for k in one)


def copied(method: AVID) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


@examples
@given(cases)
def test_the_loss_is_pure_of_unit_vectors_and_reaches_every_parameter(case: Case) -> None:
    method = case.method()
    for number in range(2):
        method.on_epoch(number)
        before = copied(method)
        first, second = case.step(method, number), case.step(method, number)
        assert torch.equal(first.loss, second.loss)
        assert same_state(copied(method), before)
        for embedded in first.embeddings.values():
            lengths = embedded.z.norm(dim=1)
            torch.testing.assert_close(lengths, torch.ones(case.rows), atol=1e-5, rtol=0)
        method.zero_grad()
        first.loss.backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        method.after_step(first, Progress(0, number, 10))


@examples
@given(cases)
def test_slots_are_rows_and_only_what_is_usable_and_named_moves_or_enters_a_set(case: Case) -> None:
    method, instances = case.method(), case.instances()
    usable = instances.usable
    in_sets = minable(**usable, rule=case.rule)
    for number in range(3):
        method.on_epoch(number)
        if case.cma:
            inside = method.sets[method.sets >= 0]
            assert in_sets[inside].all()
            assert not (method.sets == torch.arange(case.num)[:, None]).any()
            assert (method.sets[~in_sets] == -1).all()
            assert (method.sets[in_sets] >= 0).all()
        before = {view: bank.z.clone() for view, bank in method.banks.items()}
        method.after_step(case.step(method, number), Progress(0, number, 10))
        ids = case.batch(number).ids
        for view, bank in method.banks.items():
            assert len(bank.z) == case.num
            moved = set((bank.z != before[view]).any(dim=1).nonzero().flatten().tolist())
            assert moved == {row for row in ids.tolist() if row >= 0 and usable[view][row]}


@examples
@given(cases)
def test_no_row_meets_itself_or_its_positives_among_its_negatives(case: Case) -> None:
    method, seen = case.method(), []
    method.on_epoch(0)
    contrast = method.contrast
    with mock.patch.object(method, "contrast", lambda *given: seen.append(given[2:]) or contrast(*given)):
        case.step(method, 0)
    ids, negatives = seen[0]
    readable = ids >= 0
    own = torch.cat([ids[:, None], method.sets[ids]], dim=1) if case.cma else ids[:, None]
    for view, usable in case.instances().usable.items():
        assert not (negatives[view][:, :, None] == own[:, None, :]).any(dim=2)[readable].any()
        drawn = negatives[view][negatives[view] >= 0]
        assert usable[drawn].all()
        left = [usable.any() and set(usable.nonzero().flatten().tolist()) - set(row) for row in own.tolist()]
        assert [bool(some) for some in left] == (negatives[view] >= 0).all(dim=1).tolist()
        assert [bool(some) for some in left] == (negatives[view] >= 0).any(dim=1).tolist()


@examples
@given(cases, st.integers(0, 2))
def test_all_state_is_in_state_dict(case: Case, stop: int) -> None:
    """Stopped after any step and continued by another object with other weights: the same bits."""
    method, other = case.method(), case.method(seed=case.seed + 1)
    other.seed = method.seed
    for number in range(4):
        losses = []
        for each in (method, other) if number > stop else (method,):
            each.on_epoch(number)
            done = case.step(each, number)
            each.after_step(done, Progress(0, number, 10))
            losses.append(done.loss.item())
        assert len(set(losses)) == 1
        if number == stop:
            other.load_state_dict(method.state_dict())
    assert same_state(method.state_dict(), other.state_dict())


@examples
@given(cases)
def test_what_a_masked_row_holds_counts_nowhere(case: Case) -> None:
    method, batch = case.method(), case.batch(0)
    method.on_epoch(0)
    noise = torch.randn(batch.audio["audio"].shape, generator=generator(case.seed))
    heard = torch.where(batch.has_audio[:, None], batch.audio["audio"], noise)
    seen = torch.where(batch.has_video[:, None], batch.video["video"], noise)
    batches = (batch, dataclasses.replace(batch, audio={"audio": heard}, video={"video": seen}))
    steps = [method(each, Progress(0, 0, 10)) for each in batches]
    assert steps[0].loss == steps[1].loss
    states = []
    for step in steps:
        each = case.method()
        each.load_state_dict(method.state_dict())
        each.after_step(step, Progress(0, 0, 10))
        states.append(each.state_dict())
    assert same_state(*states)


def trained(case: Case) -> dict[str, torch.Tensor]:
    """Three steps on this rank's rows: what must not depend on the number of ranks."""
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    method = case.method()
    model = DistributedDataParallel(method, broadcast_buffers=False) if ranks["world_size"] > 1 else method
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    result = {}
    for number in range(3):
        method.on_epoch(number)
        done = case.step(model, number, **ranks)
        optimizer.zero_grad()
        done.loss.backward()
        result[f"loss {number}"] = distributed.all_reduce(done.loss.detach()) / ranks["world_size"]
        result |= {f"gradient {number} {name}": p.grad.clone() for name, p in method.named_parameters()}
        optimizer.step()
        method.after_step(done, Progress(0, number, 10))
    distributed.check_equal(dict(method.named_buffers()), "buffers")
    return result | method.state_dict()


def all_trained(given: list[Case]) -> list[dict[str, torch.Tensor]]:
    """All cases in one start of the processes."""
    return [trained(case) for case in given]


@pytest.mark.processes
def test_one_process_equals_three() -> None:
    """Two: tests/methods/test_ranks.py."""
    collected: list[Case] = []

    @few_examples
    @given(cases)
    def collect(case: Case) -> None:
        collected.append(case)

    collect()
    assert len(collected) == 20
    for cma, rule, silent, sound_only in (  # whole sets of one modality, and both kinds in one
        *((False, "video", 1.0, 0.0), (False, "audio", 0.0, 1.0), (False, "video", 0.3, 0.3)),
        *((True, "video", 1.0, 0.0), (True, "audio", 0.0, 1.0), (True, "union", 0.3, 0.3)),
    ):
        kind = {"cma": cma, "rule": rule, "silent_share": silent, "sound_only_share": sound_only}
        collected.append(dataclasses.replace(collected[-1], num=20, rows=7, within=1.0, unreadable=False, **kind))
    for case, three in zip(collected, on_ranks(3, all_trained, collected)[0], strict=True):
        one = trained(case)
        assert one.keys() == three.keys()
        for name, value in one.items():
            other, exact = three[name], not value.is_floating_point()
            assert torch.allclose(
                value.double(), other.double(), rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5, equal_nan=True
            ), f"{name} with 3 processes, {case}: {value} and {other}"


# ---- what a run reads and writes


@examples
@given(
    st.sets(st.integers(0, 30), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 12),
    seeds,
)
def test_batches_pass_over_all_videos_before_any_again_on_any_ranks_from_any_step(
    ids: set[int], clips_per_video: int, world_size: int, batch_size: int, seed: int
) -> None:
    batch_size = min(batch_size, len(ids) * clips_per_video)
    if batch_size < world_size:
        return
    common = {"clips_per_video": clips_per_video, "batch_size": batch_size, "num_epochs": 2, "seed": seed}
    known = np.array(sorted(ids))
    whole = list(TrainingBatches(known, **common))
    steps = len(whole) // 2
    for epoch in range(2):
        drawn = [key for batch in whole[epoch * steps :][:steps] for key in batch]
        assert {key.epoch for key in drawn} == {epoch}
        for place, key in enumerate(drawn):
            assert key.clip == place // len(ids)
        for first in range(0, len(drawn), len(ids)):
            turn = [key.id for key in drawn[first : first + len(ids)]]
            assert len(set(turn)) == len(turn)
            assert set(turn) <= ids
    ranks = [list(TrainingBatches(known, **common, rank=r, world_size=world_size)) for r in range(world_size)]
    dealt = [[key for part in parts for key in part if key.id != NO_CLIP] for parts in zip(*ranks, strict=True)]
    assert dealt == whole
    for parts in zip(*ranks, strict=True):
        assert {len(part) for part in parts} == {-(-batch_size // world_size)}
        assert all([key.id for key in part].count(NO_CLIP) <= 1 for part in parts)
    for first_step in range(len(whole) + 1):
        resumed = TrainingBatches(known, **common, first_step=first_step)
        assert list(resumed) == whole[first_step:]
        assert len(resumed) == len(whole) - first_step


CELLS = {
    pa.string(): st.sampled_from([None, "a", "b", "a b", "é"]),
    pa.float64(): st.sampled_from([None, 0.0, 0.5, 2.25]),
    pa.int64(): st.integers(0, 3),
    pa.int32(): st.integers(0, 3),
    pa.bool_(): st.booleans(),
}
table_rows = st.lists(
    st.fixed_dictionaries({field.name: CELLS[field.type] for field in SCHEMA}), min_size=2, max_size=5
)


def manifest_hash(rows: list[dict[str, object]]) -> str:
    return Manifest(pa.Table.from_pylist(rows, schema=SCHEMA), Path()).hash


@examples
@given(table_rows, table_rows)
def test_a_manifests_hash_is_that_of_which_instances_stand_in_which_order(
    rows: list[dict[str, object]], others: list[dict[str, object]]
) -> None:
    def identity(table: list[dict[str, object]]) -> list[tuple]:
        return [tuple(row[name] for name in IDENTITY) for row in table]

    for other in (others, rows[::-1], rows[1:], [*rows, rows[0]]):
        assert (manifest_hash(rows) == manifest_hash(other)) == (identity(rows) == identity(other))
    relabeled = [
        row | {name: value for name, value in donor.items() if name not in IDENTITY}
        for row, donor in zip(rows, [*others, *rows], strict=False)
    ]
    assert manifest_hash(relabeled) == manifest_hash(rows)


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for key, entry in value.items() for leaf in [key, *leaves(entry)]]
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("extra", [[], CMA, ["optim.name=sgd"]], ids=["avid", "avid_cma", "sgd"])
def test_checkpoints_hold_plain_data_only(clip_set: Manifest, tmp_path: Path, extra: list[str]) -> None:
    assert train(config(clip_set, tmp_path / "run", *extra, "optim.epochs=2"))
    found = {type(leaf) for leaf in leaves(load_checkpoint(tmp_path / "run"))}
    assert found <= {torch.Tensor, str, int, float, bool, type(None)}
