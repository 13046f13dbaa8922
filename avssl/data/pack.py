"""Clips of a manifest packed into tar files, as WebDataset has them: few large files instead of many small ones."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
from tqdm import tqdm

from avssl.data.manifest import Manifest, write_manifest
from avssl.data.prepare import MANIFEST
from avssl.files import atomic_write, digest, folder_lock
from avssl.media import shards
from avssl.media.probe import content_key

TOLD = ("path", "label", "split", "group", "start", "end")  # of a clip's rows, in the JSON beside it


def pack(manifest: Manifest, target: Path, *, clips_per_shard: int) -> tuple[int, int]:
    """Write TARGET/000000.tar and so on, and TARGET/manifest.parquet with the same rows in the same order.

    A clip is two members, KEY.mp4 and KEY.json with its rows; KEY is its path without dots, at which WebDataset ends a
    key. Rows without a file are kept. A shard is written whole or not at all, and again only where it would differ.

    Args:
        manifest: of files; those that are in shards already are packed anew.

    Returns:
        How many clips and shards there are.

    Raises:
        OSError: a clip cannot be read.
        LockedError: another process writes there.
        WriteError: the folder cannot be written to.
    """
    table = manifest.table
    rows: dict[str, list[dict[str, Any]]] = {}
    told = table.select([name for name in TOLD if name in table.column_names]).to_pylist()
    for row in told:
        rows.setdefault(row["path"], []).append(row)
    clips = [path for path in rows if shards.is_file(manifest.root / path)]
    keys = name_keys(clips)
    names = {}
    with folder_lock(target), tqdm(total=len(clips), desc="packing", unit="clip") as bar:
        groups = [clips[i : i + clips_per_shard] for i in range(0, len(clips), clips_per_shard)]
        for number, group in enumerate(groups):
            shard = target / f"{number:06d}.tar"
            inside = {clip: keys[clip] + PurePosixPath(clip).suffix.lower() for clip in group}
            names |= {clip: f"{shard.name}/{name}" for clip, name in inside.items()}
            _write_shard(shard, manifest.root, inside, rows)
            bar.update(len(group))
        for old in target.glob("[0-9]*.tar"):  # of a call before, with more of them
            if old.stem.isdigit() and int(old.stem) >= len(groups):
                old.unlink()
        paths = pa.array([names.get(path, path) for path in table.column("path").to_pylist()], pa.string())
        place = table.column_names.index("path")
        write_manifest(target / MANIFEST, table.set_column(place, table.schema.field(place), paths), root=target)
    return len(clips), len(groups)


def name_keys(clips: Sequence[str]) -> dict[str, str]:
    """{clip: its key}: a/b.c.mp4 becomes a/b_c, with a digest of the path behind it where two would be equal when case
    is ignored."""
    keys, taken = {}, set()
    for clip in clips:
        path = PurePosixPath(clip)
        key = path.with_suffix("").as_posix().replace(".", "_")
        if key.casefold() in taken:
            key = f"{key}-{digest(clip, num_bytes=8)}"
        taken.add(key.casefold())
        keys[clip] = key
    return keys


def _write_shard(shard: Path, root: Path, inside: Mapping[str, str], rows: Mapping[str, Any]) -> None:
    """Headers without times and owners, so that the same clips are the same bytes."""
    texts = {clip: json.dumps({"rows": rows[clip]}, ensure_ascii=False).encode() for clip in inside}
    stamp = digest(*((name, content_key(root / clip), texts[clip]) for clip, name in inside.items()))
    if _stamp_of(shard) == stamp:
        return
    with (
        atomic_write(shard) as temporary,
        tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": stamp}) as file,
    ):
        for clip, name in inside.items():
            with shards.open_part(root / clip) as source:
                _add(file, name, source, shards.locate(root / clip).size)
            text = texts[clip]
            _add(file, str(PurePosixPath(name).with_suffix(".json")), io.BytesIO(text), len(text))


def _add(file: tarfile.TarFile, name: str, source: BinaryIO, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    file.addfile(member, io.BufferedReader(source))


def _stamp_of(shard: Path) -> str | None:
    """Digest of what a shard was written from; None where there is none, or a damaged one."""
    try:
        shards.members(shard)
        with tarfile.open(shard, "r:") as file:
            return file.pax_headers.get("comment")
    except (OSError, tarfile.TarError):
        return None
