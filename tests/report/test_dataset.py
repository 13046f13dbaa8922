"""What the page says of a set: rows by split and case, reasons with names, and what data.policy leaves out."""

import re
from pathlib import Path

import pytest

from avssl.config import DataConfig, PolicyConfig
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.quarantine import Entry, add_to_quarantine
from avssl.report.dataset import MAX_REASONS, NUM_NAMED, dataset_parts
from tests.support.clips import make_set

FIRST = 5  # row of the first training clip: those of the test come before


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """8 training clips (2 silent), 4 test clips (2 silent), a sound alone in each; the first one to train on is in
    quarantine."""
    folder = tmp_path_factory.mktemp("mixed")
    made = make_set(folder, num_train=8, num_test=4, silent=2, sound_only=1)
    path, key = (made.table.column(name)[FIRST].as_py() for name in ("path", "content_key"))
    add_to_quarantine(folder / "manifest.parquet", Entry(path, key, "killed <its> worker"))
    return read_manifest(folder / "manifest.parquet")


def cells(page: str, name: str) -> list[str]:
    line = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', page)
    assert line, name
    return re.findall(r"<td[^>]*>(.*?)</td>", line[1])


def test_a_set_in_numbers(mixed: Manifest) -> None:
    data = DataConfig(manifest="", policy=PolicyConfig(silent="skip", no_audio="skip"), num_frames=2, audio_seconds=0.5)
    page = "".join(dataset_parts(mixed, data, num_trained=5))
    assert cells(page, "all")[:2] == ["9", "5"]
    assert cells(page, "without audio")[:3] == ["2", "2", "skip"]
    assert cells(page, "audio only")[:3] == ["1", "1", "skip"]
    assert cells(page, "in quarantine") == ["1", "0", "skip", str(mixed.column("path")[FIRST])]
    assert cells(page, "quarantined") == ["killed &lt;its&gt; worker", "1", str(mixed.column("path")[FIRST])]
    assert "5 clips of data.split=train were trained on. The manifest has 14 rows: 0.00 hours of video" in page
    assert "2 classes, 14 rows with a label" in page
    assert "Left out of this split by data.policy: 1 in quarantine, 1 audio only, 2 without audio." in page


def test_a_set_that_would_be_refused_today(mixed: Manifest) -> None:
    data = DataConfig(manifest="", policy=PolicyConfig(quarantined="error"))
    assert "data.policy today would refuse this set: data.policy.quarantined=error" in "".join(
        dataset_parts(mixed, data, num_trained=5)
    )


def test_many_reasons_are_counted_and_few_named(mixed: Manifest, tmp_path: Path) -> None:
    table = mixed.table
    for name, value in (("status", ["unreadable"] * 14), ("reason", ["cut"] * 4 + [f"reason {i}" for i in range(10)])):
        table = table.set_column(table.column_names.index(name), name, [value])
    page = "".join(dataset_parts(Manifest(table, mixed.root), DataConfig(manifest=""), num_trained=5))
    first = re.search(r'<th scope="row">unreadable</th>(.*?)</tr>', page.split("Files that cannot be used")[2])[1]
    assert re.findall(r"<td[^>]*>(.*?)</td>", first)[:2] == ["cut", "4"]
    assert first.count(".mp4") + first.count(".mp3") == NUM_NAMED
    assert first.endswith(", ...</td>")
    assert MAX_REASONS >= 11
