"""Audio-visual self-supervised learning from folders of unlabeled clips.

model = avssl.load("weights/avid")
found = model.encode(["one.mp4", "two.mp4"])  # found.features["video"]: (2, dim)
sets = avssl.mine(video, audio, k=32)  # embeddings (N, D) -> the clips that resemble each clip in both

docs/tour.ipynb shows all of it. Losses are in `avssl.objectives`.
"""

import importlib
import os

# Before torch starts its threads: those that wait leave the core to the workers that decode, instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"

_PUBLIC = {  # name: module and name there
    "browse": ("avssl.cli.browse", "browse"),
    "clip_loader": ("avssl.data.loader", "clip_loader"),
    "export": ("avssl.weights.export", "export"),
    "load": ("avssl.weights.load", "load"),
    "load_config": ("avssl.config", "load"),
    "mine": ("avssl.mining.agreement", "mine"),
    "push_to_hub": ("avssl.weights.hub", "push_to_hub"),
    "read_manifest": ("avssl.data.manifest", "read_manifest"),
    "read_store": ("avssl.retrieval.store", "read_store"),
    "search": ("avssl.retrieval.search", "search"),
    "store_of_arrays": ("avssl.retrieval.write", "store_of_arrays"),
    "train": ("avssl.training.loop", "train"),
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    """Public names, imported when they are asked for: importing avssl stays light."""
    if name in _PUBLIC:
        module, own = _PUBLIC[name]
        return getattr(importlib.import_module(module), own)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
