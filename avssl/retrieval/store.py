"""Embeddings on disk: a folder of shards that can be written in pieces, by several processes, and continued after a
stop.

    embeddings/
      meta.json                  run, hash of its weights, manifest and its hash, what was extracted
      shard-00000.video.npy      (rows, D) float16, zeros where a clip has no picture
      shard-00000.audio.npy      (rows, D) float16, zeros where a clip has no sound
      shard-00000.parquet        id, path, label, has_audio, has_video per row, and the clips that could not be read
                                 with the reason

A shard counts as written when its parquet file is there: it is renamed into place last.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avssl import distributed
from avssl.data.dataset import check_decoder
from avssl.data.manifest import Manifest
from avssl.evaluate.features import MODALITIES, extract
from avssl.files import whole_file
from avssl.media.decoders import in_words
from avssl.pretrained import Pretrained

SHARD_ROWS = 1024


class StoreError(ValueError):
    """A folder of embeddings that cannot be used: the message names it and the way out."""


@dataclass(frozen=True)
class Meta:
    """Where the vectors of a folder come from; a folder is continued only by the same."""

    run: str
    weights_hash: str
    manifest: str
    manifest_hash: str
    root: str
    kind: Literal["embedding", "features"]
    num_clips: int
    split: str | None
    num_rows: int
    decoder: str = ""  # with its versions; "" in folders from before it was written down
    towers: Sequence[str] = MODALITIES  # that the run has; the other side is zeros


@dataclass(frozen=True)
class Store:
    """All vectors of a folder in memory.

    Letters: n rows, D dimensions.
    """

    meta: Meta
    ids: np.ndarray  # (n,) int64 rows of the manifest
    paths: list[str]  # relative to meta.root
    labels: list[str | None]
    has_audio: np.ndarray  # (n,) bool
    has_video: np.ndarray  # (n,) bool
    vectors: dict[str, np.ndarray]  # {video, audio: (n, D) float32}
    errors: dict[str, str]  # {path: reason} of the clips that could not be read


def write_store(
    folder: Path,
    run: Pretrained,
    manifest: Manifest,
    *,
    manifest_path: Path,
    kind: Literal["embedding", "features"] = "embedding",
    split: str | None = None,
    num_clips: int = 3,
) -> Store | None:
    """Extract every usable row of a manifest that the folder does not hold yet; with torchrun each rank writes its
    own shards.

    Args:
        kind: embedding = outputs of the heads, unit length; features = outputs of the trunks.
        split: rows of one split only; None = all.
        num_clips: clips averaged per video.

    Returns:
        The whole store on rank 0; None elsewhere.

    Raises:
        StoreError: the folder holds embeddings of other weights, clips or settings, or the weights have no heads.
    """
    if kind == "embedding" and not run.heads:
        raise StoreError(
            f"the weights in {run.path.parent} have no heads, whose outputs embeddings are: ask --features"
        )
    ids = np.flatnonzero(manifest.usable(split))
    if len(ids) == 0:
        raise StoreError(
            f"{manifest_path} has no usable clip with split {split}: look at its columns split, status and reason"
        )
    meta = Meta(
        run=str(run.path.parent),
        weights_hash=run.weights_hash,
        manifest=str(manifest_path),
        manifest_hash=manifest.hash,
        root=str(manifest.root),
        kind=kind,
        num_clips=num_clips,
        split=split,
        num_rows=len(ids),
        decoder=in_words(check_decoder(run.data)),
        towers=list(run.encoders),
    )
    _claim(folder, meta)
    pieces = [ids[first : first + SHARD_ROWS] for first in range(0, len(ids), SHARD_ROWS)]
    for number, piece in enumerate(pieces):
        if number % distributed.world_size() == distributed.rank() and not _shard(folder, number, "parquet").exists():
            _write_shard(folder, number, run, manifest, piece, meta, words=f"extract {number + 1}/{len(pieces)}")
    distributed.barrier()
    return read_store(folder) if distributed.is_main() else None


def read_store(folder: Path) -> Store:
    """Read a folder of embeddings.

    Raises:
        StoreError: it is not one, it is not complete, or an earlier version of the package wrote it.
    """
    if not (folder / "meta.json").exists():
        raise StoreError(f"{folder} holds no embeddings (no meta.json): make them with tools/extract.py")
    meta = Meta(**json.loads((folder / "meta.json").read_text()))
    numbers = range(-(-meta.num_rows // SHARD_ROWS))
    missing = [number for number in numbers if not _shard(folder, number, "parquet").exists()]
    if missing:
        raise StoreError(
            f"{folder} is not complete: {len(missing)} of {len(numbers)} shards are missing; run tools/extract.py again"
        )
    tables = [pq.read_table(_shard(folder, number, "parquet")) for number in numbers]
    if not all("has_video" in table.column_names for table in tables):
        raise StoreError(
            f"{folder} was written by an earlier version, which did not note which clips have a picture: delete that "
            "folder and run tools/extract.py again"
        )
    rows = pa.concat_tables(tables).to_pylist()
    good = [row for row in rows if row["error"] is None]
    return Store(
        meta=meta,
        ids=np.array([row["id"] for row in good], dtype=np.int64),
        paths=[row["path"] for row in good],
        labels=[row["label"] for row in good],
        has_audio=np.array([row["has_audio"] for row in good], dtype=bool),
        has_video=np.array([row["has_video"] for row in good], dtype=bool),
        vectors={
            modality: np.concatenate([np.load(_shard(folder, number, f"{modality}.npy")) for number in numbers]).astype(
                np.float32
            )
            for modality in MODALITIES
        },
        errors={row["path"]: row["error"] for row in rows if row["error"] is not None},
    )


def _claim(folder: Path, meta: Meta) -> None:
    """Write meta.json, or check that the folder belongs to the same run, clips and settings."""
    path = folder / "meta.json"
    if path.exists():
        before = Meta(**json.loads(path.read_text()))
        same = ("weights_hash", "manifest_hash", "kind", "num_clips", "split", "num_rows")
        for name in same:
            if getattr(before, name) != getattr(meta, name):
                raise StoreError(
                    f"{folder} holds embeddings with {name}={getattr(before, name)}, now {getattr(meta, name)}: "
                    f"give another --out, "
                    "or delete that folder"
                )
    elif distributed.is_main():
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(meta), indent=1) + "\n")
    distributed.barrier()


def _write_shard(
    folder: Path, number: int, run: Pretrained, manifest: Manifest, ids: np.ndarray, meta: Meta, *, words: str
) -> None:
    found = extract(run, manifest, ids, num_clips=meta.num_clips, progress=words)
    if number == 0 and not len(found.ids):  # written down, it would be taken for done when the clips are back
        raise StoreError(
            f"none of the first {len(ids)} clips could be read (first: {next(iter(found.errors.values()))}): is "
            f"{manifest.root} the folder of the clips? name the right one with --root"
        )
    vectors = found.embedding if meta.kind == "embedding" else found.features
    for modality in MODALITIES:
        array = io.BytesIO()  # on a full disk np.save itself would say how many bytes it wrote, and not why
        np.save(array, vectors[modality].astype(np.float16))
        with whole_file(_shard(folder, number, f"{modality}.npy")) as temporary:
            temporary.write_bytes(array.getbuffer())
    paths, labels = manifest.column("path"), manifest.column("label")
    rows = [*found.ids.tolist(), *found.errors]  # the read ones first, in the order of the vectors
    without = [False] * len(found.errors)
    table = pa.table(
        {
            "id": pa.array(rows, pa.int64()),
            "path": pa.array([str(paths[row]) for row in rows], pa.string()),
            "label": pa.array([None if labels[row] is None else str(labels[row]) for row in rows], pa.string()),
            "has_audio": pa.array([*found.has_audio.tolist(), *without], pa.bool_()),
            "has_video": pa.array([*found.has_video.tolist(), *without], pa.bool_()),
            "error": pa.array([found.errors.get(row) for row in rows], pa.string()),
        }
    )
    with whole_file(_shard(folder, number, "parquet")) as temporary:
        pq.write_table(table, temporary)


def _shard(folder: Path, number: int, ending: str) -> Path:
    return folder / f"shard-{number:05d}.{ending}"
