"""Trainings at miniature size, and commands called as a user calls them."""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from avssl.config import Config, from_dict, with_overrides
from avssl.data.manifest import Manifest
from avssl.training.checkpoint import load_checkpoint

TINY = [  # sizes at which a step takes a fraction of a second
    *("data.clips_per_video=2", "data.batch_size=4", "data.num_workers=0", "data.num_frames=2", "data.fps=5"),
    *("data.size=32", "data.audio_seconds=0.5", "data.sample_rate=8000", "data.max_offset_seconds=0.1"),
    *("data.spectrogram=log_mel", "data.n_fft=256", "data.num_mels=24", "data.hop_seconds=0.01"),
    *("model.video_depth=10", "model.video_width=0.125", "model.audio_width=0.125"),
    *("method.num_negatives=8", "method.hidden_dim=16", "optim.epochs=2", "run.log_every=1", "run.num_threads=1"),
]
CMA = [
    "method.name=avid_cma",
    "method.num_positives=2",
    "method.num_negatives_within=4",
    "method.mine_every=1",
    "method.mine_from_epoch=1",
]
SMALL = ("--workers", "0", "--num-clips", "1", "--num-crops", "1")  # of tools/evaluate.py


def config(manifest: Manifest, folder: Path, *overrides: str) -> Config:
    """TINY on a manifest, with the run in a folder; the overrides win."""
    lines = [f"data.manifest={manifest.root / 'manifest.parquet'}", f"run.dir={folder}", *TINY, *overrides]
    return from_dict(with_overrides({}, lines), source="test")


def equal_models(one: Path, two: Path) -> bool:
    """Weights, memory banks, Adam's moments and step of two runs are equal to the last bit."""
    a, b = load_checkpoint(one), load_checkpoint(two)
    same = all(
        torch.equal(a["model"][name], b["model"][name])
        for name in a["model"]
        if not torch.isnan(a["model"][name]).any()
    )
    moments = [[state[key] for state in x["optimizer"].values() for key in ("exp_avg", "exp_avg_sq")] for x in (a, b)]
    return same and a["step"] == b["step"] and all(torch.equal(x, y) for x, y in zip(*moments, strict=True))


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, message: str, *, code: int = 2) -> None:
        """The call ended with this code and one sentence that matches."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        sentences = [line for line in re.split(r"[\r\n]", self.err) if "error: " in line]
        assert len(sentences) == 1, self.err
        assert re.search(message, sentences[0]), sentences[0]
        assert self.err.rstrip().endswith(sentences[0].rstrip()), self.err  # nothing follows: it is one line


Call = Callable[..., Outcome]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


WAITING = {  # operations of aten whose result, or its shape, the host must read
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "histc",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Records every operation that would cause a host sync if its tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        marked = name.startswith("index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        if name in WAITING or marked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))
