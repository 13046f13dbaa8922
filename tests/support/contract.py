"""Every method at miniature size, batches for it without files, and how far a training is."""

from typing import Any

import torch

from avssl.config import from_dict
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Instances, Progress
from avssl.transforms.views import number_of, view_of

NUM = 16  # instances, all of them in every batch
STEPS, EPOCH = 30, 10
HEAD = {"hidden_dim": 32, "embedding_dim": 16, "head_batch_norm": True}
AVID = HEAD | {"num_negatives": 12}
CMA = AVID | {"num_negatives_within": 6, "num_positives": 2, "mine_every": 1}
NEAR = HEAD | {"num_clips": 3, "max_seconds": 0.6}
MOCO = NEAR | {"negatives": ["queue"], "queue_size": 40, "momentum": 0.9, "momentum_schedule": "cosine"}
SECO = HEAD | {"num_clips": 4, "num_queries": 1, "interval": "halves", "negatives": ["queue", "bank"], "intra": 1.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name: method, its options at miniature size
    "avid": ("avid", AVID),
    "avid_cma": ("avid_cma", CMA),
    "infonce": ("infonce", HEAD),
    "neighbour": ("neighbour", NEAR | {"far": "negative"}),
    "neighbour as MoCo": ("neighbour", MOCO),
    "neighbour as SeCo": ("neighbour", SECO | {"queue_size": 40, "num_negatives": 12, "intra_seconds": 0.5}),
    "patch": ("patch", HEAD | {"tracks": "none", "num_tracks": 2}),
    "walk": ("walk", HEAD | {"dropout": 0.0}),  # each link that is cut costs, however good the links are
    "finetune": ("finetune", {"dropout": 0.2, "warmup_epochs": 0}),
    "joint": (
        "joint",
        {
            "parts": {
                "avid_cma": CMA,
                "near": {"name": "neighbour", "weight": 0.5, **MOCO},
                "patch": HEAD | {"tracks": "none"},
                "walk": HEAD | {"weight": 2},
            }
        },
    ),
}


def build(case: str, **other: Any) -> Method:
    """A case, with other options of its method."""
    name, options = CASES[case]
    options = options | other
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": name, **options},
        "run": {"dir": "none"},
    }
    everything = torch.ones(NUM, dtype=torch.bool)
    classes = {"target": torch.arange(NUM), "classes": [str(i) for i in range(NUM)]} if name == "finetune" else {}
    return build_method(from_dict(given, source="test"), Instances(everything, everything, everything, **classes))


def batch_of(method: Method, step: int, *, ids: torch.Tensor | None = None) -> Batch:
    """Every instance has a picture, a spectrogram and patches of its own; each step sees them under new noise."""
    own, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    shapes = {"video": (NUM, 3, 2, 32, 32), "audio": (NUM, 1, 40, 24), "walk": (NUM, 1, 4, 3, 1, 32, 32)}
    shapes |= {"patch": (NUM, 3, 1, 32, 32)}
    base = {name: torch.randn(shape, generator=own) for name, shape in shapes.items()}
    base["patch 2"] = torch.randn(shapes["patch"], generator=own)  # of another track
    times = {"walk": 3}  # frames
    seen = {}
    for view in method.views:
        name = view.partition(".")[0]
        clean = base["patch 2" if name == "patch" and number_of(view) > 1 else name]
        clean = clean.repeat_interleave(times.get(name, 1), dim=1) if name == "walk" else clean
        seen[view] = clean + 0.3 * torch.randn(clean.shape, generator=noise)
    rows = torch.arange(NUM) if ids is None else ids
    taken = {view: value[rows] for view, value in seen.items()}
    return Batch(
        video={view: value for view, value in taken.items() if view_of(view).modality == "video"},
        audio={view: value for view, value in taken.items() if view_of(view).modality == "audio"},
        ids=rows,
        start={view: torch.full((len(rows),), 0.5 * number_of(view), dtype=torch.float64) for view in method.views},
        has_audio=torch.ones(len(rows), dtype=torch.bool),
        has_video=torch.ones(len(rows), dtype=torch.bool),
        params={},
        padded={view: torch.zeros(len(rows), dtype=torch.bool) for view in method.views},
        target={"track": torch.tensor([[0, 1]]).expand(len(rows), 2)[:, : method.patches.num]}
        if method.patches
        else {},
    )


def progress(step: int) -> Progress:
    return Progress(epoch=step // EPOCH, step=step, num_steps=STEPS)
