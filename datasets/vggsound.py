"""Write the manifest of VGGSound: about 199,000 YouTube clips of 10 s, 309 classes of sound that are seen and heard.

    avssl datasets vggsound ROOT --out data/vggsound/manifest.parquet
    avssl datasets vggsound ROOT --out data/vggsound/manifest.parquet --download    # the list only, CC BY 4.0

Layout: ROOT/vggsound.csv (YouTube id, start, label, split) and, anywhere below ROOT, clips named <id>_<start> or
<id>_<start>_<end> (seconds, padded or not, or milliseconds), or whole videos named <id>: their rows get start and end.
Audio files are taken where there is no video. split: train or test. group: the YouTube id. The list names
199,467 clips; the owners' own archive held 199,176.
"""

import argparse
import sys
from pathlib import Path

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.download import fetch_file
from avssl.data.recipes.layout import CLIPS, SOUNDS, find_clips
from avssl.data.recipes.lists import read_cells, read_seconds
from avssl.data.recipes.youtube import Listed, match_clips

ADDRESS = "https://raw.githubusercontent.com/hche11/VGGSound/master/data/vggsound.csv"
EXPECTED = {"clips": 199_467, "classes": 309, "split train": 183_971, "split test": 15_496}
SECONDS = 10.0
LAYOUT = "clips are named <YouTube id>_<start>, whole videos <YouTube id>"
HINT = f"put {ADDRESS} in ROOT, call with --download, or name its folder as --lists"


def read_list(path: Path) -> list[Listed]:
    """The clips of vggsound.csv. Raises ManifestError: the list is missing, or a line has another form."""
    clips = []
    for cells in read_cells(path, hint=HINT):
        if len(cells) != 4:
            raise ManifestError(f"{path}: {','.join(cells)!r} is not id,start,label,split: {HINT}")
        id, start, label, split = cells
        seconds = read_seconds(start, where=f"{path}, {id}")
        clips.append(Listed(id, seconds, seconds + SECONDS, {"label": label, "split": split}))
    return clips


def find_rows(given: argparse.Namespace) -> Found:
    """The clips of the list.

    Raises:
        ManifestError: the list is missing.
        DownloadError: it cannot be fetched.
    """
    path = (given.lists or given.root) / "vggsound.csv"
    if given.download:
        fetch_file(ADDRESS, path)
    paths, others = find_clips(given.root, endings=CLIPS | SOUNDS)
    rows, absent, untaken = match_clips(read_list(path), paths)
    return Found(rows, [*untaken, *others], absent, EXPECTED, has_audio=True, may_be_cut=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe(
        "datasets/vggsound.py",
        __doc__,
        find_rows,
        arguments,
        layout=LAYOUT,
        lists="folder of vggsound.csv (default: ROOT)",
        download="vggsound.csv",
    )


if __name__ == "__main__":
    sys.exit(main())
