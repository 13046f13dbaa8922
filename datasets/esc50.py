"""Write the manifest of ESC-50: 2,000 sounds of 5 s in 50 classes, five official folds. Audio only.

    avssl datasets esc50 ROOT --out data/esc50/manifest.parquet
    avssl datasets esc50 ROOT --out data/esc50/manifest.parquet --download    # 600 MB from GitHub, CC BY-NC

Layout: ROOT/ESC-50-master/{audio/<sound>.wav, meta/esc50.csv}, as GitHub's archive unpacks. Columns split1 ... split5:
test where the sound is in that fold, else train; split is split1. group: the recording on freesound.org that a sound is
cut from. Every row has the status no_video.
"""

import argparse
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.download import fetch_zip
from avssl.data.recipes.layout import SOUNDS
from avssl.data.recipes.lists import find_inside, match_files, read_csv

ADDRESS = "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"
FOLDS = ("1", "2", "3", "4", "5")
EXPECTED = {"clips": 2_000, "classes": 50} | {f"split{fold} test": 400 for fold in FOLDS}
LAYOUT = "sounds lie in ESC-50-master/audio"
HINT = f"unpack {ADDRESS} in ROOT, or call with --download"


def read_meta(path: Path) -> dict[str, dict[str, Any]]:
    """{file name: its columns} of esc50.csv. Raises ManifestError."""
    clips = {}
    for row in read_csv(path, ("filename", "fold", "category", "src_file"), hint=HINT):
        if row["fold"] not in FOLDS:
            raise ManifestError(f"{path}: {row['filename']} is in fold {row['fold']!r}: expected 1 to 5; {HINT}")
        splits = {f"split{fold}": "test" if row["fold"] == fold else "train" for fold in FOLDS}
        columns = {"label": row["category"], "group": row["src_file"], "split": splits["split1"]}
        clips[row["filename"]] = columns | splits
    return clips


def find_rows(given: argparse.Namespace) -> Found:
    """The sounds of the list. Raises ManifestError that names the first missing folder or list, DownloadError."""
    folder = given.root / "ESC-50-master"
    if given.download:
        fetch_zip(ADDRESS, folder)
    paths, others = find_inside(given.root, "ESC-50-master/audio", endings=SOUNDS, hint=HINT)
    clips = read_meta(folder / "meta" / "esc50.csv")
    rows, absent, untaken = match_files(clips, paths, key=lambda name: PurePosixPath(name).name)
    return Found(rows, [*untaken, *others], absent, EXPECTED)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe(
        "datasets/esc50.py",
        __doc__,
        find_rows,
        arguments,
        layout=LAYOUT,
        download="the whole set from GitHub (600 MB, CC BY-NC)",
    )


if __name__ == "__main__":
    sys.exit(main())
