"""Clips in tar files: the same clips, the same training, and what is wrong with a shard is said."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from avssl.data.check import build_table
from avssl.data.manifest import Manifest, ManifestError, read_manifest, write_manifest
from avssl.data.pack import name_keys, pack
from avssl.data.recipes.layout import find_clips, label_clips
from avssl.media import shards
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.decoders import DecoderMissingError, describe
from avssl.media.probe import probe
from avssl.media.reader import DecodeError
from avssl.training.checkpoint import LAST
from avssl.training.loop import train
from tests.support.clips import make_clip, make_sound
from tests.support.runs import Call, config, equal_models


@pytest.fixture(scope="module")
def packed(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The 18 clips of `clip_set` in 4 shards."""
    folder = tmp_path_factory.mktemp("shards")
    assert pack(clip_set, folder, clips_per_shard=5) == (18, 4)
    return read_manifest(folder / "manifest.parquet")


def test_rows_are_the_same_but_for_their_path(clip_set: Manifest, packed: Manifest) -> None:
    assert packed.table.drop(["path"]).equals(clip_set.table.drop(["path"]))
    paths = packed.column("path").tolist()
    assert paths[0] == f"000000.tar/{clip_set.column('path')[0]}"
    assert [path.split("/")[0] for path in paths] == [f"{row // 5:06d}.tar" for row in range(18)]


def test_every_byte_and_frame_is_that_of_the_file(clip_set: Manifest, packed: Manifest) -> None:
    windows = {
        "video": [VideoWindow(start=0.3, duration=0.5, fps=10.0)],
        "audio": [AudioWindow(start=0.1, duration=0.6, sample_rate=8000)],
    }
    for row in range(0, 18, 4):
        one, other = clip_set.path(row), packed.path(row)
        assert probe(one) == probe(other)
        with shards.open_part(other) as file:
            assert file.read() == one.read_bytes()
            file.seek(-5, 2)
            assert (file.read(9), file.tell()) == (one.read_bytes()[-5:], one.stat().st_size)
        (frames,), (samples,) = read_clip(one, **windows)
        (shard_frames,), (shard_samples,) = read_clip(other, **windows)
        np.testing.assert_array_equal(shard_frames.data, frames.data)
        np.testing.assert_array_equal(shard_samples.data, samples.data)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_other_decoders_read_shards_too(decoder: str, clip_set: Manifest, packed: Manifest) -> None:
    try:
        describe(decoder)
    except DecoderMissingError as error:
        pytest.skip(str(error))
    windows = [VideoWindow(0.2, 0.8, 10.0)]
    found = [read_clip(each.path(3), video=windows, decoder=decoder)[0][0].data for each in (clip_set, packed)]
    np.testing.assert_array_equal(*found)
    assert found[0].std() > 10


def test_training_from_shards_is_bit_equal(clip_set: Manifest, packed: Manifest, tmp_path: Path) -> None:
    for name, manifest in (("files", clip_set), ("shards", packed)):
        train(config(manifest, tmp_path / name, "optim.epochs=1", "data.num_workers=1"))
    assert equal_models(tmp_path / "files" / LAST, tmp_path / "shards" / LAST)


def test_shards_are_those_of_webdataset(clip_set: Manifest, packed: Manifest) -> None:
    """A sample is a run of members with one name up to its first dot."""
    with tarfile.open(packed.root / "000001.tar") as file:
        names = file.getnames()
        words = json.load(file.extractfile(names[1]))
        assert {member.mtime for member in file} == {0}
    assert [name.partition(".")[::2] for name in names[:2]] == [("test/1/005", "mp4"), ("test/1/005", "json")]
    expected = {"path": "test/1/005.mp4", "label": "1", "split": "test", "start": None, "end": None}
    assert words == {"rows": [expected | {"group": "test/1/005.mp4"}]}
    assert len(names) == 10


def test_keys_have_no_dots_and_are_told_apart() -> None:
    keys = name_keys(["a/b.c.mp4", "a/b_c.mp4", "a/B_C.avi", "x.y/z.mp4"])
    assert keys["a/b.c.mp4"] == "a/b_c"
    assert keys["x.y/z.mp4"] == "x_y/z"
    assert len({key.casefold() for key in keys.values()}) == 4
    assert all(key.startswith("a/b_c-") for key in (keys["a/b_c.mp4"], keys["a/B_C.avi"].lower()))


