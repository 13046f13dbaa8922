"""Classify a single file with a trained classifier."""

from pathlib import Path

import numpy as np

from avssl.data.check import manifest_of_file
from avssl.evaluate.heads import head_scores
from avssl.weights.features import clip_vectors
from avssl.weights.load import Pretrained


def predict(pretrained: Pretrained, path: str | Path, *, num_clips: int = 10, num_crops: int = 3) -> dict[str, float]:
    """{class: mean softmax over clips spread over a file, and crops of each}, in the order of the classifier; mean
    sigmoid where a file may have several classes.

    Raises:
        ValueError: the file cannot be read, or lacks the classifier's modality.
    """
    classifier = pretrained.classifier
    found = clip_vectors(
        pretrained,
        manifest_of_file(Path(path)),
        [0],
        num_clips=num_clips,
        num_crops=num_crops,
        maps=classifier.stage != "pool",
    )
    if found.errors:
        raise ValueError(found.errors[0])
    if not found.has(classifier.modality)[0]:
        needs = "video and audio" if classifier.modality == "both" else classifier.modality
        raise ValueError(f"the classifier needs {needs}, which this file lacks")
    vectors = np.asarray(found.maps(classifier.modality, np.array([0]))[classifier.stage])
    return dict(zip(classifier.classes, head_scores(classifier, vectors)[0].tolist(), strict=True))
