"""Training and test rows: the splits of a manifest, or folds of it. Unreadable rows are included."""

import re
import warnings
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from sklearn.model_selection import StratifiedGroupKFold

from avssl.data.manifest import Manifest

FOLDS = 5  # where no clip has a split
TEST_SPLITS = ("test", "val", "validation")  # the first that occurs is the default test split


@dataclass(frozen=True)
class Split:
    name: str
    train: np.ndarray  # (n,) int64 labeled rows of the manifest
    test: np.ndarray  # (m,) int64 labeled rows
    unlabeled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # rows left out


def read_splits(manifest: Manifest, *, folds: int | None = None, test_split: str | None = None) -> list[Split]:
    """The official splits (columns split1, split2, ...), else the column split; or folds.

    Args:
        folds: number of stratified folds of whole groups; each is the test part once. None = at most FOLDS where no
            clip has a split and `test_split` is None.
        test_split: name of the test rows; None = test, val or validation.

    Raises:
        ValueError: no labels, fewer than two training classes, no train or test rows, or fewer groups than folds.
    """
    labels = np.array([each[0] if each else "" for each in manifest.label_sets])
    labeled = labels != ""
    if not labeled.any():
        raise ValueError(
            "no clip of the manifest has a label, and this protocol tells classes apart: put clips into a folder per "
            "class, or give labels with avssl scan --list; how often clips find their own sound, avssl report RUN says"
        )
    found = [name for name in manifest.table.column_names if re.fullmatch(r"split\d+", name)]
    if folds is None and test_split is None and not found and not any(manifest.column("split")):
        most = max(np.unique(labels[labeled], return_counts=True)[1])
        folds = max(2, min(FOLDS, most, len(np.unique(groups_of(manifest)[labeled]))))
    if folds is not None:
        splits = _folds(manifest, labeled, labels, folds)
    else:
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


def groups_of(manifest: Manifest) -> np.ndarray:
    """(N,) str groups that are never divided; the path where none is given."""
    pairs = zip(manifest.column("group").tolist(), manifest.column("path").tolist(), strict=True)
    return np.array([group or path for group, path in pairs])


def grouped_by(manifest: Manifest, by: str) -> Manifest:
    """The manifest with other groups.

    Args:
        by: folder = the folder that a file lies in; else a regular expression that finds the group in a path: its first
            parentheses, or all that it matches.

    Raises:
        ValueError: no regular expression, or a path in which it finds nothing.
    """
    paths = manifest.column("path").tolist()
    if by == "folder":
        groups = [PurePosixPath(path).parent.as_posix() for path in paths]
    else:
        try:
            found = [re.search(by, path) for path in paths]
        except re.error as error:
            raise ValueError(f"--group {by} is no regular expression ({error}), and not the word folder") from error
        groups = [match and match[1 if match.re.groups else 0] for match in found]
        if not all(groups):
            lost = paths[next(i for i, group in enumerate(groups) if not group)]
            raise ValueError(f"--group {by} finds nothing in {lost}: it must name the group of every file")
    column = manifest.table.column_names.index("group")
    return Manifest(manifest.table.set_column(column, "group", pa.array(groups, pa.string())), manifest.root)


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
    unlabeled = np.flatnonzero(~labeled & ((values == "train") | (values == test)))
    return Split(column, rows_of["train"], rows_of[test], unlabeled)


def _folds(manifest: Manifest, labeled: np.ndarray, labels: np.ndarray, folds: int) -> list[Split]:
    rows = np.flatnonzero(labeled)
    groups = groups_of(manifest)[rows]
    most = max(np.unique(labels[rows], return_counts=True)[1])
    if len(np.unique(groups)) > 1 and len({*zip(labels[rows], groups, strict=True)}) == len(np.unique(labels[rows])):
        raise ValueError(
            f"--folds {folds}: all clips of each class are one group, so that no fold can be learned from the others: "
            "choose other groups (--group, column group)"
        )
    limits = {"groups (column group), which are never divided": len(np.unique(groups)), "clips of a class": most}
    for of, limit in limits.items():
        if not 2 <= folds <= limit:
            raise ValueError(f"--folds {folds}: expected 2 to {limit}, as there are no more {of}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class may have fewer clips than there are folds
        parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(rows, labels[rows], groups))
    lost = np.flatnonzero(~labeled)
    return [Split(f"fold{number}", rows[train], rows[test], lost) for number, (train, test) in enumerate(parts, 1)]
