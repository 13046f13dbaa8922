"""Shards of a store as tasks of a Ray cluster, instead of as processes of torchrun."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from avssl.retrieval.store import StoreError

RETRIES = 5  # of a task whose node or process died


def write_on_ray(
    write_shard: Callable[..., None], pieces: Mapping[int, np.ndarray], *shared: Any, num_cpus: int, num_gpus: int
) -> None:
    """Call `write_shard(number, rows, *shared)` for every piece, anywhere on the cluster that this machine belongs to,
    or on a Ray of its own where none runs. A task whose machine dies is run again on another.

    Args:
        write_shard: of an installed package; writes where all machines can.
        shared: sent to each machine once.
        num_cpus, num_gpus: of each task; a GPU where this process has one.

    Raises:
        StoreError: Ray is not installed, or no machine of the cluster has so much.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        if not any(
            node["Alive"]
            and node["Resources"].get("CPU", 0) >= num_cpus
            and node["Resources"].get("GPU", 0) >= num_gpus
            for node in ray.nodes()
        ):
            raise StoreError(f"no machine of the Ray cluster has {num_cpus} CPUs and {num_gpus} GPUs for a task")
        task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=RETRIES)(write_shard)
        sent = [ray.put(each) for each in shared]
        waiting = [task.remote(number, rows, *sent) for number, rows in pieces.items()]
        with tqdm(total=len(waiting), desc="extract on Ray", unit="shard") as bar:
            while waiting:
                done, waiting = ray.wait(waiting)
                ray.get(done)  # raises what the task raised
                bar.update(len(done))
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise StoreError("--engine ray needs Ray: pip install 'avssl[ray]'") from error
    return ray
