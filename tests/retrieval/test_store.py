"""Embeddings on disk, read by mapping: what comes out is what was written."""

import json
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from avssl.retrieval.store import StoreError, read_store
from tests.support.stores import random_vectors, write


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avssl.retrieval.store.SHARD_ROWS", 7)


@pytest.mark.parametrize("num", [1, 7, 8, 30])
def test_vectors_come_out_scaled_to_unit_length_in_the_order_asked_for(tmp_path: Path, num: int) -> None:
    vectors = random_vectors(num, 5)
    has = {"video": np.arange(num) % 3 != 1, "audio": np.ones(num, dtype=bool)}
    store = write(tmp_path, vectors, has=has)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(num), 2))
    for modality, values in vectors.items():
        stored = np.where(has[modality][:, None], values, 0).astype(np.float16).astype(np.float32)
        unit = stored / np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-12)
        assert np.allclose(store.vectors[modality].take(rows), unit[rows], atol=1e-6)
        queries = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
        assert np.allclose(store.vectors[modality].cosines(queries), queries.numpy() @ unit.T, atol=1e-6)
    assert (len(store), store.vectors["video"].shape) == (num, (num, 5))


def test_what_is_known_of_a_clip(tmp_path: Path) -> None:
    labels = ["b", None, "a", "b"] * 3
    store = write(
        tmp_path,
        random_vectors(12, 4),
        ids=[3 * i for i in range(12)],
        labels=labels,
        parts=[(None, None), (1.0, 2.5)] * 6,
    )
    assert [store.row(id) for id in (0, 33, 1, 34, 10**18)] == [0, 11, None, None, None]
    names, places = store.labels
    assert names == ["a", "b"]
    assert [names[place] if place >= 0 else None for place in places] == labels
    assert (store.path(4), store.label(5), store.part(4), store.part(5)) == (
        "clips/12.mp4",
        None,
        (None, None),
        (1.0, 2.5),
    )


def test_many_shards_need_no_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may open about a thousand files; a million clips are as many shards, twice."""
    store = write(tmp_path, random_vectors(7 * 80, 4))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        again = read_store(tmp_path)
        assert torch.equal(again.vectors["audio"].take(np.arange(560)), store.vectors["audio"].take(np.arange(560)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_damaged_folders_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, random_vectors(20, 4))
    with pytest.raises(StoreError, match="holds no embeddings"):
        read_store(tmp_path / "elsewhere")
    whole = (tmp_path / "shard-00001.audio.npy").read_bytes()
    for broken in (whole[:-2], whole + b"x", b"", b"no array", whole[:40]):
        (tmp_path / "shard-00001.audio.npy").write_bytes(broken)
        with pytest.raises(StoreError, match=r"is damaged .*delete that folder and run avssl embed again"):
            read_store(tmp_path)
    kept = np.load(tmp_path / "shard-00000.audio.npy")
    infinite, unknown = kept.copy(), kept.copy()
    infinite[2, 1], unknown[3, 0] = -np.inf, np.nan
    for array, why in (
        (kept[:6], "vectors and clips differ in number"),
        (kept[:, :3], "differ in the length of their vectors"),
        (np.asfortranarray(kept), r"audio\.npy has \d+ bytes, of float16 \(7, 4\) by columns"),
        (kept.astype(">f2"), r"audio\.npy has \d+ bytes, of >f2"),
        (infinite, r"shard-00001\.audio\.npy holds NaN or infinity"),
        (unknown, r"shard-00001\.audio\.npy holds NaN or infinity"),
    ):
        np.save(tmp_path / "shard-00001.audio.npy", array)
        with pytest.raises(StoreError, match=f"is damaged .*{why}"):
            read_store(tmp_path)
    (tmp_path / "shard-00001.audio.npy").write_bytes(whole)
    for number in range(3):
        pq.write_table(
            pq.read_table(tmp_path / f"shard-{number:05d}.parquet").drop_columns("start"),
            tmp_path / f"shard-{number:05d}.parquet",
        )
    with pytest.raises(StoreError, match="written by an earlier version"):
        read_store(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    for broken in (
        json.dumps(meta)[:-5],
        json.dumps(meta | {"of_a_later_version": 1}),
        "[]",
        "[" * 100_000,
        *(
            json.dumps(meta | {name: value})
            for name, value in (
                ("num_rows", "20"),
                ("num_rows", -1),
                ("root", None),
                ("kind", "x"),
                ("modalities", ["x"]),
            )
        ),
    ):
        (tmp_path / "meta.json").write_text(broken)
        with pytest.raises(StoreError, match=r"is damaged \(meta\.json"):
            read_store(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"num_rows": 100}))
    with pytest.raises(StoreError, match=r"12 of 15 shards are missing"):
        read_store(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"num_rows": 10**12}))
    with pytest.raises(StoreError, match=r"142857142855 of 142857142858 shards are missing"):
        read_store(tmp_path)


@pytest.mark.parametrize(
    "ids, name, values, match",
    [
        ([0, 1, 1, 3], None, None, "ids repeat, or do not rise"),
        ([0, 2, 1, 3], None, None, "ids repeat, or do not rise"),
        ([-1, 0, 1, 2], None, None, "ids repeat, or do not rise"),
        (None, "path", pa.array(["a", None, "b", "c"]), "a clip has no path"),
        (None, "path", pa.array([b"\xff", b"a", b"b", b"c"]), "damaged"),
        (None, "id", pa.array(["a", "b", "c", "d"]), "damaged"),
        (None, "has_audio", pa.array([True, None, True, True]), "nothing is known of its audio"),
    ],
)
def test_odd_rows_are_refused(
    tmp_path: Path, ids: list[int] | None, name: str | None, values: pa.Array | None, match: str
) -> None:
    write(tmp_path / "good", random_vectors(4, 4))
    if ids is not None:
        with pytest.raises(StoreError, match=match):
            write(tmp_path / "odd", random_vectors(4, 4), ids=ids)
        return
    file = tmp_path / "good" / "shard-00000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), file)
    with pytest.raises(StoreError, match=match):
        read_store(tmp_path / "good")
