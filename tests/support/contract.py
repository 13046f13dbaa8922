"""Every method at miniature size, batches without files, and the progress of a training."""

from typing import Any

import torch

from avssl.config import from_dict
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Instances, Progress
from avssl.transforms.pretext import AudioSegments, AudioSpeed, Rotation, Segments, Speed, Tiles
from avssl.transforms.recipes import Patch, Walk
from avssl.transforms.views import Same, TrackFrame, View

NUM = 16  # instances, all of them in every batch
STEPS, EPOCH = 20, 10
SHAPES = {"video": (3, 2, 32, 32), "audio": (1, 40, 24), "walk": (1, 4, 3, 1, 32, 32), "patch": (3, 1, 32, 32)}
HEAD = {"hidden_dim": 32, "embedding_dim": 16, "head_batch_norm": True}
AVID = HEAD | {"num_negatives": 12}
CMA = AVID | {"num_negatives_within": 6, "num_positives": 2, "mine_every": 1}
NEAR = HEAD | {"num_clips": 3, "max_seconds": 0.6}
MOCO = NEAR | {"negatives": ["queue"], "queue_size": 40, "momentum": 0.9, "momentum_schedule": "cosine"}
SECO = HEAD | {"num_clips": 4, "num_queries": 1, "interval": "halves", "negatives": ["queue", "bank"], "intra": 1.0}
SWAV = {"hidden_dim": 32, "embedding_dim": 16, "num_prototypes": 24, "num_small": 2, "freeze_steps": 0}
QUEUE = {"hidden_dim": 32, "embedding_dim": 16, "queue_size": 40, "momentum": 0.9}
SMALL = {"hidden_dim": 32, "embedding_dim": 16}  # heads of the two-view methods
PIRL = {"embedding_dim": 16, "num_negatives": 12}
CPC = {"embedding_dim": 16, "hidden_dim": 16, "num_blocks": 4, "num_ahead": 2}
PRETEXT = {"hidden_dim": 32, "num_permutations": 6}
TASKS = ("rotation", "position", "jigsaw", "order", "speed")
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
    "byol across": ("byol", SMALL | {"views": "video+audio"}),
    "simsiam": ("simsiam", SMALL | {"predictor_dim": 8}),
    "simsiam across": ("simsiam", SMALL | {"predictor_dim": 8, "views": "video+audio"}),
    "barlow": ("barlow", SMALL),
    "barlow with a predictor": ("barlow", SMALL | {"predictor": True, "stop_gradient": True, "vector_rate": 0.5}),
    "barlow on audio": ("barlow", SMALL | {"views": "audio", "interval": "uniform"}),
    "barlow across": ("barlow", SMALL | {"views": "video+audio"}),
    "vicreg": ("vicreg", SMALL),
    "vicreg across": ("vicreg", SMALL | {"views": "video+audio"}),
    "sigreg": ("sigreg", SMALL | {"num_directions": 8}),
    "sigreg across": ("sigreg", SMALL | {"num_directions": 8, "views": "video+audio"}),
    "predict": ("predict", SMALL),
    "predict sound too": ("predict", SMALL | {"targets": "video+audio"}),
    "swav": ("swav", SWAV),
    "swav across": ("swav", SWAV | {"views": "video+audio", "num_large": 1, "num_small": 0}),
    "swav across differences": ("swav", SWAV | {"views": "video+differences", "num_large": 1, "num_small": 0}),
    "swav on crops and sound": ("swav", SWAV | {"views": "video+audio", "marginals": "power_law", "codes": "hard"}),
    "swav on audio": ("swav", SWAV | {"views": "audio", "num_small": 0}),
    "npid": ("npid", {"embedding_dim": 16, "num_negatives": 12}),
    "npid on both": ("npid", {"embedding_dim": 16, "num_negatives": 12, "modality": "both", "hardest": 0.5}),
    "moco": ("moco", QUEUE),
    "moco on audio": ("moco", QUEUE | {"modality": "audio", "head": "linear", "hardest": 0.5}),
    "moco_v3": ("moco_v3", {"hidden_dim": 32, "embedding_dim": 16, "momentum": 0.9, "temperature": 0.2}),
    "moco_v3 on audio": (
        "moco_v3",
        {"hidden_dim": 32, "embedding_dim": 16, "views": "audio", "layers": "vit", "temperature": 0.2},
    ),
    "simclr": ("simclr", {"hidden_dim": 32, "embedding_dim": 16}),
    "simclr across": ("simclr", {"hidden_dim": 32, "embedding_dim": 16, "views": "video+audio"}),
    "simclr across differences": ("simclr", SMALL | {"views": "video+differences"}),
    "simclr, adversarial": ("simclr", SMALL | {"adversarial": 0.05, "adversarial_steps": 2}),
    "simclr on audio": ("simclr", {"hidden_dim": 32, "embedding_dim": 16, "views": "audio", "interval": "uniform"}),
    "pirl": ("pirl", PIRL),
    "pirl with rotation": ("pirl", PIRL | {"transform": "rotation", "contrast": "info_nce", "head": "mlp"}),
    "cpc": ("cpc", CPC),
    "cpc on audio": ("cpc", CPC | {"modality": "audio", "num_negatives": 6}),
    "cpc on maps": ("cpc", CPC | {"maps": True, "predictor": "recurrent", "num_ahead": 2}),
    "cpc over rows": ("cpc", CPC | {"over": "rows", "patch_size": 32, "stride": 16, "num_ahead": 2}),
    **{f"pretext {task}": ("pretext", PRETEXT | {"task": task}) for task in TASKS},
    **{f"pretext {task} of sound": ("pretext", PRETEXT | {"task": task, "modality": "audio"}) for task in TASKS[-2:]},
    "neighbour with triplets": ("neighbour", NEAR | {"contrast": "triplet", "far": "negative"}),
    "patch with ranking": ("patch", HEAD | {"tracks": "none", "contrast": "ranking"}),
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
                "pretext": {},
            }
        },
    ),
}

