"""Audio-visual self-supervised learning from folders of unlabeled clips.

model = avssl.load("weights/avid")
found = model.encode(["one.mp4", "two.mp4"])  # found.features["video"]: (2, dim)

sets = avssl.mine(video, audio, k=32)  # embeddings (N, D) -> the clips that resemble each clip in both
"""

import importlib

__version__ = "0.2.0"

_PUBLIC = {"load": "avssl.weights.load", "mine": "avssl.mining.agreement"}  # name: where it is


def __getattr__(name: str) -> object:
    """Public names, imported when they are asked for: importing avssl stays light."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
