"""Embeddings on disk: a folder of shards that can be written in pieces, by several processes, and continued after a
stop.

    embeddings/
      meta.json                  run, hash of its weights, manifest and its hash, what was extracted
      shard-00000.video.npy      (rows, D) float16, zeros where a clip has no video
      shard-00000.audio.npy      (rows, D) float16, zeros where a clip has no audio
      shard-00000.parquet        id, path, start, end, label, has_audio, has_video per row, and the clips that could
                                 not be read with the reason

A shard counts as written when its parquet file is there: it is renamed into place last. Reading maps the vectors from
disk, so that a million clips are there at once.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from avssl.files import did_you_mean, digest
from avssl.structs import MODALITIES

SHARD_ROWS = 1024
PAIRED_CLIPS = 1000  # all pairs of so many
FILES_AT_ONCE = 32  # opened in parallel, which is faster on most disks
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
    """A folder of embeddings that cannot be used."""


@dataclass(frozen=True)
class Meta:
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    """Where the vectors come from; a folder is only continued with the same identity."""

    run: str
    weights_hash: str
    manifest: str
    manifest_hash: str
    root: str
    kind: Literal["embedding", "features"]
    num_clips: int
    split: str | None
    num_rows: Annotated[int, Field(ge=1)]
    decoder: str = ""  # with its versions; "" in old folders
    modalities: Sequence[Literal["video", "audio"]] = MODALITIES  # that the run has; the other modality is zeros

    @property
    def identity(self) -> dict[str, object]:
        """What determines the vectors, without paths."""
        names = ("weights_hash", "manifest_hash", "kind", "num_clips", "split", "num_rows")
        return {name: getattr(self, name) for name in names}


def read_meta(folder: Path) -> Meta:
    """Raises StoreError: it is not there, or damaged."""
    path = folder / "meta.json"
    if not path.exists():
        near = did_you_mean(folder)
        raise StoreError(f"{folder} holds no embeddings (no meta.json): {near}make them with avssl embed")
    try:
        return TypeAdapter(Meta).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = f"meta.json: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else error
        raise _damaged(folder, why) from error


class Vectors:
    """The vectors of one modality, mapped from disk and scaled to unit length where they are asked for; (n, D)."""

    def __init__(self, shards: Sequence[Tensor]) -> None:  # (rows, D) float16 each, one after another
        self.shards = [shard for shard in shards if len(shard)]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.shape = (int(self.starts[-1]), *{shard.shape[1] for shard in shards})
        self._arrays = [shard.numpy() for shard in self.shards]  # shares memory; numpy gathers few rows faster

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def lengths(self) -> Tensor:
        """(n,) float32 lengths as stored, where a clip lacks the modality 1."""
        found = torch.cat([torch.linalg.vector_norm(shard.float(), dim=1) for shard in self.shards])
        return torch.where(found > 0, found, 1.0)

    def take(self, rows: np.ndarray) -> Tensor:
        """(m, D) float32 unit vectors of these rows (m,), in any order; zeros where a clip lacks the modality."""
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self.starts)
        found = np.empty((len(rows), self.shape[1]), dtype=np.float16)
        for number in np.flatnonzero(np.diff(ends)):
            places = order[ends[number] : ends[number + 1]]
            found[places] = self._arrays[number][rows[places] - self.starts[number]]
        return torch.nn.functional.normalize(torch.from_numpy(found).float(), dim=1)

    def cosines(self, queries: Tensor) -> Tensor:
        """Cosine of unit vectors (Q, D) to every row: (Q, n) float32, 0 where a clip lacks the modality."""
        found = torch.cat([queries @ shard.float().T for shard in self.shards], dim=1)
        return found.div_(self.lengths)


@dataclass(frozen=True)
class Store:
    """A folder of embeddings, read lazily.

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
        return {modality: self.table.column(f"has_{modality}").to_numpy() for modality in MODALITIES}

    def has_all(self, modalities: Iterable[str]) -> np.ndarray:
        """(n,) bool: clips that have each of these modalities."""
        return np.logical_and.reduce([self.has[modality] for modality in modalities])

    @cached_property
    def pair_cosines(self) -> dict[str, np.ndarray]:
        """{video, audio: median and 95th percentile of the cosines of pairs of PAIRED_CLIPS drawn clips}; NaN without
        pairs."""
        found = {}
        for modality, has in self.has.items():
            rows = np.random.default_rng(0).permutation(np.flatnonzero(has))[:PAIRED_CLIPS]
            vectors = self.vectors[modality].take(rows).numpy()
            pairs = (vectors @ vectors.T)[np.triu_indices(len(rows), 1)]
            found[modality] = np.quantile(pairs, [0.5, 0.95]) if len(pairs) else np.full(2, np.nan)
        return found

    @cached_property
    def labels(self) -> tuple[list[str], np.ndarray]:
        """The names that occur, sorted, and each row's position among them (n,) int64, -1 without a label."""
        names = sorted(pc.unique(self.table.column("label")).drop_null().to_pylist())
        places = pc.index_in(self.table.column("label"), value_set=pa.array(names, pa.string()))
        return names, pc.fill_null(places, -1).to_numpy().astype(np.int64)

    def with_label(self, label: str) -> np.ndarray:
        """(n,) bool: rows with this label."""
        names, labels = self.labels
        return labels == names.index(label) if label in names else np.zeros(len(self), dtype=bool)

    def row(self, id: int) -> int | None:
        """Position of a row of the manifest; None if it is not in the store."""
        place = int(np.searchsorted(self.ids, id))
        return place if place < len(self) and self.ids[place] == id else None

    def path(self, row: int) -> str:
        return self.table.column("path")[row].as_py()

    def label(self, row: int) -> str | None:
        return self.table.column("label")[row].as_py()

    def digest(self) -> str:
        """Digest of the identity, and of size and time of every file."""
        entries = [(path.name, path.stat()) for path in sorted(self.folder.glob("shard-*"))]
        files = [f"{name} {entry.st_size} {entry.st_mtime_ns}\n" for name, entry in entries]
        return digest(tuple(self.meta.identity.values()), *files)

    def part(self, row: int) -> tuple[float | None, float | None]:
        """Start and end in seconds of a clip that is a part of its file, as in the manifest."""
        return self.table.column("start")[row].as_py(), self.table.column("end")[row].as_py()