FLOORS: dict[str, float] = {
    "simsiam": -1.0,
    "simsiam across": -1.0,
}  # case: the smallest value of its loss, where that is not 0 (-1 for a negative cosine)


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
    rows_of_patches = getattr(method.options, "over", None) == "rows"
    base = {name: torch.randn((NUM, *shape), generator=own) for name, shape in SHAPES.items()}
    base["patch 2"] = torch.randn(base["patch"].shape, generator=own)  # of another track
    turns = torch.arange(NUM) % 4
    ramp = torch.linspace(-3, 3, 32)  # brighter to the right

    def clean(view: View) -> torch.Tensor:
        """What the encoder could learn from: parts say which they are, turned and hurried clips by how much."""
        ordered = view.name == "order"
        match view.made:
            case Patch():
                return base["patch 2" if view.when.track else "patch"]
            case Rotation():
                return torch.stack([torch.rot90(ramp.expand(3, 2, 32, 32), int(turn), dims=(-2, -1)) for turn in turns])
            case Walk():  # its frames are alike
                return base["walk"].repeat_interleave(3, dim=1)
            case Tiles():
                slopes = torch.linspace(-1, 1, 9).view(9, 1, 1, 1, 1)
                return base["video"][:, None] + slopes * ramp
            case Segments():
                return base["video"][:, None] + ordered * torch.arange(view.made.num).view(-1, 1, 1, 1, 1)
            case AudioSegments():
                return base["audio"][:, None] + ordered * torch.arange(view.made.num).view(-1, 1, 1, 1)
            case Speed() | AudioSpeed():
                plain = base[view.modality]
                return 0.1 * plain + turns.view(NUM, *[1] * (plain.dim() - 1))
            case _ if rows_of_patches:
                return base["video"].repeat(1, 1, 1, 2, 2)
            case _:
                return base[view.modality]

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
        params={
            view.name: {"label": turns[rows]} if isinstance(view.made, Rotation | Speed | AudioSpeed) else {}
            for view in method.views
        },
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
