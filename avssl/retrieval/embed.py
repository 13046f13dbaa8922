"""Embed one file outside of a set with the runs that embedded the set.

    python -m avssl.retrieval.embed        (a worker: one JSON job per line in, one JSON answer per line out)

In the worker a visitor's file is decoded: it can be killed, or die of the file, without harm to anything else.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.data.check import manifest_of_file
from avssl.data.manifest import Manifest
from avssl.retrieval.store import Meta, StoreError
from avssl.weights.features import extract
from avssl.weights.load import Pretrained, load, with_data
from avssl.workers import serve

MEMORY_BYTES = 32 << 30  # address space; torch with its libraries maps 6 GB


def embed_file(path: Path, meta: Meta, *, run: Pretrained, manifest: Manifest | None = None) -> dict[str, np.ndarray]:
    """The vectors of a file as those of a store: {video, audio: (D,)}, where both file and run have it.

    Args:
        meta: of the store.
        run: see `run_of_store`.
        manifest: of this one file, when it was probed before.

    Raises:
        ManifestError, StoreError: the file cannot be used.
    """
    found = extract(with_data(run, num_workers=0), manifest or manifest_of_file(path), [0], num_clips=meta.num_clips)
    if found.errors:
        raise StoreError(found.errors[0])
    matrices = found.embedding if meta.kind == "embedding" else found.features
    return {modality: matrix[0] for modality, matrix in matrices.items() if found.has(modality)[0]}


def run_of_store(meta: Meta, *, device: torch.device | None = None) -> Pretrained:
    """The run that made a store.

    Raises:
        StoreError: it was trained on since, or is not there any more.
        CheckpointError, WeightsError: it cannot be read.
    """
    if not meta.run:
        raise StoreError("these embeddings are of arrays, not of a run: only clips among them can be asked for")
    if not Path(meta.run).exists():
        raise StoreError(
            f"the run that made these embeddings is not in {meta.run} any more: put it back, or extract again"
        )
    run = load(meta.run, device=device)
    if run.weights_hash != meta.weights_hash:
        raise StoreError(f"the run in {meta.run} was trained on since these embeddings were made: extract again")
    return run


def answer_job(job: Mapping[str, Any], runs: dict[str, Pretrained]) -> dict[str, Any]:
    """Vectors of job["path"] for each of job["stores"] (fields of a `Meta`), or the reason why there are none.

    Args:
        runs: by hash of their weights; missing ones are added.
    """
    path = Path(job["path"])
    try:
        manifest = manifest_of_file(path)
        bounds = np.concatenate([manifest.bounds("video"), manifest.bounds("audio")])
        seconds = float(np.nanmax(bounds[:, 1] - bounds[:, 0]))
        if seconds > job["max_seconds"]:
            return {"reason": f"it lasts {seconds:.0f} seconds, more than the {job['max_seconds']:g} allowed here"}
        vectors = []
        for fields in job["stores"]:
            meta = Meta(**fields)
            if meta.weights_hash not in runs:
                runs[meta.weights_hash] = run_of_store(meta, device=torch.device("cpu"))
            found = embed_file(path, meta, run=runs[meta.weights_hash], manifest=manifest)
            vectors.append({modality: vector.tolist() for modality, vector in found.items()})
    except ValueError as error:
        return {"reason": str(error).replace(str(path), "it")}
    modalities = {"has_video": bool(manifest.has_video[0]), "has_audio": bool(manifest.has_audio[0])}
    return {"vectors": vectors, "seconds": seconds, **modalities}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(partial(answer_job, runs={}), memory_bytes=MEMORY_BYTES)
