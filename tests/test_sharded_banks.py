"""Banks in shards: together they are one bank, whoever saved it; each rank draws from its own rows."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed
from avssl.data.manifest import Manifest, read_manifest
from avssl.objectives.negatives import Bank
from avssl.structs import Embedded, SameRows
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.training.resume import whole_state
from avssl.training.setup import describe, set_up
from avssl.weights.load import load_run
from tests.support.contract import NUM, batch_of, build, progress
from tests.support.ranks import on_ranks
from tests.support.runs import CMA, config, equal_models

pytestmark = pytest.mark.processes
ROWS, DIM, RANKS = 50, 8, 3
VALID = torch.arange(ROWS) % 7 != 2
ASKED = torch.tensor([[[3, 49], [4, -1]], [[0, 2], [48, 48]], [[9, 5], [-1, 31]]])  # (ranks, B, P); 2 and 9 are invalid
NEW = torch.tensor([[3, 49, -1], [3, 0, 2], [31, 44, 3]])  # (ranks, B) ids whose vectors move
FROZEN = ("method.shard_bank=true", "method.bank_momentum=0.99999", "run.max_steps=1")  # banks hardly move
CASES = ("avid", "npid on both", "pirl", "neighbour as SeCo")


def make(sharded: bool) -> Bank:
    return Bank(VALID, DIM, view=1, generator=torch.Generator().manual_seed(0), sharded=sharded)


def embedded(ids: Tensor) -> Embedded:
    z = F.normalize(torch.randn(RANKS * 3, DIM, generator=torch.Generator().manual_seed(5)), dim=1)
    start = 3 * distributed.rank() if len(ids) == 3 else 0
    return Embedded(z[start : start + len(ids)], ids, torch.zeros_like(ids), torch.zeros(len(ids), dtype=torch.float64))


def in_shards() -> dict[str, Any]:
    rank, bank = distributed.rank(), make(sharded=True)
    bank.update(embedded(NEW[rank]), momentum=0.3)
    own = ASKED[rank]
    drawn = bank.draw(400, avoid=own, generator=torch.Generator().manual_seed(1))
    found, whole = bank.columns(own, drawn), bank.whole()
    fresh = make(sharded=True)
    fresh.load_state_dict({"z": make(sharded=False).z, "valid": VALID})
    given = {"z": torch.ones(4, DIM), "valid": torch.tensor([True, True, False, True])}
    there = torch.full((ROWS,), -1)
    there[:4] = torch.arange(4)
    of_rows = bank.of_rows(given, SameRows(there=there, here=torch.arange(4)))["z"]
    return {
        "columns": found,
        "drawn": drawn,
        "whole": whole,
        "of_all": bank.of_all(ASKED[0]),
        "loaded": torch.equal(fresh.z, make(sharded=True).z),
        "of_rows": of_rows,
        "nbytes": bank.z.nbytes,
    }


def test_shards_are_one_bank_of_which_each_rank_draws_its_own_rows() -> None:
    results, bank = on_ranks(RANKS, in_shards), make(sharded=False)
    bank.update(embedded(NEW.flatten()), momentum=0.3)
    assert not torch.equal(bank.z, make(sharded=False).z)
    assert torch.allclose(results[0]["whole"], bank.z, atol=1e-7)
    assert sum(result["nbytes"] for result in results) == bank.z.nbytes
    for rank, result in enumerate(results):
        expected = bank.columns(ASKED[rank], result["drawn"])
        known = expected.ids >= 0
        assert torch.equal(result["columns"].ids, expected.ids)
        assert torch.allclose(result["columns"].z[known], expected.z[known], atol=1e-7)
        assert torch.equal(result["columns"].view, expected.view)
        assert torch.allclose(result["of_all"], bank.of_all(ASKED[0]), atol=1e-7)
        assert result["loaded"]
        for row, own in zip(result["drawn"], ASKED[rank].tolist(), strict=True):
            allowed = {i for i in range(rank, ROWS, RANKS) if VALID[i] and i not in own}
            assert set(row.tolist()) == allowed  # 400 draws of at most 15
        taken = [i for i in (0, 1, 3) if i % RANKS == rank]
        assert (result["of_rows"][[i // RANKS for i in taken]] == 1).all()
        assert (result["of_rows"] == 1).all(dim=1).sum() == len(taken)


def first_steps() -> dict[str, dict[str, Tensor]]:
    """Losses and whole banks after a step of every method that has some, on this rank's rows, BatchNorm at rest."""
    found, rows = {}, NUM // distributed.world_size()
    for case in CASES:
        method = build(case, shard_bank=True).eval()
        method.on_epoch(0)
        own = torch.arange(NUM)[distributed.rank() * rows :][:rows]
        done = method(batch_of(method, 0, ids=own), progress(0))
        done.loss.backward()
        method.after_step(done, progress(0))
        banks = {name: value for name, value in whole_state(method).items() if name.endswith("z") and "bank" in name}
        found[case] = {"loss": done.loss.detach(), **banks}
    return found


