"""Write the manifest of AVE: 4,143 events of 28 classes that are seen and heard, in YouTube clips of 10 s.

    avssl datasets ave ROOT --out data/ave/manifest.parquet

Layout: ROOT/AVE/<YouTube id>.mp4 and ROOT/{Annotations,trainSet,valSet,testSet}.txt, as AVE_Dataset.zip unpacks. A row
is an event: start and end are its seconds in the clip, null where the list gives it no length. One clip may hold
several events, so there are fewer files than events; two events at the same seconds are one row. label: the class, of
such a row the first; labels: all. split: train, val or test. group: the YouTube id.
"""

import argparse
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from avssl.data.manifest import ManifestError
from avssl.data.recipes.build import Found, run_recipe
from avssl.data.recipes.lists import find_inside, read_lines, read_seconds

HEADER = "Category&VideoID&Quality&StartTime&EndTime"
EXPECTED = {"clips": 4_143, "classes": 28, "split train": 3_339, "split val": 402, "split test": 402}
LAYOUT = "clips lie in AVE"
HINT = "ROOT must be what AVE_Dataset.zip unpacks to (https://github.com/YapengTian/AVE-ECCV18)"


def read_events(path: Path) -> list[tuple[str, str, float, float]]:
    """(YouTube id, class, start, end) of each line. Raises ManifestError."""
    events = []
    for line in read_lines(path, hint=HINT):
        if line.strip() == HEADER:
            continue
        cells = line.strip().split("&")
        if len(cells) != 5:
            raise ManifestError(f"{path}: {line.strip()!r} is not {HEADER}: {HINT}")
        label, id, _, start, end = cells
        events.append((id, label, *(read_seconds(cell, where=f"{path}, {id}") for cell in (start, end))))
    return events


def find_rows(given: argparse.Namespace) -> Found:
    """The events of the three lists whose clips are there. Raises ManifestError."""
    root = given.root
    paths, others = find_inside(root, "AVE", hint=HINT)
    files = {PurePosixPath(path).stem: path for path in paths}
    known = {label for _, label, _, _ in read_events(root / "Annotations.txt")}
    rows: dict[tuple[str, float, float], dict[str, Any]] = {}
    absent, listed = [], set()
    for split in ("train", "val", "test"):
        for id, label, start, end in read_events(root / f"{split}Set.txt"):
            if label not in known:
                raise ManifestError(f"{root / f'{split}Set.txt'}: class {label!r} is not in Annotations.txt: {HINT}")
            listed.add(id)
            if id not in files:
                absent.append(f"{id} ({label})")
                continue
            part = {"start": start, "end": end} if end > start else {}
            new = {"path": files[id], "group": id, "label": label, "labels": [], "split": split} | part
            rows.setdefault((files[id], start, end), new)["labels"].append(label)
    untaken = [path for id, path in files.items() if id not in listed]
    return Found([rows[key] for key in sorted(rows)], [*untaken, *others], absent, EXPECTED, has_audio=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when a clip is usable, 1 when none is, 2 when the call is wrong."""
    return run_recipe("datasets/ave.py", __doc__, find_rows, arguments, layout=LAYOUT)


if __name__ == "__main__":
    sys.exit(main())
