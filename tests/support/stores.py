"""Stores of any vectors, written as tools/embed.py writes them."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avssl.retrieval import store as module
from avssl.retrieval.store import SCHEMA, Meta, Store, read_store


def write(
    folder: Path,
    vectors: dict[str, np.ndarray],
    *,
    ids: list[int] | None = None,
    labels: list[str | None] | None = None,
    paths: list[str] | None = None,
    has: dict[str, np.ndarray] | None = None,
    parts: list[tuple[float | None, float | None]] | None = None,
    root: Path | None = None,
    kind: str = "embedding",
    run: str = "none",
    manifest_hash: str = "m",
) -> Store:
    """{video, audio: (n, D)} as a folder of embeddings; a modality that a clip lacks is zeros."""
    num = len(vectors["video"])
    ids = ids or list(range(num))
    has = has or {modality: np.ones(num, dtype=bool) for modality in ("video", "audio")}
    columns = {
        "id": ids,
        "path": paths or [f"clips/{id}.mp4" for id in ids],
        "start": [part[0] for part in parts] if parts else [None] * num,
        "end": [part[1] for part in parts] if parts else [None] * num,
        "label": labels or [None] * num,
        **{f"has_{modality}": mask.tolist() for modality, mask in has.items()},
        "error": [None] * num,
    }
    table = pa.table(columns, schema=SCHEMA)
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, num, module.SHARD_ROWS)):
        rows = slice(first, first + module.SHARD_ROWS)
        for modality, values in vectors.items():
            kept = np.where(has[modality][rows, None], values[rows], 0)
            np.save(folder / f"shard-{number:05d}.{modality}.npy", kept.astype(np.float16))
        pq.write_table(table.slice(first, module.SHARD_ROWS), folder / f"shard-{number:05d}.parquet")
    meta = Meta(run, "w", "manifest.parquet", manifest_hash, str(root or folder), kind, 1, None, num)
    (folder / "meta.json").write_text(json.dumps(asdict(meta)))
    return read_store(folder)


def random_vectors(num: int, dim: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Clips that share something between video and audio."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(num, dim))
    return {modality: shared + 0.7 * rng.normal(size=(num, dim)) for modality in ("video", "audio")}
