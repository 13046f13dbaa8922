"""Write the manifest of AudioSet: 2.1 million YouTube clips of 10 s with one or more of 527 classes of sound.

    avssl datasets audioset ROOT --out data/audioset/manifest.parquet
    avssl datasets audioset ROOT --out data/audioset/manifest.parquet --download    # the lists only, CC BY 4.0

Layout: ROOT/class_labels_indices.csv, any of ROOT/{balanced_train,unbalanced_train,eval}_segments.csv and, anywhere
below ROOT, clips named <YouTube id>_<start> or <id>_<start>_<end> (seconds, padded or not, or milliseconds), or whole
videos named <id>: their rows get start and end. Audio files are taken where there is no video.

labels: the names of all classes of a clip; label: the first of them, for what takes one class only. part: which list;
split: test for eval, else train. group: the YouTube id.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.download import fetch_file
from avssl.data.recipes.layout import CLIPS, SOUNDS, find_clips
from avssl.data.recipes.lists import read_cells, read_csv, read_seconds
from avssl.data.recipes.youtube import Listed, match_clips

ADDRESS = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
CLASSES = "class_labels_indices.csv"
SPLITS = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}
EXPECTED = {"classes": 527, "part balanced_train": 22_160, "part unbalanced_train": 2_041_789, "part eval": 20_371}
LAYOUT = "clips are named <YouTube id>_<start>, whole videos <YouTube id>"
HINT = (
    "put the lists of https://research.google.com/audioset/download.html in ROOT, call with --download, or name their "
    "folder as --lists"
)


def read_segments(path: Path, names: dict[str, str], part: str) -> Iterator[Listed]:
    """The clips of one list.

    Args:
        path: of the list: comments, then id, start, end, "mid,mid,...".
        names: {mid: name of the class}.
        part: which list it is.

    Raises:
        ManifestError: the list cannot be read, a line has another form, or a class has no name.
    """
    for cells in read_cells(path, hint=HINT):
        if len(cells) != 4:
            raise ManifestError(f"{path}: {','.join(cells)!r} is not id,start,end,labels: {HINT}")
        id, *times, mids = cells
        start, end = (read_seconds(text, where=f"{path}, {id}") for text in times)
        unknown = [mid for mid in mids.split(",") if mid not in names]
        if unknown:
            raise ManifestError(f"{path}, {id}: class {unknown[0]!r} is not in {CLASSES}: {HINT}")
        labels = [names[mid] for mid in mids.split(",")]
        yield Listed(id, start, end, {"label": labels[0], "labels": labels, "split": SPLITS[part], "part": part})


def find_rows(given: argparse.Namespace) -> Found:
    """The clips of all lists that are there. Raises ManifestError that names the first missing list, DownloadError."""
    lists = given.lists or given.root
    files = {part: f"{part}_segments.csv" for part in SPLITS}
    if given.download:
        for name in (CLASSES, *files.values()):
            fetch_file(f"{ADDRESS}/{name}", lists / name)
    names = {
        row["mid"]: row["display_name"]
        for row in read_csv(lists / CLASSES, ("index", "mid", "display_name"), hint=HINT)
    }
    there = [part for part in SPLITS if (lists / files[part]).is_file()]
    if not there:
        raise ManifestError(f"{lists / files['balanced_train']} does not exist, nor do the other lists: {HINT}")
    paths, others = find_clips(given.root, endings=CLIPS | SOUNDS)
    listed = (clip for part in there for clip in read_segments(lists / files[part], names, part))
    rows, absent, untaken = match_clips(listed, paths)
    return Found(rows, [*untaken, *others], absent, EXPECTED, has_audio=True, may_be_cut=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe(
        "datasets/audioset.py",
        __doc__,
        find_rows,
        arguments,
        layout=LAYOUT,
        lists="folder of the lists (default: ROOT)",
        download="the lists",
    )


if __name__ == "__main__":
    sys.exit(main())
