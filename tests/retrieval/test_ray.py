"""Extraction on Ray: the bytes of one process, and a machine that dies is made up for."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from avssl.data.manifest import Manifest
from avssl.retrieval.on_ray import write_on_ray
from avssl.retrieval.store import StoreError
from avssl.retrieval.write import write_store
from avssl.training.loop import train
from avssl.weights.load import load, with_data
from tests.support.runs import config

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.processes]


def test_the_bytes_are_those_of_one_process(
    clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avssl.retrieval.store.SHARD_ROWS", 5)
    assert train(config(clip_set, tmp_path / "run", "optim.epochs=1"))
    run = with_data(load(tmp_path / "run"), num_workers=0)
    for engine in ("processes", "ray"):
        store = write_store(
            tmp_path / engine,
            run,
            clip_set,
            manifest_path=clip_set.root / "manifest.parquet",
            num_clips=1,
            engine=engine,
        )
        assert len(store) == 18
    files = sorted(path.name for path in (tmp_path / "ray").iterdir() if not path.name.startswith("."))
    assert len(files) == 4 * 3 + 1
    assert all((tmp_path / "ray" / name).read_bytes() == (tmp_path / "processes" / name).read_bytes() for name in files)
    with pytest.raises(StoreError, match="no machine of the Ray cluster has 1000 CPUs and 0 GPUs"):
        write_on_ray(print, {0: np.arange(2)}, num_cpus=1000, num_gpus=0)


def write_slowly(number: int, rows: np.ndarray, folder: Path) -> None:
    (folder / f"begun{number}").touch()
    while not (folder / "killed").exists():
        time.sleep(0.1)
    (folder / f"shard{number}").write_text(str(rows.tolist()))


def test_a_machine_that_dies_is_replaced(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.connect()
        pieces = {number: np.arange(number, number + 2) for number in range(3)}
        needs = {"num_cpus": 1, "num_gpus": 0}
        work = threading.Thread(target=write_on_ray, args=(write_slowly, pieces, tmp_path), kwargs=needs)
        work.start()
        since = time.monotonic()
        while not list(tmp_path.glob("begun*")) and time.monotonic() - since < 60:
            time.sleep(0.1)
        assert list(tmp_path.glob("begun*"))
        cluster.remove_node(doomed, allow_graceful=False)
        (tmp_path / "killed").touch()
        cluster.add_node(num_cpus=1)
        work.join(timeout=120)
        assert not work.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    found = {path.name: path.read_text() for path in tmp_path.glob("shard*")}
    assert found == {f"shard{number}": str([number, number + 1]) for number in range(3)}
