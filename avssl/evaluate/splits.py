"""Which rows a protocol learns from and which it is asked about: the splits of a manifest, or folds made of it.

Rows asked about include those whose file cannot be read: what they count for is the protocol's affair, and nothing
takes their place.
"""

import re
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from avssl.data.manifest import Manifest

TEST_SPLITS = ("test", "val", "validation")  # asked about when nothing is said: the first that occurs


@dataclass(frozen=True)
class Split:
    name: str
    train: np.ndarray  # (n,) int64 rows of the manifest, labelled and readable
    test: np.ndarray  # (m,) int64 rows, labelled


def read_splits(manifest: Manifest, *, folds: int | None = None, test_split: str | None = None) -> list[Split]:
    """The official splits (columns split1, split2, ... of train and test), else those of the column split; or folds.

    Args:
        folds: make so many, of whole groups and with about the same share of every class; each is asked about once.
        test_split: name of the rows that are asked about; None = test, or else val or validation.

    Raises:
        ValueError: no labels, fewer than two classes to learn, a side without rows, or fewer groups than folds.
    """
    labels = labels_of(manifest)
    labelled = labels != ""
    if not labelled.any():
        raise ValueError(
            "no clip of the manifest has a label, and this protocol tells classes apart: put clips into a folder per "
            "class, or give labels with datasets/folder.py --list"
        )
    if folds is not None:
        splits = _folds(manifest, labelled, labels, folds)
    else:
        found = [name for name in manifest.table.column_names if re.fullmatch(r"split\d+", name)]
        numbered = sorted(found, key=lambda name: int(name.removeprefix("split")))
        splits = [_named(manifest, name, labelled, test_split) for name in numbered or ["split"]]
    for split in splits:
        classes = set(labels[split.train].tolist())
        if len(classes) < 2:
            raise ValueError(
                f"the readable training clips of {split.name} have {len(classes)} classes "
                f"({', '.join(sorted(classes)) or 'none'}): at least two are needed"
            )
    return splits


def labels_of(manifest: Manifest) -> np.ndarray:
    """(N,) str, empty where a row has no label."""
    return np.array([label or "" for label in manifest.column("label").tolist()])


def _named(manifest: Manifest, column: str, labelled: np.ndarray, test_split: str | None) -> Split:
    values = manifest.column(column)
    known = sorted({value for value in values.tolist() if value})
    asked = test_split or next((name for name in TEST_SPLITS if name in known), TEST_SPLITS[0])
    sides = {name: np.flatnonzero(labelled & (values == name)) for name in ("train", asked)}
    for name, rows in sides.items():
        if not len(rows):
            raise ValueError(
                f"no labelled clip has {column}={name} (there {'is' if len(known) == 1 else 'are'} "
                f"{', '.join(known) or 'none'}): name the side that is asked about with --test-split, or make folds of "
                "all labelled clips with --folds 5"
            )
    train = sides["train"]
    return Split(column, train[manifest.usable()[train]], sides[asked])


def _folds(manifest: Manifest, labelled: np.ndarray, labels: np.ndarray, folds: int) -> list[Split]:
    rows = np.flatnonzero(labelled)
    groups = manifest.column("group")[rows].astype(str)
    num_groups = len(np.unique(groups))
    if not 2 <= folds <= num_groups:
        raise ValueError(
            f"--folds {folds}: expected 2 to {num_groups}, the groups (column group) of the labelled clips, which are "
            "never divided"
        )
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(rows, labels[rows], groups)
    usable = manifest.usable()
    return [
        Split(f"fold{number}", rows[train][usable[rows[train]]], rows[test])
        for number, (train, test) in enumerate(parts, 1)
    ]