def test_only_what_changed_is_written_again(tmp_path: Path) -> None:
    for number in range(5):
        make_clip(tmp_path / "clips" / f"{number}.mp4", 0, number)
    rows = label_clips(find_clips(tmp_path / "clips")[0])
    write_manifest(tmp_path / "m.parquet", build_table(tmp_path / "clips", rows), root=tmp_path / "clips")
    target = tmp_path / "out"

    def again(clips_per_shard: int) -> dict[str, int]:
        pack(read_manifest(tmp_path / "m.parquet"), target, clips_per_shard=clips_per_shard)
        return {path.name: path.stat().st_ino for path in sorted(target.glob("*.tar"))}

    first = again(2)
    assert list(first) == ["000000.tar", "000001.tar", "000002.tar"]
    assert again(2) == first
    make_clip(tmp_path / "clips" / "2.mp4", 1, 9)
    second = again(2)
    assert [name for name in first if first[name] != second[name]] == ["000001.tar"]
    assert list(again(3)) == ["000000.tar", "000001.tar"]
    content = (target / "000001.tar").read_bytes()
    (target / "000001.tar").write_bytes(content[: len(content) // 2])
    again(3)
    assert (target / "000001.tar").read_bytes() == content


def test_what_is_wrong_with_a_shard_is_said(packed: Manifest, tmp_path: Path) -> None:
    content = (packed.root / "000000.tar").read_bytes()
    cut, text = tmp_path / "cut.tar", tmp_path / "text.tar"
    cut.write_bytes(content[: len(content) // 2])
    text.write_text("no tar file")
    whole = tmp_path / "whole.tar"
    whole.write_bytes(content)
    inside = shards.members(whole)
    for path, message in (
        (cut / inside[-2], "the shard is damaged"),
        (text / "a.mp4", "the shard is damaged: .*uncompressed tar file"),
        (whole / "none.mp4", "the file does not exist"),
        (tmp_path / "lost.tar" / "a.mp4", "the file does not exist"),
    ):
        with pytest.raises(DecodeError, match=message):
            read_clip(path, video=[VideoWindow(0.0, 0.1, 10.0)])
    assert read_clip(cut / inside[0], video=[VideoWindow(0.0, 0.1, 10.0)])[0][0].data.any()  # before the cut
    with pytest.raises(ManifestError, match=r"cut\.tar: the shard is damaged: .* mend it or move it away"):
        find_clips(tmp_path)


def test_a_folder_of_shards_is_scanned(packed: Manifest, tmp_path: Path) -> None:
    clips, others = find_clips(packed.root)
    assert clips == sorted(packed.column("path").tolist())
    assert others == ["manifest.parquet"]
    rows = label_clips(["a/000.tar/dog/1.mp4", "000.tar/2.mp4"])
    assert [row["label"] for row in rows] == ["dog", None]
    (tmp_path / "folder.tar").mkdir()
    make_clip(tmp_path / "folder.tar" / "1.mp4", 0, 1)
    assert find_clips(tmp_path)[0] == ["folder.tar/1.mp4"]


def test_a_clip_that_could_not_be_prepared_keeps_its_row_and_reason(tmp_path: Path, call: Call) -> None:
    make_clip(tmp_path / "clips" / "a.mp4", 0, 1)
    make_sound(tmp_path / "clips" / "b.mp3", 1, 2)
    (tmp_path / "clips" / "b.mp3").rename(tmp_path / "clips" / "b.mp4")
    (tmp_path / "clips" / "c.mp4").write_text("no clip")
    done = call("tools/prepare.py", tmp_path / "clips", tmp_path / "copies", "--shards", 5, "--workers", 1)
    assert done.code == 1
    assert "2 packed into 1 tar files" in done.out
    manifest = tmp_path / "copies-shards" / "manifest.parquet"
    before = read_manifest(manifest)
    assert before.column("path").tolist() == ["000000.tar/a.mp4", "000000.tar/b.mp4", "c.mp4"]
    assert "no media file" in before.column("reason")[2]
    call("tools/check.py", manifest, "--fix-manifest", "--workers", 1)
    after = read_manifest(manifest)
    assert [after.column(name)[2] for name in ("status", "reason")] == ["unreadable", before.column("reason")[2]]


def test_prepare_packs_its_copies(clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    done = call(
        "tools/prepare.py", clip_set.root, tmp_path / "copies", "--shards", 7, "--workers", 1, "--short-side", 32
    )
    assert done.code == 0, done.err
    assert "18 packed into 3 tar files" in done.out
    found = read_manifest(tmp_path / "copies-shards" / "manifest.parquet")
    assert len(found) == 18
    assert found.usable().all()
    call("tools/prepare.py", clip_set.root, tmp_path / "copies", "--shards", 0).refused("--shards 0 must be at least 1")
