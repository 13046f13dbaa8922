"""Write the manifest of the digits: handwritten digits, slowly panned, with spoken digits, paired by class only.

    avssl datasets digits MEDIA OUT                                    # all clips as they are
    avssl datasets digits MEDIA OUT --num-train 1000                   # fewer training clips
    avssl datasets digits MEDIA OUT --foreign 0.3                      # 30 % of training clips with a foreign sound
    avssl datasets digits MEDIA OUT --held-out-speakers lucas theo     # tested on speakers never heard in training

MEDIA holds the clips and manifest.csv with the columns path, label, split, speaker. OUT/manifest.parquet refers to the
clips in MEDIA; with --foreign, to copies in OUT/clips, where some training clips carry the sound of a training clip of
another class (column `foreign`; the label stays that of the picture). With held-out speakers, all their clips become
the test split and those of the others the training split. Exit code: 0 done, 2 wrong call.
"""

import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np

from avssl.data.check import build_table
from avssl.data.manifest import write_manifest
from avssl.files import Parser

COLUMNS = ("path", "label", "split", "speaker")


def read_clips(media: Path) -> list[dict[str, Any]]:
    """The rows of MEDIA/manifest.csv, sorted by path. Raises ValueError."""
    path = media / "manifest.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: MEDIA must be the folder of the digits with its manifest.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}: expected {', '.join(COLUMNS)}")
    return sorted(({name: row[name] for name in COLUMNS} for row in rows), key=lambda row: row["path"])


def hold_out(rows: list[dict[str, Any]], speakers: list[str]) -> list[dict[str, Any]]:
    """All clips of `speakers` as the test split, the training clips of the others as the training split.

    Raises:
        ValueError: a speaker that does not occur.
    """
    known = sorted({row["speaker"] for row in rows})
    for speaker in speakers:
        if speaker not in known:
            raise ValueError(f"--held-out-speakers {speaker}: expected some of {', '.join(known)}")
    if not speakers:
        return rows
    kept = [row for row in rows if row["speaker"] in speakers or row["split"] == "train"]
    return [row | {"split": "test" if row["speaker"] in speakers else "train"} for row in kept]


def fewer(rows: list[dict[str, Any]], num_train: int | None, rng: np.random.Generator) -> list[dict[str, Any]]:
    """`num_train` training clips, the same number of each class as far as it goes; the test clips stay.

    Raises:
        ValueError: there are not as many.
    """
    if num_train is None:
        return rows
    train = [i for i, row in enumerate(rows) if row["split"] == "train"]
    if not 1 <= num_train <= len(train):
        raise ValueError(f"--num-train {num_train}: expected 1 to {len(train)}, the training clips there are")
    shuffled = rng.permutation(train).tolist()
    place: dict[str, int] = {}  # how many of the class came before
    rank = {}
    for i in shuffled:
        rank[i] = place[rows[i]["label"]] = place.get(rows[i]["label"], -1) + 1
    kept = set(sorted(shuffled, key=rank.__getitem__)[:num_train])
    return [row for i, row in enumerate(rows) if row["split"] != "train" or i in kept]


def assign_foreign(rows: list[dict[str, Any]], share: float, rng: np.random.Generator) -> dict[int, int]:
    """Which training clips get whose sound: {row: row of the donor, a training clip of another class}.

    Raises:
        ValueError: share is not in [0, 1], or there is one class only.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--foreign {share}: expected a share in [0, 1]")
    train = np.array([i for i, row in enumerate(rows) if row["split"] == "train"])
    labels = np.array([rows[i]["label"] for i in train])
    if share and len(set(labels.tolist())) < 2:
        raise ValueError(f"--foreign {share}: the training clips have one class only, so no sound is foreign to them")
    chosen = rng.permutation(len(train))[: round(share * len(train))]
    return {int(train[i]): int(rng.choice(train[labels != labels[i]])) for i in np.sort(chosen)}


def replace_sound(picture: Path, sound: Path, out: Path) -> None:
    """The video track of one file with the audio track of another, packets copied as they are."""
    with (
        av.open(str(picture)) as video_file,
        av.open(str(sound)) as audio_file,
        av.open(str(out), "w", options={"fflags": "+bitexact"}) as target,
    ):
        sources = (video_file.streams.video[0], audio_file.streams.audio[0])
        streams = [target.add_stream_from_template(source) for source in sources]
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.container.demux(source):
                if packet.dts is not None:  # the last packet of demux is empty
                    packet.stream = stream
                    target.mux(packet)


def copy_clips(rows: list[dict[str, Any]], donors: dict[int, int], *, media: Path, out: Path) -> None:
    """OUT/<path> for every row, with the donor's sound where there is one."""
    for i, row in enumerate(rows):
        path = out / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if i in donors:
            replace_sound(media / row["path"], media / rows[donors[i]]["path"], path)
        else:
            shutil.copyfile(media / row["path"], path)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, prog="datasets/digits.py")
    parser.add_argument("media", metavar="MEDIA", type=Path, help="folder of the digits")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--num-train", type=int, help="training clips to keep (default: all)")
    parser.add_argument("--foreign", type=float, default=0.0, help="share of training clips with a foreign sound")
    parser.add_argument("--held-out-speakers", nargs="+", default=[], metavar="NAME", help="heard in the test only")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--workers", type=int, default=2, help="processes that probe the clips")
    given = parser.parse_args(arguments)
    try:
        rng = np.random.default_rng(given.seed)
        rows = fewer(hold_out(read_clips(given.media), given.held_out_speakers), given.num_train, rng)
        donors = assign_foreign(rows, given.foreign, rng)
        root = given.media
        if donors:
            root = given.out / "clips"
            copy_clips(rows, donors, media=given.media, out=root)
        rows = [row | {"foreign": i in donors} for i, row in enumerate(rows)]
        table = build_table(root, rows, num_workers=given.workers)
        write_manifest(given.out / "manifest.parquet", table, root=root)
    except (ValueError, OSError) as error:  # FFmpeg's errors are one or the other
        print(f"error: {error}", file=sys.stderr)
        return 2
    splits = [row["split"] for row in rows]
    print(
        f"{splits.count('train')} training clips, {len(donors)} with a foreign sound; {splits.count('test')} test "
        f"clips -> {given.out / 'manifest.parquet'}",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
