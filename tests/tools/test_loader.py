"""The loader benchmark: what it compares is the same work, and its metrics are consistent."""

import json
from pathlib import Path

import loader
import numpy as np
import pyarrow as pa
import pytest
from loader import (
    benchmark_loader,
    make_clips,
    make_copies,
    measure_memory,
    read_plainly,
)

from avssl.config import DataConfig
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.pack import pack
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from tests.support.clips import make_set
from tests.support.runs import Call

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "benchmarks" / "loader.py"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "clips"
    make_set(folder, num_train=6, num_test=2)
    return folder / "manifest.parquet"


@pytest.fixture
def data() -> DataConfig:
    return DataConfig(manifest="", num_frames=4, fps=8, size=32, audio_seconds=0.5, sample_rate=8000)


def test_plain_reading_gives_the_same_frames_and_audio(manifest: Path, data: DataConfig) -> None:
    path = read_manifest(manifest).path(0)
    plain_frames, audio = read_plainly(path, 0.33, 0.2, data)
    (frames,), (samples,) = read_clip(path, video=[VideoWindow(0.33, 0.5, 8)], audio=[AudioWindow(0.2, 0.5, 8000)])
    np.testing.assert_array_equal(np.stack(plain_frames), frames.data)
    assert audio.shape[1] >= len(samples.data)


def test_metrics_are_consistent(
    manifest: Path, tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "WORKER_SECONDS", 0.05)
    copies = {"prepared": read_manifest(make_copies(manifest))}
    pack(copies["prepared"], tmp_path, clips_per_shard=3)
    copies["shards"] = read_manifest(tmp_path / "manifest.parquet")
    result = benchmark_loader(read_manifest(manifest), copies, data=data, num_clips=16, num_rounds=1)
    assert result["clips"] == 6  # of 8 rows two have no audio
    for name in ("raw", "prepared", "shards"):
        stages = result["stages"][name]
        assert set(stages) == set(loader.STAGES)
        assert all(stages[stage] > 0 for stage in ("open", "decode", "sound"))  # the wrapped functions are called
        assert result["workers"][name].keys() == {"1", "2", "scaling"}
    json.dumps(result)


def test_memory_of_a_worker(manifest: Path, data: DataConfig) -> None:
    result = measure_memory(read_manifest(manifest), data=data, num_clips=160)
    assert result["clips"] == 160
    assert 20 < result["megabytes_start"] < 4000


def test_manifests_that_do_not_belong_together(manifest: Path, data: DataConfig) -> None:
    raw = read_manifest(manifest)
    with pytest.raises(ValueError, match=r"the manifest of prepared has 3 rows, the raw one 8: prepare it again"):
        benchmark_loader(raw, {"prepared": Manifest(raw.table.slice(0, 3), raw.root)}, data=data)
    silent = Manifest(raw.table.filter(pa.array(~raw.has_audio)), raw.root)
    with pytest.raises(ValueError, match="no clip of the manifest has video and audio"):
        benchmark_loader(silent, {}, data=data)


def test_made_clips_are_like_kinetics(tmp_path: Path) -> None:
    make_clips(tmp_path / "raw" / "manifest.parquet", num_clips=1)
    made = read_manifest(tmp_path / "raw" / "manifest.parquet")
    assert [made.column(name)[0] for name in ("width", "height", "fps", "has_audio")] == [340, 256, 30, True]
    assert made.column("duration")[0] == pytest.approx(10, abs=0.05)
    make_clips(tmp_path / "raw" / "manifest.parquet", num_clips=5)  # is there already
    assert len(read_manifest(tmp_path / "raw" / "manifest.parquet")) == 1


def test_command(manifest: Path, call: Call) -> None:
    small = ["data.num_frames=2", "data.fps=5", "data.audio_seconds=0.5", "data.sample_rate=8000", "data.size=32"]
    assert json.loads(call(TOOL, manifest, *small, "--soak", 16, "--json").out)["clips"] == 16
    call(TOOL, "nowhere.parquet").refused("manifest nowhere.parquet does not exist")
