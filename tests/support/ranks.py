"""Work on several processes, as torchrun starts them."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from avssl import distributed
from tests.support.runs import free_port

PRELOADED = ["torch._dynamo", "avssl.training.loop", "pytest"]  # once: each process is a fork of one that has them


def on_ranks(num: int, work: Callable[..., Any], *given: object) -> list[Any]:
    """What `work(*given)` returns on each of `num` ranks; `work` is a function of a module."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num, free_port(), folder, work, given)
        multiprocessing.start_processes(_on_rank, arguments, nprocs=num, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num)]


def _on_rank(rank: int, num: int, port: int, folder: str, work: Callable[..., Any], given: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init("cpu")
    torch.save(work(*given), Path(folder) / f"{rank}.pt")
    distributed.shut_down()
