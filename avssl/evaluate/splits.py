"""Training and test rows: the splits of a manifest, or folds of it. Unreadable rows are included."""

import re
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from avssl.data.manifest import Manifest

TEST_SPLITS = ("test", "val", "validation")  # the first that occurs is the default test split


@dataclass(frozen=True)
class Split:
    name: str
    train: np.ndarray  # (n,) int64 labeled rows of the manifest
    test: np.ndarray  # (m,) int64 labeled rows


def read_splits(manifest: Manifest, *, folds: int | None = None, test_split: str | None = None) -> list[Split]:
    """The official splits (columns split1, split2, ...), else the column split; or folds.

    Args:
        folds: number of stratified folds of whole groups; each is the test part once.
        test_split: name of the test rows; None = test, val or validation.

    Raises:
        ValueError: no labels, fewer than two training classes, no train or test rows, or fewer groups than folds.
    """
    labels = labels_of(manifest)
    labeled = labels != ""
    if not labeled.any():
        raise ValueError(
            "no clip of the manifest has a label, and this protocol tells classes apart: put clips into a folder per "
            "class, or give labels with datasets/folder.py --list"
        )
    if folds is not None:
        splits = _folds(manifest, labeled, labels, folds)
    else:
        found = [name for name in manifest.table.column_names if re.fullmatch(r"split\d+", name)]
        numbered = sorted(found, key=lambda name: int(name.removeprefix("split")))
        splits = [_named(manifest, name, labeled, test_split) for name in numbered or ["split"]]
    usable = manifest.usable()
    for split in splits:
        classes = set(labels[split.train[usable[split.train]]].tolist())
        if len(classes) < 2:
            raise ValueError(
                f"the readable training clips of {split.name} have {len(classes)} classes "
                f"({', '.join(sorted(classes)) or 'none'}): at least two are needed"
            )
    return splits


def labels_of(manifest: Manifest) -> np.ndarray:
    """(N,) str, empty where a row has no label."""
    return np.array([label or "" for label in manifest.column("label").tolist()])


def groups_of(manifest: Manifest) -> np.ndarray:
    """(N,) str groups that are never divided; the path where none is given."""
    pairs = zip(manifest.column("group").tolist(), manifest.column("path").tolist(), strict=True)
    return np.array([group or path for group, path in pairs])


def _named(manifest: Manifest, column: str, labeled: np.ndarray, test_split: str | None) -> Split:
    values = manifest.column(column)
    known = sorted({value for value in values[labeled].tolist() if value})
    if test_split == "train":
        raise ValueError("--test-split train: training clips cannot be test clips")
    test = test_split or next((name for name in TEST_SPLITS if name in known), TEST_SPLITS[0])
    rows_of = {name: np.flatnonzero(labeled & (values == name)) for name in ("train", test)}
    for name, rows in rows_of.items():
        if not len(rows):
            raise ValueError(
                f"no labeled clip has {column}={name} (there {'is' if len(known) == 1 else 'are'} "
                f"{', '.join(known) or 'none'}): name the test rows with --test-split, or make folds of all "
                "labeled clips with --folds 5"
            )
    return Split(column, rows_of["train"], rows_of[test])


def _folds(manifest: Manifest, labeled: np.ndarray, labels: np.ndarray, folds: int) -> list[Split]:
    rows = np.flatnonzero(labeled)
    groups = groups_of(manifest)[rows]
    most = max(np.unique(labels[rows], return_counts=True)[1])
    limits = {"groups (column group), which are never divided": len(np.unique(groups)), "clips of a class": most}
    for of, limit in limits.items():
        if not 2 <= folds <= limit:
            raise ValueError(f"--folds {folds}: expected 2 to {limit}, as there are no more {of}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class may have fewer clips than there are folds
        parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(rows, labels[rows], groups))
    return [Split(f"fold{number}", rows[train], rows[test]) for number, (train, test) in enumerate(parts, 1)]
