"""A quick probe of averaged features: which rows count, which modalities, which classes; harness.py does it in full."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from avssl.data.manifest import Manifest
from avssl.evaluate.classify import linear_predict
from avssl.evaluate.features import Extracted
from avssl.evaluate.knn import knn_predict

Side = tuple[Manifest, Extracted]


def labelled_rows(manifest: Manifest, split: str | None, *, path: Path) -> np.ndarray:
    """Usable rows with a label, files of sound alone included: of the split where the manifest has splits, else all.

    Raises:
        ValueError: there is none.
    """
    splits = {value for value in manifest.column("split").tolist() if value}
    labels = manifest.column("label")
    rows = np.flatnonzero(manifest.usable(split if splits else None) & np.array([bool(label) for label in labels]))
    if len(rows) == 0:
        raise ValueError(
            f"{path} has no usable labelled clip in split {split} (its splits: {', '.join(sorted(splits)) or 'none'})"
        )
    return rows


def probe(protocol: Literal["knn", "linear"], train: Side, test: Side) -> dict[str, Any]:
    """Accuracy of video, audio and both side by side, as far as both sides have them.

    video counts the clips with pictures, audio those with sound, both those with both, on either side.

    Returns:
        protocol, accuracy {video, audio, both}, chance (share of the most frequent class of the test side),
        num_train, num_test (clips of either kind), num_classes, without_sound and without_picture {train, test}: how
        many clips audio and video left out; none for a run that has no tower for sound.

    Raises:
        ValueError: no clip of a side could be read, or one has no pictures and the other no sound.
    """
    for side, (manifest, found) in (("training", train), ("test", test)):
        if not len(found.ids):
            first = next(iter(found.errors.values()), "none was asked for")
            raise ValueError(
                f"no clip of the {side} side could be read (first: {first}): is {manifest.root} the folder of the "
                "clips?"
            )
    names = sorted({str(manifest.column("label")[row]) for manifest, found in (train, test) for row in found.ids})
    targets = {
        side: np.array([names.index(str(manifest.column("label")[row])) for row in found.ids])
        for side, (manifest, found) in (("train", train), ("test", test))
    }
    groups = np.array([str(train[0].column("group")[row]) for row in train[1].ids])
    accuracy = {}
    for name in ("video", "audio", "both"):
        keep = {side: found.has(name) for side, (_, found) in (("train", train), ("test", test))}
        if not (keep["train"].any() and keep["test"].any()):
            continue
        features = {
            side: (found.both() if name == "both" else found.features[name])[keep[side]]
            for side, (_, found) in (("train", train), ("test", test))
        }
        known, wanted = targets["train"][keep["train"]], targets["test"][keep["test"]]
        if protocol == "knn":
            predicted = knn_predict(
                *(torch.from_numpy(x) for x in (features["train"], known, features["test"]))
            ).numpy()
        else:
            predicted, _ = linear_predict(features["train"], known, features["test"], groups=groups[keep["train"]])
        accuracy[name] = float((predicted == wanted).mean())
    if not accuracy:
        raise ValueError(
            "the clips of one side have no pictures and those of the other no sound, so there is nothing to compare: "
            "choose manifests or splits that share a side"
        )
    counts = np.bincount(targets["test"])
    sides = {"train": train[1], "test": test[1]}
    return {
        "protocol": protocol,
        "accuracy": accuracy,
        "chance": float(counts.max() / counts.sum()),
        "num_train": len(train[1].ids),
        "num_test": len(test[1].ids),
        "num_classes": len(names),
        "without_sound": {
            side: int((~found.has_audio).sum()) if "audio" in found.towers else 0 for side, found in sides.items()
        },
        "without_picture": {side: int((~found.has_video).sum()) for side, found in sides.items()},
    }
