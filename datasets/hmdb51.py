"""Write the manifest of HMDB51: 6,766 clips of 51 actions from films, three official splits.

    avssl datasets hmdb51 ROOT --out data/hmdb51/manifest.parquet

Layout: ROOT/hmdb51_org/<class>/<clip>.avi (hmdb51_org.rar holds one rar for each class: unpack all into folders of
their own) and ROOT/testTrainMulti_7030_splits/<class>_test_splitK.txt (test_train_splits.rar), K = 1, 2, 3. Copies in
other containers are found too. Columns split1, split2, split3: train, test, or null where the official split leaves a
clip out; split is split1. group: the film, as the file name begins with it. Names hold #, &, !, ; and brackets, and
metadata inside of the files is not always UTF-8. Many clips have no sound. The paper counts 6,849 clips, the published
lists and archives 6,766.
"""

import argparse
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.lists import check_classes, find_inside, match_files, read_lines

EXPECTED = {"clips": 6_766, "classes": 51} | {
    f"split{split} {part}": number for split in (1, 2, 3) for part, number in (("train", 3_570), ("test", 1_530))
}
PARTS = {"0": None, "1": "train", "2": "test"}
LAYOUT = "clips lie in hmdb51_org/<class>"
SITE = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
CLIPS_HINT = f"unpack hmdb51_org.rar, then the rar of each class in it, into hmdb51_org/<class> ({SITE})"
LISTS_HINT = f"unpack test_train_splits.rar in ROOT ({SITE}), or name the folder of the lists as --lists"
# <film>_<class>_<visible part>_<camera motion>_np<people>_<side>_<quality>_<number>
TAGS = re.compile(r"_[fhlu]_[cn]m_np\d+_(ba|fr|le|ri)_(bad|goo|med)_\d+$")


def film(clip: str, label: str) -> str:
    """The film that a clip is from, as its name begins with it; the whole name where it has another form."""
    return TAGS.sub("", PurePosixPath(clip).stem).removesuffix(f"_{label}")


def class_and_name(path: str) -> str:
    """<class>/<clip> without ending."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-2:])


def read_splits(lists: Path) -> dict[str, dict[str, Any]]:
    """{<class>/<clip>: its columns} of the three splits of all classes. Raises ManifestError."""
    labels = {path.name.rpartition("_test_split")[0] for path in lists.glob("*_test_split[123].txt")}
    if not labels:
        raise ManifestError(f"{lists} holds no list such as brush_hair_test_split1.txt: {LISTS_HINT}")
    clips: dict[str, dict[str, Any]] = {}
    for label in sorted(labels):
        for split in (1, 2, 3):
            path = lists / f"{label}_test_split{split}.txt"
            for line in read_lines(path, hint=LISTS_HINT):
                *name, part = line.rsplit(maxsplit=1)
                if not name or part not in PARTS:
                    raise ManifestError(f"{path}: {line.strip()!r} must be a clip and 0, 1 or 2: {LISTS_HINT}")
                clip = f"{label}/{name[0]}"
                row = clips.setdefault(clip, {"label": label, "group": film(clip, label)})
                row[f"split{split}"] = PARTS[part]
                row["split"] = row.get("split1")
    return clips


def find_rows(given: argparse.Namespace) -> Found:
    """The clips of the lists. Raises ManifestError that names the first missing folder, list or class."""
    paths, others = find_inside(given.root, "hmdb51_org", hint=CLIPS_HINT)
    clips = read_splits(given.lists or given.root / "testTrainMulti_7030_splits")
    check_classes(given.root / "hmdb51_org", {row["label"] for row in clips.values()}, paths, hint=CLIPS_HINT)
    rows, absent, untaken = match_files(clips, paths, key=class_and_name)
    return Found(rows, [*untaken, *others], absent, EXPECTED)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe(
        "datasets/hmdb51.py",
        __doc__,
        find_rows,
        arguments,
        layout=LAYOUT,
        lists="folder of the lists (default: ROOT/testTrainMulti_7030_splits)",
    )


if __name__ == "__main__":
    sys.exit(main())
