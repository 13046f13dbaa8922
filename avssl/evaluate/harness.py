"""One protocol over features of a training and a test side: which rows count, which modalities, which classes."""

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
    """Usable rows with a label: of the split where the manifest has splits, else all.

    Raises:
        ValueError: there is none.
    """
    splits = {value for value in manifest.column("split").tolist() if value}
    labels = manifest.column("label")
    rows = np.flatnonzero(manifest.valid(split if splits else None) & np.array([bool(label) for label in labels]))
    if len(rows) == 0:
        raise ValueError(
            f"{path} has no usable labelled clip in split {split} (its splits: {', '.join(sorted(splits)) or 'none'})"
        )
    return rows


def evaluate(protocol: Literal["knn", "linear"], train: Side, test: Side) -> dict[str, Any]:
    """Accuracy of video, audio and both side by side, as far as there is sound on both sides.

    audio and both count the clips with sound only, on either side.

    Returns:
        protocol, accuracy {video, audio, both}, chance (share of the most frequent class of the test side),
        num_train, num_test, num_classes.

    Raises:
        ValueError: no clip of a side could be read.
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
        keep = {
            side: np.ones(len(found.ids), dtype=bool) if name == "video" else found.has_audio
            for side, (_, found) in (("train", train), ("test", test))
        }
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
    counts = np.bincount(targets["test"])
    return {
        "protocol": protocol,
        "accuracy": accuracy,
        "chance": float(counts.max() / counts.sum()),
        "num_train": len(train[1].ids),
        "num_test": len(test[1].ids),
        "num_classes": len(names),
    }
