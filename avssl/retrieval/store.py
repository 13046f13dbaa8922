"""Embeddings on disk: a folder of shards that can be written in pieces, by several processes, and continued after a
stop.

    embeddings/
      meta.json                  run, hash of its weights, manifest and its hash, what was extracted
      shard-00000.video.npy      (rows, D) float16, zeros where a clip has no picture
      shard-00000.audio.npy      (rows, D) float16, zeros where a clip has no sound
      shard-00000.parquet        id, path, start, end, label, has_audio, has_video per row, and the clips that could
                                 not be read with the reason

A shard counts as written when its parquet file is there: it is renamed into place last. Reading maps the vectors from
disk, so that a million clips are there at once.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from torch import Tensor

from avssl import distributed
from avssl.data.dataset import check_decoder
from avssl.data.manifest import Manifest
from avssl.evaluate.features import MODALITIES, extract
from avssl.files import whole_file
from avssl.media.decoders import in_words
from avssl.pretrained import Pretrained

SHARD_ROWS = 1024
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("path", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("label", pa.string()),
        ("has_audio", pa.bool_()),
        ("has_video", pa.bool_()),
        ("error", pa.string()),
    ]
)


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


class Vectors:
    """The vectors of one side, mapped from disk and scaled to unit length where they are asked for; (n, D)."""

    def __init__(self, shards: Sequence[Tensor]) -> None:
        """
        Args:
            shards: (rows, D) float16 each, one after another.
        """
        self.shards = [shard for shard in shards if len(shard)]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.shape = (int(self.starts[-1]), shards[0].shape[1])
        self._arrays = [shard.numpy() for shard in self.shards]  # the same memory: numpy gathers a few rows faster

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def lengths(self) -> Tensor:
        """(n,) float32 lengths as stored, where a clip lacks the side 1."""
        found = torch.cat([torch.linalg.vector_norm(shard.float(), dim=1) for shard in self.shards])
        return torch.where(found > 0, found, 1.0)

    def take(self, rows: np.ndarray) -> Tensor:
        """(m, D) float32 unit vectors of these rows (m,), in any order; zeros where a clip lacks the side."""
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self.starts)
        found = np.empty((len(rows), self.shape[1]), dtype=np.float16)
        for number in np.flatnonzero(np.diff(ends)):
            places = order[ends[number] : ends[number + 1]]
            found[places] = self._arrays[number][rows[places] - self.starts[number]]
        return torch.nn.functional.normalize(torch.from_numpy(found).float(), dim=1)

    def cosines(self, queries: Tensor) -> Tensor:
        """Cosine of unit vectors (Q, D) to every row: (Q, n) float32, 0 where a clip lacks the side."""
        found = torch.cat([queries @ shard.float().T for shard in self.shards], dim=1)
        return found.div_(self.lengths)


@dataclass(frozen=True)
class Store:
    """A folder of embeddings. What is not looked at is not read.

    Letters: n rows, D dimensions.
    """

    folder: Path
    meta: Meta
    table: pa.Table  # id, path (relative to meta.root), start, end, label, has_audio, has_video: n rows
    vectors: dict[str, Vectors]  # {video, audio: (n, D)}
    errors: dict[str, str]  # {path: reason} of the clips that could not be read

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def ids(self) -> np.ndarray:
        """(n,) int64 rows of the manifest, rising."""
        return self.table.column("id").to_numpy()

    @cached_property
    def has(self) -> dict[str, np.ndarray]:
        """{video, audio: (n,) bool}"""
        return {side: self.table.column(f"has_{side}").to_numpy() for side in MODALITIES}

    @cached_property
    def labels(self) -> tuple[list[str], np.ndarray]:
        """The names that occur, sorted, and each row's position among them (n,) int64, -1 without a label."""
        names = sorted(pc.unique(self.table.column("label")).drop_null().to_pylist())
        places = pc.index_in(self.table.column("label"), value_set=pa.array(names, pa.string()))
        return names, pc.fill_null(places, -1).to_numpy().astype(np.int64)

    def row(self, id: int) -> int | None:
        """Where a row of the manifest stands; None when it is not among these clips."""
        place = int(np.searchsorted(self.ids, id))
        return place if place < len(self) and self.ids[place] == id else None

    def path(self, row: int) -> str:
        return self.table.column("path")[row].as_py()

    def label(self, row: int) -> str | None:
        return self.table.column("label")[row].as_py()

    def part(self, row: int) -> tuple[float | None, float | None]:
        """Seconds at which a clip that is a part of its file starts and ends, as in the manifest."""
        return self.table.column("start")[row].as_py(), self.table.column("end")[row].as_py()


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
    """Open a folder of embeddings.

    Raises:
        StoreError: it is not one, it is not complete or damaged, or an earlier version of the package wrote it.
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
    files = [str(_shard(folder, number, "parquet")) for number in numbers]
    try:
        table = pads.dataset(files, schema=SCHEMA).to_table()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(folder, error) from error
    if table.column("has_video").null_count or "start" not in pq.read_schema(files[0]).names:
        raise StoreError(
            f"{folder} was written by an earlier version, which noted less of each clip: delete that folder and run "
            "tools/extract.py again"
        )
    good = pc.is_null(table.column("error"))
    failed = table.filter(pc.invert(good))
    store = Store(
        folder=folder,
        meta=meta,
        table=table.filter(good).drop_columns("error").combine_chunks(),
        vectors={
            side: Vectors([_mapped(_shard(folder, number, f"{side}.npy")) for number in numbers]) for side in MODALITIES
        },
        errors=dict(zip(*(failed.column(name).to_pylist() for name in ("path", "error")), strict=True)),
    )
    if {len(store), *(len(vectors) for vectors in store.vectors.values())} != {len(store)}:
        raise _damaged(folder, "vectors and clips differ in number")
    return store


def _mapped(path: Path) -> Tensor:
    """The (rows, D) float16 of a .npy file. The file is not kept open: a process may open a thousand only."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            begin, size = file.tell(), path.stat().st_size
    except (OSError, ValueError) as error:
        raise _damaged(path.parent, error) from error
    if dtype != np.float16 or len(shape) != 2 or size != begin + 2 * shape[0] * shape[1]:
        raise _damaged(path.parent, f"{path.name} has {size} bytes")
    storage = torch.UntypedStorage.from_file(str(path), False, size)
    return torch.empty(0, dtype=torch.float16).set_(storage, begin // 2, shape, (shape[1], 1))


def _damaged(folder: Path, why: object) -> StoreError:
    return StoreError(f"{folder} is damaged ({why}): delete that folder and run tools/extract.py again")


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
    with whole_file(_shard(folder, number, "parquet")) as temporary:
        pq.write_table(table, temporary)


def _shard(folder: Path, number: int, ending: str) -> Path:
    return folder / f"shard-{number:05d}.{ending}"
