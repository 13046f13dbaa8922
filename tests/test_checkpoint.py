"""Checkpoints are written whole or not at all, hold plain data only, and belong to a manifest."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avssl.config import dumps, from_dict
from avssl.methods import build_method
from avssl.methods.avid import AVIDOptions
from avssl.methods.avid_cma import AVIDCMAOptions
from avssl.methods.base import Method
from avssl.structs import Embedded, Instances, SameRows
from avssl.training.checkpoint import (
    CheckpointError,
    check_manifest,
    export_encoders,
    load_checkpoint,
    load_initial,
    load_model,
    save_checkpoint,
)
from tests.support.tiny import everything, tiny_method

STATE = {
    "config": "run: {}",
    "manifest_hash": "a" * 64,
    "rows": torch.arange(3),
    "instances": {"valid": torch.ones(3, dtype=torch.bool)},
    "decoder": {"name": "pyav", "version": "1", "ffmpeg": "1"},
    "model": {"x": torch.arange(3)},
    "step": 7,
}
OPTIONS = {"embedding_dim": 8, "hidden_dim": 16, "num_negatives": 12}


def test_round_trip_without_running_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", STATE)
    loaded = load_checkpoint(tmp_path)
    assert loaded["step"] == 7
    assert torch.equal(loaded["model"]["x"], torch.arange(3))
    torch.load(tmp_path / "last.pt", weights_only=True)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "last.pt", STATE)

    def crash(state: object, file: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "last.pt", {**STATE, "step": 8})
    assert load_checkpoint(tmp_path)["step"] == 7


def test_missing_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt does not exist: give the folder of a run"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "last.pt", STATE)
    whole = (tmp_path / "last.pt").read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "last.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"last\.pt cannot be used, it is damaged or cut short: put a whole"):
            load_checkpoint(tmp_path)
    large = {**STATE, "model": {"weight": torch.ones(100_000)}}
    save_checkpoint(tmp_path / "last.pt", large)
    content = bytearray((tmp_path / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of the weights
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be used, it is damaged"):
        load_checkpoint(tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of avssl"):
        load_checkpoint(tmp_path / "other.pt")


class _Code:
    def __reduce__(self) -> tuple:
        return open, ("executed", "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "config": _Code()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="holds more than plain data") as error:
        load_checkpoint(tmp_path)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "other, message",
    [
        (
            {},
            r"is of format 1, which avssl 0\.1\.0 reads; this is avssl .* with format 3: use that version",
        ),
        ({"format": 4, "avssl": "0.9.1"}, r"is of format 4, which avssl 0\.9\.1 reads"),
    ],
)
def test_another_format_is_refused_by_the_version_that_reads_it(tmp_path: Path, other: dict, message: str) -> None:
    torch.save({**STATE, **other}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert load_checkpoint(tmp_path)["format"] == 3


def test_weights_of_another_version_are_refused() -> None:
    avid = tiny_method(AVIDOptions(**OPTIONS), everything(20))
    state = {"model": {name: value for name, value in avid.state_dict().items() if name != "log_z"}}
    with pytest.raises(CheckpointError, match=r"runs/avid does not fit this version .*log_z.*or start a new run"):
        load_model(avid, state, path="runs/avid")


def test_another_manifest_is_refused() -> None:
    def manifest(hash: str, num: int) -> Any:
        return SimpleNamespace(hash=hash, keys=np.arange(num))

    check_manifest(STATE, manifest("a" * 64, 9), path="run", read_from="m")
    check_manifest(STATE, manifest("b" * 64, 3), path="run", read_from="m")  # training copies
    with pytest.raises(CheckpointError, match=r"belongs to another manifest than m .*\(model\.init\)"):
        check_manifest(STATE, manifest("b" * 64, 4), path="run", read_from="m")


def test_a_method_starts_from_any_run_and_nothing_is_lost_silently() -> None:
    avid = tiny_method(AVIDOptions(**OPTIONS), everything(20))
    avid.log_z.fill_(1.5)
    cma = tiny_method(AVIDCMAOptions(**OPTIONS, num_positives=3), everything(20), seed=9)
    assert load_initial(cma, {"model": avid.state_dict()}, path="runs/avid") == []
    for name, value in avid.state_dict().items():
        assert torch.equal(cma.state_dict()[name], value)
    assert load_initial(avid, {"model": cma.state_dict()}, path="runs/cma") == ["sets", "set_scores"]
    small = tiny_method(AVIDOptions(**{**OPTIONS, "embedding_dim": 4}), everything(20))
    with pytest.raises(CheckpointError, match=r"is \(20, 8\), here \(20, 4\): .*encoders alone"):
        load_initial(small, {"model": avid.state_dict()}, path="runs/avid")
    deeper = avid.state_dict() | {"heads.video.9.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"heads\.video\.9\.weight is \(3,\), here missing"):
        load_initial(avid, {"model": deeper}, path="runs/avid")
    other, given = start_of(FOLLOWED | {"name": "neighbour"}, seed=1)
    alone, _ = start_of(HEAD | {"name": "avid"}, seed=2)
    assert load_initial(alone, given, path="runs/neighbour") == ["target"]
    assert same(alone.encoders["video"], other.encoders["video"])
    assert same(alone.heads["video"], other.heads["video"])


def test_a_larger_set_keeps_what_is_known_of_the_same_rows() -> None:
    """Rows 3 and 1 of the first run are rows 0 and 4 here, the others are new, and its row 0 is gone."""
    first = tiny_method(AVIDCMAOptions(**OPTIONS, num_positives=2), everything(4))
    first.sets[:] = torch.tensor([[1, 2], [3, 0], [0, 1], [1, 2]])
    first.set_scores[:] = torch.arange(8.0).view(4, 2)
    second = tiny_method(AVIDCMAOptions(**OPTIONS, num_positives=2), everything(6), seed=9)
    fresh = second.banks["video"].z.clone()
    keys = torch.tensor([40, -7, 8, 9, 20, -9]), torch.tensor([10, 20, 30, 40])
    rows = SameRows.of_keys(*keys, valid=second.instances.valid)
    assert load_initial(second, {"model": first.state_dict()}, path="runs/first", rows=rows) == []
    bank = second.banks["video"].z
    assert torch.equal(bank[[0, 4]], first.banks["video"].z[[3, 1]])
    assert torch.equal(bank[[1, 2, 3, 5]], fresh[[1, 2, 3, 5]])
    assert second.sets.tolist() == [[4, -1], [-1, -1], [-1, -1], [-1, -1], [0, -1], [-1, -1]]
    assert second.set_scores[[0, 4]].tolist() == [[6, 7], [2, 3]]


HEAD = {"hidden_dim": 16, "embedding_dim": 8}
FOLLOWED = HEAD | {"momentum": 0.999}
PATCH = HEAD | {"tracks": "tracks.parquet"}


def start_of(method: dict, *, seed: int, instances: Instances | None = None) -> tuple[Method, dict]:
    """A method before its first step, and its checkpoint."""
    model = {"video_depth": 10, "video_width": 0.0625, "audio_width": 0.0625}
    sections = {"data": {"manifest": "m"}, "run": {"dir": "r", "seed": seed}}
    config = from_dict({**sections, "model": model, "method": method}, source="test")
    built = build_method(config, instances or everything(20))
    return built, {"config": dumps(config), "model": built.state_dict()}


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("name", ["avid", "neighbour"])
def test_a_momentum_copy_starts_equal_to_the_weights_that_were_taken_over(name: str) -> None:
    _, given = start_of(HEAD | {"name": name}, seed=1)
    parts = {name: HEAD, "other": FOLLOWED | {"name": "neighbour"}}
    joint, _ = start_of({"name": "joint", "parts": parts}, seed=2)
    load_initial(joint, given, path="runs/first")
    assert same(joint.parts["other"].target["video"], joint.encoders["video"])
    assert same(joint.parts["other"].target["head video"], joint.parts["other"].heads["video"])


def test_a_momentum_copy_is_taken_over_where_there_is_one() -> None:
    first, given = start_of(FOLLOWED | {"name": "neighbour"}, seed=1)
    with torch.no_grad():
        next(first.target.parameters()).add_(1)
    second, _ = start_of(FOLLOWED | {"name": "neighbour"}, seed=2)
    load_initial(second, given, path="runs/first")
    assert same(first.target, second.target)
    assert not same(second.target["video"], second.encoders["video"])


def test_a_joint_run_starts_from_the_part_of_the_same_method() -> None:
    patch, given = start_of(PATCH | {"name": "patch"}, seed=1)
    parts = {"avid": HEAD, "neighbour": HEAD, "patch": PATCH}
    joint, _ = start_of({"name": "joint", "parts": parts}, seed=2)
    load_initial(joint, given, path="runs/patch")
    taken = {name: same(part.heads["video"], patch.heads["video"]) for name, part in joint.parts.items()}
    assert taken == {"avid": False, "neighbour": False, "patch": True}


def test_encoders_are_exported_by_modality(tmp_path: Path) -> None:
    method = tiny_method(AVIDOptions(**OPTIONS), everything(20))
    export_encoders(tmp_path / "encoders.safetensors", method)
    assert sorted(load_file(tmp_path / "encoders.safetensors")) == [
        "audio.bias",
        "audio.weight",
        "video.bias",
        "video.weight",
    ]


def of_rows(valid: torch.Tensor) -> Instances:
    every = torch.ones_like(valid)
    return Instances(valid, every, every)


def test_another_split_takes_over_what_both_hold() -> None:
    """Validity is that of the new run: its own rows keep fresh vectors, others are in no bank, set or queue."""
    rows = torch.arange(20)
    first = tiny_method(AVIDCMAOptions(**OPTIONS, num_positives=3), of_rows(rows < 12))
    first.sets[:12] = torch.tensor([1, 2, 9])
    second = tiny_method(AVIDCMAOptions(**OPTIONS, num_positives=3), of_rows(rows >= 5), seed=9)
    fresh = {modality: bank.z.clone() for modality, bank in second.banks.items()}
    load_initial(second, {"model": first.state_dict()}, path="runs/first")
    for modality, bank in second.banks.items():
        assert torch.equal(bank.valid, rows >= 5)
        assert torch.equal(bank.valid_ids, rows[5:])
        assert torch.equal(bank.z[5:12], first.banks[modality].z[5:12])
        assert torch.equal(bank.z[12:], fresh[modality][12:])
    assert second.sets[5:12].sort().values.tolist() == [[-1, -1, 9]] * 7
    assert (second.sets[:5] == -1).all()
    assert (second.sets[12:] == -1).all()


def test_a_queue_of_another_split_loses_the_rows_of_that_split() -> None:
    queued = HEAD | {"name": "neighbour", "negatives": ["queue"], "queue_size": 4}
    first, given = start_of(queued, seed=1)
    first.queue.push(Embedded(torch.eye(8)[:3], torch.tensor([1, 7, 3]), torch.zeros(3).long(), torch.zeros(3)))
    second, _ = start_of(queued, seed=2, instances=of_rows(torch.arange(20) >= 5))
    load_initial(second, given | {"model": first.state_dict()}, path="runs/first")
    assert second.queue.columns().ids.tolist() == [-1, 7, -1, -1]
