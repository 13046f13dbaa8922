"""The script of the digits, on clips of the same shape made here."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from avssl.data.manifest import read_manifest
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from tests.support.clips import SPEAKERS, make_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits_script", ROOT / "datasets" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits"))


def made(digits, media: Path, out: Path, *more: str):
    assert digits.main([str(media), str(out), "--workers", "1", *more]) == 0
    return read_manifest(out / "manifest.parquet")


def test_all_clips_as_they_are(digits, media: Path, tmp_path: Path) -> None:
    manifest = made(digits, media, tmp_path)
    assert len(manifest) == 18
    assert manifest.valid().all()
    assert manifest.root == media
    assert set(manifest.column("speaker")) == set(SPEAKERS)
    assert not manifest.column("foreign").any()


def test_fewer_training_clips_of_every_class(digits, media: Path, tmp_path: Path) -> None:
    manifest = made(digits, media, tmp_path, "--num-train", "6")
    train = manifest.column("split") == "train"
    assert train.sum() == 6
    assert np.bincount(manifest.targets()[train]).tolist() == [3, 3]
    assert (~train).sum() == 6
    other = made(digits, media, tmp_path / "other", "--num-train", "6", "--seed", "1")
    assert other.hash != manifest.hash


def test_speakers_left_out_are_heard_in_the_test_only(digits, media: Path, tmp_path: Path) -> None:
    manifest = made(digits, media, tmp_path, "--held-out-speakers", "bob")
    test = manifest.column("split") == "test"
    assert set(manifest.column("speaker")[test]) == {"bob"}
    assert set(manifest.column("speaker")[~test]) == {"ann", "cyd"}
    assert (int(test.sum()), len(manifest)) == (6, 14)  # test clips of the others are left out


def test_a_foreign_sound_is_that_of_a_training_clip_of_another_class(digits, media: Path, tmp_path: Path) -> None:
    manifest = made(digits, media, tmp_path, "--foreign", "0.5")
    foreign = manifest.column("foreign").astype(bool)
    assert foreign.sum() == 6
    assert set(manifest.column("split")[foreign]) == {"train"}
    assert manifest.valid().all()
    assert manifest.has_audio.all()

    def pitch(row: int) -> float:  # the tone of a clip's class: 300 or 800 Hz
        sound = read_clip(manifest.path(row), audio=[AudioWindow(0.2, 0.5, 8000)])[1][0].data
        return float(np.abs(np.fft.rfft(sound)).argmax() / 0.5)

    for row, label in enumerate(manifest.targets()):
        heard = 1 - label if foreign[row] else label
        assert pitch(row) == pytest.approx(300 + 500 * heard, abs=10)
        frames = [
            read_clip(root / manifest.column("path")[row], video=[VideoWindow(0.3, 0.3, 10)])[0][0]
            for root in (media, manifest.root)
        ]
        assert np.array_equal(frames[0].data, frames[1].data)
        assert frames[0].start == frames[1].start


@pytest.mark.parametrize(
    "more, message",
    [
        (["--num-train", "13"], "--num-train 13: expected 1 to 12"),
        (["--foreign", "1.5"], "--foreign 1.5: expected a share"),
        (["--held-out-speakers", "zoe"], "--held-out-speakers zoe: expected some of ann, bob, cyd"),
    ],
)
def test_errors(digits, media: Path, tmp_path: Path, capsys, more: list[str], message: str) -> None:
    assert digits.main([str(media), str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_list_is_refused(digits, tmp_path: Path, capsys) -> None:
    assert digits.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "manifest.csv does not exist" in capsys.readouterr().err
