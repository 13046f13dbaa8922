"""Write the manifest of UCF101: 13,320 clips of 101 actions, three official splits.

    avssl datasets ucf101 ROOT --out data/ucf101/manifest.parquet

Layout: ROOT/UCF-101/<class>/v_<class>_gNN_cNN.avi (UCF101.rar) and ROOT/ucfTrainTestlist/{classInd,trainlist0K,
testlist0K}.txt (UCF101TrainTestSplits-RecognitionTask.zip), K = 1, 2, 3. Copies in other containers are found too.
Columns split1, split2, split3: train or test; split is split1. group: v_<class>_gNN, clips that
share people and background. The lists write HandStandPushups in file names and HandstandPushups in folders, and copies
differ: upper and lower case are the same here. About half of the classes have no sound.
"""

import argparse
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.lists import check_classes, find_inside, match_files, read_lines

EXPECTED = {
    "clips": 13_320,
    "classes": 101,
    "split1 train": 9_537,
    "split1 test": 3_783,
    "split2 train": 9_586,
    "split2 test": 3_734,
    "split3 train": 9_624,
    "split3 test": 3_696,
}
LAYOUT = "clips lie in UCF-101/<class>"
CLIPS_HINT = "unpack UCF101.rar in ROOT (https://www.crcv.ucf.edu/data/UCF101.php)"
LISTS_HINT = (
    "unpack UCF101TrainTestSplits-RecognitionTask.zip in ROOT (https://www.crcv.ucf.edu/data/UCF101.php), or name the "
    "folder of the lists as --lists"
)


def read_classes(path: Path) -> dict[str, tuple[str, str]]:
    """{class in lower case: (class, its number from 1)} of classInd.txt. Raises ManifestError."""
    classes = {}
    for line in read_lines(path, hint=LISTS_HINT):
        if len(line.split()) != 2:
            raise ManifestError(f"{path}: {line.strip()!r} must be a number and a class: {LISTS_HINT}")
        number, label = line.split()
        classes[label.lower()] = (label, number)
    return classes


def read_splits(lists: Path) -> dict[str, dict[str, Any]]:
    """{clip as it is listed: its columns} of the three splits. Raises ManifestError."""
    classes = read_classes(lists / "classInd.txt")
    clips: dict[str, dict[str, Any]] = {}
    for split in (1, 2, 3):
        for part in ("train", "test"):
            path = lists / f"{part}list{split:02d}.txt"
            for line in read_lines(path, hint=LISTS_HINT):
                name, *numbers = line.split()  # the lists of test clips have no number
                label, number = classes.get(name.split("/")[0].lower(), (None, None))
                if label is None or numbers not in ([], [number]):
                    raise ManifestError(
                        f"{path}: {line.strip()!r} is no clip with a class and number of classInd.txt: {LISTS_HINT}"
                    )
                group = PurePosixPath(name).stem.rpartition("_")[0]
                row = clips.setdefault(name, {"label": label, "group": group, "split": None})
                row[f"split{split}"] = part
                row["split"] = row.get("split1")
    return clips


def find_rows(given: argparse.Namespace) -> Found:
    """The clips of the lists. Raises ManifestError that names the first missing folder, list or class."""
    paths, others = find_inside(given.root, "UCF-101", hint=CLIPS_HINT)
    clips = read_splits(given.lists or given.root / "ucfTrainTestlist")
    check_classes(given.root / "UCF-101", {row["label"] for row in clips.values()}, paths, hint=CLIPS_HINT)
    rows, absent, untaken = match_files(clips, paths, key=lambda name: PurePosixPath(name).stem.lower())
    return Found(rows, [*untaken, *others], absent, EXPECTED)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe(
        "datasets/ucf101.py",
        __doc__,
        find_rows,
        arguments,
        layout=LAYOUT,
        lists="folder of classInd.txt (default: ROOT/ucfTrainTestlist)",
    )


if __name__ == "__main__":
    sys.exit(main())
