"""Write a folder of embeddings: of every clip of a manifest, or of arrays."""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avssl import distributed
from avssl.data.dataset import check_decoder
from avssl.data.manifest import Manifest
from avssl.files import atomic_write, digest, folder_lock
from avssl.media.decoders import format_decoder
from avssl.retrieval import store
from avssl.retrieval.on_ray import write_on_ray
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
    engine: Literal["processes", "ray"] = "processes",
) -> Store | None:
    """Extract every usable row of a manifest that the folder does not hold yet; with torchrun each rank writes its
    own shards.

    Args:
        kind: embedding = head outputs, unit length; features = encoder outputs.
        split: rows of one split only; None = all.
        num_clips: clips averaged per video.
        engine: ray = shards are tasks of a Ray cluster whose machines see the same folders; the bytes are the same.

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
        missing = {
            number: piece
            for number, piece in enumerate(pieces)
            if not shard_path(folder, number, "parquet").exists()
            and number % distributed.world_size() == distributed.rank()
        }
        if engine == "ray" and missing:
            needs = {"num_cpus": max(1, run.data.num_workers), "num_gpus": int(run.device.type == "cuda")}
            encoders = Pretrained(**{each.name: getattr(run, each.name) for each in fields(Pretrained)})  # no banks
            write_on_ray(_write_shard, missing, folder.resolve(), encoders, manifest, meta, **needs)
        else:
            for number, piece in missing.items():
                progress = f"extract {number + 1}/{len(pieces)}"
                _write_shard(number, piece, folder, run, manifest, meta, progress=progress)
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
    number: int,
    ids: np.ndarray,
    folder: Path,
    run: Pretrained,
    manifest: Manifest,
    meta: Meta,
    *,
    progress: str | None = None,
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
    rows = [*found.ids.tolist(), *found.errors]  # the read ones first, in the order of the vectors
    without = [False] * len(found.errors)
    of_manifest = manifest.table.select(["path", "start", "end", "label"]).take(rows)
    columns = {
        "id": pa.array(rows, pa.int64()),
        **{name: of_manifest.column(name) for name in of_manifest.column_names},
        "has_audio": pa.array([*found.has_audio.tolist(), *without], pa.bool_()),
        "has_video": pa.array([*found.has_video.tolist(), *without], pa.bool_()),
        "error": pa.array([found.errors.get(row) for row in rows], pa.string()),
    }
    _save_shard(folder, number, vectors, pa.table(columns, schema=SCHEMA))


def _save_shard(folder: Path, number: int, vectors: Mapping[str, np.ndarray], table: pa.Table) -> None:
    """The vectors {video, audio: (rows, D) float16} first: the table says that they are there."""
    for modality in MODALITIES:
        array = io.BytesIO()  # np.save hides the reason when the disk is full
        np.save(array, vectors[modality])
        with atomic_write(shard_path(folder, number, f"{modality}.npy")) as temporary:
            temporary.write_bytes(array.getbuffer())
    with atomic_write(shard_path(folder, number, "parquet")) as temporary:
        pq.write_table(table, temporary)


def store_of_arrays(
    folder: str | Path,
    paths: Sequence[str],
    *,
    video: np.ndarray | None = None,
    audio: np.ndarray | None = None,
    labels: Sequence[str | None] | None = None,
    root: str | Path = ".",
    shared: bool = True,
) -> Store:
    """Write anybody's embeddings as a store, which search, avssl search and avssl browse take.

    Args:
        folder: is made; must hold no embeddings yet.
        paths: (n,) of the clips, from `root`; row i has the id i.
        video: (n, D), of any length but not NaN, kept in 16 bits; a row of zeros is a clip without it. None = no clip
            has it.
        audio: (n, D), likewise.
        labels: (n,) names of classes.
        shared: vectors of video and audio are of one space, so that one may be asked for by the other.

    Raises:
        ValueError: nothing is given, or arrays differ in their length, or hold NaN or infinity.
        StoreError: the folder holds embeddings.
    """
    given = {name: np.asarray(x, np.float64) for name, x in (("video", video), ("audio", audio)) if x is not None}
    shapes = {name: x.shape for name, x in given.items()}
    fits = all(len(shape) == 2 and shape[0] == len(paths) for shape in shapes.values())
    if not (given and len(paths) and fits):
        raise ValueError(f"{len(paths)} paths, vectors {shapes}: expected video, audio or both as ({len(paths)}, D)")
    if shared and len({shape[1] for shape in shapes.values()}) > 1:
        raise ValueError(f"vectors {shapes} cannot be of one space: give shared=False")
    if labels is not None and len(labels) != len(paths):
        raise ValueError(f"{len(labels)} labels of {len(paths)} paths")
    scale = {name: np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-100) for name, x in given.items()}
    unit = {name: (x / scale[name]).astype(np.float16) for name, x in given.items()}
    for name, x in unit.items():
        if len(broken := np.flatnonzero(~np.isfinite(x).all(axis=1))):
            raise ValueError(f"{name} holds NaN or infinity in {len(broken)} rows, such as row {broken[0]}")
    for name in set(MODALITIES) - set(unit):
        unit[name] = np.zeros((len(paths), next(iter(unit.values())).shape[1]), np.float16)
    folder, names = Path(folder), [str(path) for path in paths]
    meta = Meta(
        run="",
        weights_hash=digest(*(unit[name].tobytes() for name in MODALITIES)),
        manifest="arrays",
        manifest_hash=digest(json.dumps(names)),
        root=str(Path(root).resolve()),
        kind="embedding" if shared else "features",
        num_clips=1,
        split=None,
        num_rows=len(names),
        modalities=list(given),
    )
    table = pa.table(
        {
            "id": pa.array(range(len(names)), pa.int64()),
            "path": names,
            "start": pa.nulls(len(names), pa.float64()),
            "end": pa.nulls(len(names), pa.float64()),
            "label": pa.array([None] * len(names) if labels is None else list(labels), pa.string()),
            "has_audio": unit["audio"].any(axis=1),
            "has_video": unit["video"].any(axis=1),
            "error": pa.nulls(len(names), pa.string()),
        },
        schema=SCHEMA,
    )
    with folder_lock(folder):
        if any(folder.glob("shard-*")):
            raise StoreError(f"{folder} holds embeddings: give another folder, or delete that one")
        _claim(folder, meta)
        for number, first in enumerate(range(0, len(names), store.SHARD_ROWS)):
            part = slice(first, first + store.SHARD_ROWS)
            rows = {name: x[part] for name, x in unit.items()}
            _save_shard(folder, number, rows, table.slice(first, store.SHARD_ROWS))
    return read_store(folder)
