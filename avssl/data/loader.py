"""Worker processes in front of a dataset: keys in, batches out, in the order of the keys whatever the number of
workers.
"""

import signal
from collections.abc import Iterable, Sequence

import cv2
import torch
from torch.utils.data import DataLoader

from avssl.config import DataConfig
from avssl.data.dataset import ClipDataset, collate
from avssl.data.sampling import Key
from avssl.structs import Batch

PREFETCH = 4  # batches that each worker prepares ahead


def build_loader(
    dataset: ClipDataset, batches: Iterable[Sequence[Key]], data: DataConfig, *, device: torch.device
) -> DataLoader[Batch]:
    """Iterate over batches of keys; pinned memory when they go to a GPU.

    Raises (while iterating):
        RuntimeError: a worker died or was silent for data.worker_timeout_seconds.
    """
    workers = data.num_workers
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_prepare_worker,
        prefetch_factor=PREFETCH if workers else None,
        timeout=data.worker_timeout_seconds if workers else 0,
        pin_memory=device.type == "cuda",
    )


def _prepare_worker(worker: int) -> None:
    """One thread each: the processes share the cores already. A request to stop, which a terminal or a scheduler
    sends to the whole group of processes, is for the main process: it saves first, then ends its workers."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