def test_every_method_with_banks_learns_and_moves_them_as_one_process_does() -> None:
    (two, _), one = on_ranks(2, first_steps), first_steps()
    for case in CASES:
        assert two[case].keys() == one[case].keys()
        assert len(one[case]) > 1
        assert two[case].pop("loss").isfinite()
        one[case].pop("loss")
        for name, z in one[case].items():
            torch.testing.assert_close(two[case][name], z, rtol=1e-4, atol=1e-5, msg=f"{name} of {case}")


def trained(manifest: Path, folder: Path, *overrides: str) -> bool:
    return train(config(read_manifest(manifest), folder, *overrides))


@pytest.mark.slow
def test_a_run_in_shards_goes_on_bit_equal_and_in_any_layout(clip_set: Manifest, tmp_path: Path) -> None:
    manifest = clip_set.root / "manifest.parquet"
    sharded = [*CMA, "method.shard_bank=true", "method.mine_in_background=true", "method.bank_dtype=float16"]
    sharded += ["method.mine_every=0", "optim.epochs=3", "data.batch_size=6"]
    assert on_ranks(2, trained, manifest, tmp_path / "whole", *sharded) == [True, True]
    assert on_ranks(2, trained, manifest, tmp_path / "parts", *sharded, "run.max_steps=5") == [False, False]
    stopped = load_checkpoint(tmp_path / "parts")["model"]
    assert len(stopped["banks.video.z"]) == len(clip_set)
    assert torch.equal(load_run(tmp_path / "parts").method.banks["video"].z, stopped["banks.video.z"])  # one process
    shutil.copytree(tmp_path / "parts", tmp_path / "of_three")
    assert on_ranks(2, trained, manifest, tmp_path / "parts", *sharded) == [True, True]
    assert equal_models(tmp_path / "whole", tmp_path / "parts")
    assert all(on_ranks(3, trained, manifest, tmp_path / "of_three", *sharded))
    assert load_checkpoint(tmp_path / "of_three")["step"] == load_checkpoint(tmp_path / "whole")["step"]
    assert (load_checkpoint(tmp_path / "of_three")["model"]["sets"] >= 0).any()
    assert not train(config(clip_set, tmp_path / "of_one", "run.max_steps=1"))
    on_ranks(2, trained, manifest, tmp_path / "from_one", f"model.init={tmp_path / 'of_one'}", *FROZEN)
    banks = [load_checkpoint(tmp_path / name)["model"]["banks.audio.z"] for name in ("of_one", "from_one")]
    rows = torch.from_numpy(clip_set.valid("train") & clip_set.has_audio)
    torch.testing.assert_close(banks[0][rows], banks[1][rows], rtol=0, atol=1e-4)


def test_what_cannot_be_divided_or_mined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build("avid_cma", shard_bank=True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"set method\.mine_in_background=true"):
        build("avid_cma", shard_bank=True)
    monkeypatch.setattr(distributed, "world_size", lambda: NUM + 1)
    with pytest.raises(ValueError, match=f"{NUM} rows cannot be divided among {NUM + 1} processes: use fewer"):
        build("npid", shard_bank=True)


def test_where_negatives_come_from_is_said(clip_set: Manifest, tmp_path: Path) -> None:
    run = set_up(config(clip_set, tmp_path))
    said = "note: each process draws negatives from its own 1/2 of the clips (method.shard_bank)"
    assert said not in describe(run)
    for bank in run.method.banks.values():
        bank.num_shards = 2
    assert said in describe(run)
