"""Extract embeddings of every clip of a manifest into a folder."""

import io
import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avssl import distributed
from avssl.data.dataset import check_decoder
from avssl.data.manifest import Manifest
from avssl.files import atomic_write, folder_lock
from avssl.media.decoders import format_decoder
from avssl.retrieval import store
from avssl.retrieval.store import SCHEMA, Meta, Store, StoreError, read_meta, read_store, shard_path
from avssl.structs import MODALITIES
from avssl.weights.features import extract
from avssl.weights.load import Pretrained


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
        kind: embedding = head outputs, unit length; features = encoder outputs.
        split: rows of one split only; None = all.
        num_clips: clips averaged per video.

    Returns:
        The whole store on rank 0; None elsewhere.

    Raises:
        StoreError: the folder holds embeddings of other weights, clips or settings, or the weights have no heads.
        LockedError: another process writes there.
    """
    if kind == "embedding" and not run.heads:
        raise StoreError(f"the weights in {run.path.parent} have no heads, which make embeddings: give --features")
    ids = np.flatnonzero(manifest.usable(split))
    if len(ids) == 0:
        raise StoreError(
            f"{manifest_path} has no usable clip with split {split}: look at its columns split, status and reason"
        )
    meta = Meta(
        run=str(run.path.parent.resolve()),
        weights_hash=run.weights_hash,
        manifest=str(manifest_path),
        manifest_hash=manifest.hash,
        root=str(manifest.root.resolve()),
        kind=kind,
        num_clips=num_clips,
        split=split,
        num_rows=len(ids),
        decoder=format_decoder(check_decoder(run.data)),
        modalities=list(run.encoders),
    )
    pieces = [ids[first : first + store.SHARD_ROWS] for first in range(0, len(ids), store.SHARD_ROWS)]
    with folder_lock(folder) if distributed.is_main() else nullcontext():
        _claim(folder, meta)
        for number, piece in enumerate(pieces):
            is_mine = number % distributed.world_size() == distributed.rank()
            if is_mine and not shard_path(folder, number, "parquet").exists():
                _write_shard(folder, number, run, manifest, piece, meta, progress=f"extract {number + 1}/{len(pieces)}")
        distributed.barrier()
        return read_store(folder) if distributed.is_main() else None


def _claim(folder: Path, meta: Meta) -> None:
    """Write meta.json, whose paths may have changed, once the shards there are of the same run, clips and settings."""
    if any(folder.glob("shard-*.parquet")):
        before = read_meta(folder)
        for name, new in meta.identity.items():
            old = before.identity[name]
            if old != new:
                raise StoreError(
                    f"{folder} holds embeddings with {name}={old}, now {new}: give another --out, or delete that folder"
                )
        meta = replace(meta, decoder=before.decoder)
    distributed.barrier()  # all have looked
    if distributed.is_main():
        with atomic_write(folder / "meta.json") as temporary:
            temporary.write_text(json.dumps(asdict(meta), indent=1) + "\n")
    distributed.barrier()


def _write_shard(
    folder: Path, number: int, run: Pretrained, manifest: Manifest, ids: np.ndarray, meta: Meta, *, progress: str
) -> None:
    found = extract(run, manifest, ids, num_clips=meta.num_clips, progress=progress)
    if number == 0 and not len(found.ids):  # once written, the shard would not be extracted again
        raise StoreError(
            f"none of the first {len(ids)} clips could be read (first: {next(iter(found.errors.values()))}): is "
            f"{manifest.root} the folder of the clips? name the right one with --root"
        )
    vectors = found.embedding if meta.kind == "embedding" else found.features
    with np.errstate(over="ignore"):  # checked below
        vectors = {modality: values.astype(np.float16) for modality, values in vectors.items()}
    broken = found.ids[~np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in vectors.values()])]
    if len(broken):
        raise StoreError(
            f"{len(broken)} clips have vectors that 16 bits cannot hold, such as row {broken[0]} of the manifest: "
            "extract outputs of the heads (without --features), or look at how the run went"
        )
    for modality in MODALITIES:
        array = io.BytesIO()  # np.save hides the reason when the disk is full
        np.save(array, vectors[modality])
        with atomic_write(shard_path(folder, number, f"{modality}.npy")) as temporary:
            temporary.write_bytes(array.getbuffer())
    rows = [*found.ids.tolist(), *found.errors]  # the read ones first, in the order of the vectors
    without = [False] * len(found.errors)
    of_manifest = manifest.table.select(["path", "start", "end", "label"]).take(rows)
    table = pa.table(
        {
            "id": pa.array(rows, pa.int64()),
            **{name: of_manifest.column(name) for name in of_manifest.column_names},
            "has_audio": pa.array([*found.has_audio.tolist(), *without], pa.bool_()),
            "has_video": pa.array([*found.has_video.tolist(), *without], pa.bool_()),
            "error": pa.array([found.errors.get(row) for row in rows], pa.string()),
        },
        schema=SCHEMA,
    )
    with atomic_write(shard_path(folder, number, "parquet")) as temporary:
        pq.write_table(table, temporary)
