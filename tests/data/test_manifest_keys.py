"""Keys tell instances apart, whatever the file is called, and stay for training copies of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from avssl.data.manifest import SCHEMA, Manifest


def manifest(rows: list[dict[str, Any]], **further: list[Any]) -> Manifest:
    table = pa.Table.from_pylist([dict.fromkeys(SCHEMA.names) | row for row in rows], schema=SCHEMA)
    for name, values in further.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return Manifest(table, Path("clips"))


def row(path: str, key: str | None, start: float | None = None, end: float | None = None) -> dict[str, Any]:
    return {"path": path, "content_key": key, "start": start, "end": end}


def test_the_same_part_of_the_same_file_has_the_same_key() -> None:
    first = manifest([row("a.mp4", "k1"), row("b.mp4", "k2", 1.0, 2.0), row("c.mp4", "k1")])
    assert first.keys.dtype == np.int64
    assert len(set(first.keys.tolist())) == 3  # a copy is an instance of its own
    other = manifest([row("new.mp4", "k9"), row("x/renamed.mov", "k2", 1.0, 2.0), row("y.mp4", "k1")])
    assert other.keys[1] == first.keys[1]
    assert other.keys[2] == first.keys[0]
    assert other.keys[0] not in first.keys
    copies = manifest(
        [row("a.mp4", "z1"), row("b.mp4", "z2", 1.0, 2.0), row("c.mp4", "z1")], source_key=["k1", "k2", "k1"]
    )
    assert np.array_equal(copies.keys, first.keys)
    assert copies.hash != first.hash


def test_other_parts_and_files_that_were_not_there_have_other_keys() -> None:
    rows = [row("b.mp4", "k", 1.0, 2.0)] * 11  # the last is the tenth copy
    rows += [row("b.mp4", "k", 1.0, 2.01), row("b.mp4", "k", 1.0), row("b.mp4", "k", None, 1.0), row("b.mp4", "k")]
    rows += [row("lost/a.mp4", None), row("lost/b.mp4", None)]
    assert len(set(manifest(rows).keys.tolist())) == len(rows)
