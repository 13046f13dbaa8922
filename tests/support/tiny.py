"""Methods on vectors instead of clips: linear encoders, so that a test sees the method and nothing else."""

import torch
from torch import nn

from avssl.methods.avid import AVID, AVIDOptions
from avssl.methods.avid_cma import AVIDCMA, AVIDCMAOptions
from avssl.methods.base import Encode, Method
from avssl.structs import Batch, Instances

DIM = 8


class LinearEncoder(nn.Linear):
    dim, min_size = DIM, (1, 1, 1)

    def __init__(self) -> None:
        super().__init__(DIM, DIM)


def tiny_method(options: AVIDOptions, instances: Instances, *, seed: int = 0) -> AVID:
    """AVID or AVID-CMA with linear encoders; weights depend on the seed only."""
    torch.manual_seed(seed)
    encoders = nn.ModuleDict({"video": LinearEncoder(), "audio": LinearEncoder()})
    method_class = AVIDCMA if isinstance(options, AVIDCMAOptions) else AVID
    return method_class(options, encoders, instances=instances, seed=seed)


def encode(method: Method, batch: Batch) -> Encode:
    """The encoders of a method on a batch, as its loss gets them."""
    return Encode(method.encoders, method.views, batch)


def everything(num: int) -> Instances:
    every = torch.ones(num, dtype=torch.bool)
    return Instances(valid=every, has_audio=every, has_video=every)


def vector_batch(
    ids: torch.Tensor,
    *,
    step: int = 0,
    has_audio: torch.Tensor | None = None,
    has_video: torch.Tensor | None = None,
) -> Batch:
    """Inputs that depend on the id and the step, whichever rank asks for them; related across modalities."""
    every = torch.ones(len(ids), dtype=torch.bool)
    rows = []
    for row in ids.tolist():
        generator = torch.Generator().manual_seed(1000 * step + row + 1)
        shared = torch.randn(DIM, generator=torch.Generator().manual_seed(row + 77))
        rows.append([shared + 0.3 * torch.randn(DIM, generator=generator) for _ in range(2)])
    return Batch(
        video={"video": torch.stack([video for video, _ in rows])},
        audio={"audio": torch.stack([audio for _, audio in rows])},
        ids=ids,
        start={view: torch.zeros(len(ids), dtype=torch.float64) for view in ("video", "audio")},
        has_audio=every if has_audio is None else has_audio,
        has_video=every if has_video is None else has_video,
        params={},
        padded={view: torch.zeros(len(ids), dtype=torch.bool) for view in ("video", "audio")},
    )
