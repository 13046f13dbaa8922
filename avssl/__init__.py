"""Audio-visual self-supervised learning from folders of unlabelled clips."""

__version__ = "0.1.0"
