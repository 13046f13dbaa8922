"""Agreement mining in a process of its own, while training goes on; `python -m avssl.mining.background` is one.

In a process and not in a thread: a search sets torch's number of threads, which would change what a step computes.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from avssl.mining.agreement import AgreementSets, mine_agreement

FIELDS = ("ids", "score", "exact", "passes")  # tensors of AgreementSets
NICENESS = 10  # training and its workers come first


class BackgroundSearch:
    """`mine_agreement` on the CPU, on vectors as they are now.

    Args:
        video, audio: (N, D), rows of unit length; copied.
        valid: (N,) bool.
        options: k, rule, min_score and engine of `mine_agreement`.
    """

    def __init__(self, video: Tensor, audio: Tensor, *, valid: Tensor, **options: Any) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, self._process.kill)  # nobody waits for it any more
        tensors = {"video": video.float(), "audio": audio.float(), "valid": valid}
        copies = {name: value.clone().cpu() for name, value in tensors.items()}
        threading.Thread(target=self._send, args=(copies, options), daemon=True).start()  # it imports torch first

    def _send(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError), self._process.stdin:  # where it ended: `result` says so
            _write(self._process.stdin, tensors, options)

    def result(self) -> AgreementSets:
        """Wait for the sets, on the CPU. Raises RuntimeError: the process ended without them, and said why."""
        try:
            tensors, facts = _read(self._process.stdout)
        except EOFError as error:
            raise RuntimeError(
                f"the search in the background ended with code {self._process.wait()}: what it said stands above; "
                "method.mine_in_background=false searches between epochs"
            ) from error
        self._process.wait()
        return AgreementSets(**tensors, **facts)


def _write(file: IO[bytes], tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    arrays = {name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in tensors.items()}
    header = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    file.write(json.dumps([header, facts]).encode() + b"\n")
    for array in arrays.values():
        file.write(memoryview(array.reshape(-1)).cast("B"))
    file.flush()


def _read(file: IO[bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `_write` wrote. Raises EOFError: the other side ended before."""
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header, facts = json.loads(line)
    tensors = {}
    for name, (kind, shape) in header.items():
        array = np.empty(shape, np.dtype(kind))
        if file.readinto(memoryview(array.reshape(-1)).cast("B")) < array.nbytes:
            raise EOFError
        tensors[name] = torch.from_numpy(array)
    return tensors, facts


def main() -> int:
    os.nice(NICENESS)
    torch.set_num_threads(os.cpu_count() or 1)
    tensors, options = _read(sys.stdin.buffer)
    found = mine_agreement(**tensors, **options)
    facts = {"engine": found.engine, "recall": found.recall}
    _write(sys.stdout.buffer, {name: getattr(found, name) for name in FIELDS}, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
