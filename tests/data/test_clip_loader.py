"""Batches for a loop of one's own are those that a run trains on."""

from pathlib import Path

import pytest
import torch

import avssl
from avssl.config import ConfigError
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import Manifest
from avssl.data.sampling import TrainingBatches
from avssl.transforms.views import View, apply_views
from tests.support.runs import config


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_a_run(clip_set: Manifest, tmp_path: Path, workers: int) -> None:
    data = config(clip_set, tmp_path, f"data.num_workers={workers}").data
    found = list(avssl.clip_loader(data, num_epochs=2, seed=3))
    views = [View("video"), View("audio", recipe="audio")]
    dataset = ClipDataset(clip_set, data, views, seed=3)
    rows = clip_set.usable("train").nonzero()[0]
    keys = list(TrainingBatches(rows, clips_per_video=2, batch_size=4, num_epochs=2, seed=3))
    assert len(found) == len(keys) == 12
    for batch, own in zip(found, keys, strict=True):
        expected = apply_views(collate([dataset[key] for key in own]), views, data)
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.video["video"], expected.video["video"])
        assert torch.equal(batch.audio["audio"], expected.audio["audio"])
    assert found[0].video["video"].shape == (4, 3, 2, 32, 32)
    assert {int(row) for batch in found[:6] for row in batch.ids} == set(rows.tolist())


def test_a_split_without_clips_is_named(clip_set: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.split=gone"):
        next(avssl.clip_loader(config(clip_set, tmp_path, "data.split=gone").data))