def read_store(folder: Path) -> Store:
    """Open a folder of embeddings. Raises StoreError: missing, incomplete, damaged, or of an earlier version."""
    meta = read_meta(folder)
    num_shards, written = -(-meta.num_rows // SHARD_ROWS), {path.name for path in folder.glob("shard-*.parquet")}
    if len(written) < num_shards:  # before a file that says 10^12 makes a list
        raise StoreError(
            f"{folder} is not complete: {num_shards - len(written)} of {num_shards} shards are missing; run "
            "avssl embed again"
        )
    numbers = range(num_shards)
    files = [shard_path(folder, number, "parquet") for number in numbers]
    try:
        table = pads.dataset(list(map(str, files)), schema=SCHEMA).to_table(fragment_readahead=FILES_AT_ONCE)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(folder, error) from error
    if table.column("has_video").null_count or "start" not in pq.read_schema(files[0]).names:
        raise StoreError(
            f"{folder} was written by an earlier version, with fewer columns: delete that folder and run "
            "avssl embed again"
        )
    good = pc.is_null(table.column("error"))
    failed = table.filter(pc.invert(good))
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        vectors = {
            modality: Vectors(
                list(pool.map(_mapped, [shard_path(folder, number, f"{modality}.npy") for number in numbers]))
            )
            for modality in MODALITIES
        }
    num_rows, table = len(table), table.filter(good).drop_columns("error").combine_chunks()
    ids = table.column("id").to_numpy()
    if any(len(each.shape) > 2 for each in vectors.values()):
        raise _damaged(folder, "shards differ in the length of their vectors")
    if num_rows != meta.num_rows or any(len(each) != len(table) for each in vectors.values()):
        raise _damaged(folder, "vectors and clips differ in number")
    if not (np.diff(ids, prepend=-1) > 0).all():
        raise _damaged(folder, "ids repeat, or do not rise")
    if any(table.column(name).null_count for name in ("path", "has_audio")):
        raise _damaged(folder, "a clip has no path, or nothing is known of its audio")
    errors = dict(zip(failed.column("path").to_pylist(), failed.column("error").to_pylist(), strict=True))
    return Store(folder, meta, table, vectors, errors)


def _mapped(path: Path) -> Tensor:
    """The (rows, D) float16 of a .npy file. The file is closed again: open files are limited."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            begin, size = file.tell(), path.stat().st_size
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from error
    if dtype != np.float16 or by_columns or len(shape) != 2 or size != begin + 2 * shape[0] * shape[1]:
        raise _damaged(path.parent, f"{path.name} has {size} bytes, of {dtype} {shape}{' by columns' * by_columns}")
    storage = torch.UntypedStorage.from_file(str(path), False, size)
    mapped = torch.empty(0, dtype=torch.float16).set_(storage, begin // 2, shape, (shape[1], 1))
    if (mapped.numpy().view(np.uint16) & 0x7C00).max(initial=0) == 0x7C00:  # the exponent; as fast as memory
        raise _damaged(path.parent, f"{path.name} holds NaN or infinity")
    return mapped


def _damaged(folder: Path, why: object) -> StoreError:
    return StoreError(f"{folder} is damaged ({why}): delete that folder and run avssl embed again")


def shard_path(folder: Path, number: int, ending: str) -> Path:
    return folder / f"shard-{number:05d}.{ending}"
