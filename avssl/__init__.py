"""Audio-visual self-supervised learning from folders of unlabeled clips.

model = avssl.load("weights/avid")
features = model.encode("clip.mp4")
"""

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """`load`, imported when it is asked for: importing avssl stays light."""
    if name == "load":
        from avssl.weights.load import load

        return load
    raise AttributeError(f"module {__name__} has no attribute {name}")
