"""Every method at miniature size, batches without files, and the progress of a training."""

from typing import Any

import torch

from avssl.config import from_dict
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Instances, Progress
from avssl.transforms.views import Same, TrackFrame, View

NUM = 16  # instances, all of them in every batch
STEPS, EPOCH = 30, 10
HEAD = {"hidden_dim": 32, "embedding_dim": 16, "head_batch_norm": True}
AVID = HEAD | {"num_negatives": 12}
CMA = AVID | {"num_negatives_within": 6, "num_positives": 2, "mine_every": 1}
NEAR = HEAD | {"num_clips": 3, "max_seconds": 0.6}
MOCO = NEAR | {"negatives": ["queue"], "queue_size": 40, "momentum": 0.9, "momentum_schedule": "cosine"}
SECO = HEAD | {"num_clips": 4, "num_queries": 1, "interval": "halves", "negatives": ["queue", "bank"], "intra": 1.0}
SWAV = {"hidden_dim": 32, "embedding_dim": 16, "num_prototypes": 24, "num_small": 2, "freeze_steps": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name: method, its options at miniature size
    "avid": ("avid", AVID),
    "avid_cma": ("avid_cma", CMA),
    "infonce": ("infonce", HEAD),
    "neighbour": ("neighbour", NEAR | {"far": "negative"}),
    "neighbour as MoCo": ("neighbour", MOCO),
    "neighbour as SeCo": ("neighbour", SECO | {"queue_size": 40, "num_negatives": 12, "intra_seconds": 0.5}),
    "neighbour as VINCE": ("neighbour", MOCO | {"num_queries": 1}),
    "patch": ("patch", HEAD | {"tracks": "none", "num_tracks": 2}),
    "walk": ("walk", HEAD | {"dropout": 0.0}),  # each link that is cut costs, however good the links are
    "byol": ("byol", {"hidden_dim": 32, "embedding_dim": 16, "momentum": 0.9}),
    "swav": ("swav", SWAV),
    "rotation": ("rotation", {}),
    "finetune": ("finetune", {"dropout": 0.2, "warmup_epochs": 0}),
    "joint": (
        "joint",
        {
            "parts": {
                "avid_cma": CMA,
                "near": {"name": "neighbour", "weight": 0.5, **MOCO},
                "patch": HEAD | {"tracks": "none"},
                "walk": HEAD | {"weight": 2},
                "byol": {"hidden_dim": 32, "embedding_dim": 16, "momentum": 0.9},
                "swav": SWAV,
                "rotation": {},
            }
        },
    ),
}

FLOORS: dict[str, float] = {}  # case: the smallest value of its loss, where that is not 0 (-1 for a negative cosine)


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
    """Each instance has its own frames, spectrogram and patches; every step adds new noise to them."""
    own, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    shapes = {"video": (NUM, 3, 2, 32, 32), "audio": (NUM, 1, 40, 24), "walk": (NUM, 1, 4, 3, 1, 32, 32)}
    shapes |= {"patch": (NUM, 3, 1, 32, 32)}
    base = {name: torch.randn(shape, generator=own) for name, shape in shapes.items()}
    base["patch 2"] = torch.randn(shapes["patch"], generator=own)  # of another track
    base["rotation"] = base["video"]
    turns = torch.arange(NUM) % 4

    def clean(view: View) -> torch.Tensor:
        if isinstance(view.when, TrackFrame):
            return base["patch 2" if view.when.track else "patch"]
        if view.recipe == "rotation":
            ramp = torch.linspace(-3, 3, 32).expand(3, 2, 32, 32)  # brighter to the right: shows its rotation
            return torch.stack([torch.rot90(ramp, int(turn), dims=(-2, -1)) for turn in turns])
        return base[view.recipe].repeat_interleave(3 if view.recipe == "walk" else 1, dim=1)  # frames of a walk

    seen = {view.name: clean(view) + 0.3 * torch.randn(clean(view).shape, generator=noise) for view in method.views}
    rows = torch.arange(NUM) if ids is None else ids
    taken = {view: value[rows] for view, value in seen.items()}
    tracks = max((view.when.track + 1 for view in method.views if isinstance(view.when, TrackFrame)), default=0)
    return Batch(
        video={view.name: taken[view.name] for view in method.views if view.modality == "video"},
        audio={view.name: taken[view.name] for view in method.views if view.modality == "audio"},
        ids=rows,
        start={view.name: torch.full((len(rows),), 0.5 * when_of(view), dtype=torch.float64) for view in method.views},
        has_audio=torch.ones(len(rows), dtype=torch.bool),
        has_video=torch.ones(len(rows), dtype=torch.bool),
        params={view.name: {"label": turns[rows]} for view in method.views if view.recipe == "rotation"},
        padded={view.name: torch.zeros(len(rows), dtype=torch.bool) for view in method.views},
        target={"track": torch.arange(tracks).expand(len(rows), tracks)} if tracks else {},
    )


def when_of(view: View) -> int:
    """Views of a patch and the clips video, video.1, ... start one after the other."""
    if isinstance(view.when, TrackFrame):
        return 2 * view.when.track + view.when.end
    return 0 if isinstance(view.when, Same) else int(view.name.rpartition(".")[2]) if "." in view.name else 0


def progress(step: int) -> Progress:
    return Progress(epoch=step // EPOCH, step=step, num_steps=STEPS)
