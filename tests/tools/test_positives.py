"""The table and the picture of positives at miniature size."""

import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import positives
import positives_picture
import pytest
from positives import PARTS_OF_JOINT, ROWS, against_parts, config_of, settings_of, tables, untrained_run

from avssl.data.manifest import Manifest
from avssl.data.tracks import write_tracks
from tests.support.clips import make_set
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
HEAD = ["hidden_dim: 16"]
AGREEMENT = [*HEAD, "num_negatives: 8", "num_positives: 2", "num_negatives_within: 4"]
PARTS = {"avid_cma": AGREEMENT, "neighbour": HEAD, "patch": [*HEAD, "tracks: none", "frames: any"]}
SMALL = [
    *(line for line in TINY if not line.startswith("method.")),
    *("data.patch_size=32", "data.cache_gigabytes=0", "data.clips_per_video=1", "optim.epochs=1"),
]


def write_configs(folder: Path) -> Path:
    """Recipes of miniature size: avid, neighbour and joint."""
    folder.mkdir(parents=True)
    for name, options in {"avid": [*HEAD, "num_negatives: 8"], "neighbour": HEAD, "joint": []}.items():
        lines = ["data:", "  manifest: none", "method:", f"  name: {name}", *(f"  {option}" for option in options)]
        if name == "joint":
            lines.append("  parts:")
            for part, own in PARTS.items():
                lines += [f"    {part}:", *(f"      {option}" for option in own)]
        (folder / f"{name}.yaml").write_text("\n".join([*lines, "run:", "  dir: none", ""]))
    return folder


def track_all(manifest: Manifest, path: Path) -> Path:
    """A table that says a patch in the middle can be followed in every clip."""
    times = [0.0, 0.2, 0.4]
    track = {"track": 0, "times": times, "boxes": [[0.25, 0.25, 0.5, 0.5]] * 3, "confidence": [1.0] * 3, "reason": None}
    rows = [track | {"id": row} for row in range(len(manifest))]
    write_tracks(path, rows, manifest_hash=manifest.hash, options={})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    toy = make_set(folder / "toy", num_train=10, num_test=4)
    make_set(folder / "toy_actions", num_train=4, num_test=4, silent=4)
    track_all(toy, folder / "tracks.parquet")
    return folder


def call(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple:
    """Exit code, what was printed, and what was said."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
    capsys.readouterr()
    code = module.main()
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_table_and_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configs(tmp_path / "configs" / "toy")
    monkeypatch.setattr("avssl.config.shipped", lambda name: tmp_path / name)
    monkeypatch.setattr(positives, "NUM_SCENES", 1)
    monkeypatch.setattr(positives, "SCENE_SIZE", 48)
    out, rows, where = tmp_path / "out", ("random_frames", "neighbour_frames", "joint"), tmp_path / "figures.json"
    words = [data, *SMALL, "--out", out, "--rows", *rows, "--tracks", data / "tracks.parquet", "--seeds"]
    code, printed, said = call(positives, monkeypatch, capsys, *words, 0, "--json", where)
    assert code == 0, said[-2000:]
    for heading in (*(ROWS[row].heading for row in rows), *positives.COLUMNS, "Chance: classes 0.5", "first mask"):
        assert heading in printed
    (found,) = json.loads(where.read_text())
    for row in rows:
        values = [value for group in ("linear", "transfer") for value in found[row][group].values()]
        assert all(0 <= value <= 1 for value in [*values, found[row]["propagation"]["jf"]])
        assert ("both" in found[row]["linear"]) == (row == "joint")  # the others do not hear
        assert found[row] == json.loads((out / row / "seed0.json").read_text())
    steps = {row: (out / row / "seed0" / "log.jsonl").read_text().count('"loss"') for row in rows[1:]}
    assert len(set(steps.values())) == 1  # the same number of steps, and every step is reported

    touched = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    code, printed, said = call(positives, monkeypatch, capsys, *words, 0, 1)
    assert code == 0, said[-2000:]
    assert "±" in printed
    assert {path: path.stat().st_mtime_ns for path in touched} == touched
    (out / "joint" / "seed1.json").unlink()  # stopped between training and measuring: only that is made up for
    run = (out / "joint" / "seed1" / "encoders.safetensors").read_bytes()
    assert call(positives, monkeypatch, capsys, *words, 0, 1)[:2] == (0, printed)
    assert (out / "joint" / "seed1" / "encoders.safetensors").read_bytes() == run

    other = [data, *SMALL, "data.fps=4", *words[1 + len(SMALL) :], 0]
    code, _, said = call(positives, monkeypatch, capsys, *other)
    assert code == 2
    assert "data.fps=5.0, not 4.0: choose another --out" in said

    run, png = out / "joint" / "seed0", tmp_path / "positives.png"
    picture = [run, "--tracks", data / "tracks.parquet", "--out", png]
    code, printed, said = call(positives_picture, monkeypatch, capsys, *picture, "--json")
    assert code == 0, said[-2000:]
    shown = json.loads(printed)
    assert shown["id"] not in [each["id"] for each in [*shown["members"], shown["lookalike"]]]
    agreement = [min(each["video"], each["audio"]) for each in shown["members"]]
    assert agreement == sorted(agreement, reverse=True)
    drawn = cv2.imread(str(png))
    assert 600 < drawn.shape[0] < 1400
    assert 900 < drawn.shape[1] < 1400
    assert np.mean(drawn) > 128  # light
    assert len(np.unique(drawn)) > 100
    other = next(row for row in shown["members"] if row["id"] != shown["id"])["id"]
    code, printed, said = call(positives_picture, monkeypatch, capsys, *picture, "--id", other, "--max-seconds", 0.4)
    assert (code, f"clip {other}" in printed) == (0, True)
    code, _, said = call(positives_picture, monkeypatch, capsys, *picture, "--id", 999)
    assert (code, "clip 999 has no agreement set: choose another --id" in said) == (2, True)
    deaf = [out / "neighbour_frames" / "seed0", *picture[1:]]
    code, _, said = call(positives_picture, monkeypatch, capsys, *deaf)
    assert (code, "has no memory banks" in said) == (2, True)


def test_missing_data_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = call(positives, monkeypatch, capsys, tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert f"make the clips with avssl datasets toy {tmp_path}" in said


def test_rows_differ_in_what_they_say_only() -> None:
    own = ["run.dir=none", "data.manifest=none"]
    configs = {name: config_of(row, overrides=[], own=own, tracks=Path("tracks.parquet")) for name, row in ROWS.items()}
    first = settings_of(configs["avid"])
    allowed = {"neighbour_frames": {"data.num_frames"}, "walk": {"data.num_frames", "data.size"}}
    unseen = ("data.audio", "data.sample", "data.max_offset", "data.spectrogram", "data.num_mels", "data.hop")
    unseen += ("data.volume", "data.n_fft", "data.patch", "model.audio", "method.")
    for name, config in configs.items():
        differing = {key for key, value in settings_of(config).items() if first.get(key, value) != value}
        assert {key for key in differing if not key.startswith(unseen)} == allowed.get(name, set()), name
        assert config.model.init is None
    heard = ("data.audio_seconds", "data.spectrogram", "data.num_mels", "data.sample_rate", "model.audio_width")
    for key in heard:
        assert len({settings_of(configs[name])[key] for name in ("avid", "avid_cma", "joint")}) == 1
    half = str(configs["avid"].optim.epochs // 2)
    assert configs["avid_cma"].method["mine_from_epoch"] == half
    assert configs["joint"].method["parts"]["avid_cma"]["mine_from_epoch"] == half
    assert configs["joint"].method["parts"]["patch"]["tracks"] == configs["patch"].method["tracks"] == "tracks.parquet"


def test_random_towers_are_the_same_with_and_without_ears() -> None:
    own = ["run.dir=none", "data.manifest=none", "run.seed=3"]
    both = [
        untrained_run(config_of(ROWS[name], overrides=[], own=own, tracks=None)) for name in ("random", "random_frames")
    ]
    deaf, hearing = (run.method.encoders["video"].state_dict() for run in both[::-1])
    assert all(value.equal(hearing[name]) for name, value in deaf.items())


def test_joint_against_its_parts() -> None:
    def seed(joint: float, patch: float) -> dict:
        values = dict.fromkeys(PARTS_OF_JOINT, 0.2) | {"patch": patch, "joint": joint}
        return {
            name: {"linear": {}, "transfer": {"video": value}, "chance": {"linear": 0.1, "transfer": 0.2}}
            | {"propagation": {"jf": 0.3, "still_jf": 0.1}}
            for name, value in values.items()
        }

    assert against_parts([seed(0.5, 0.4), seed(0.7, 0.5)]) == [
        "Motions, joint less the best of its parts (patch (tracked)), seed by seed: +0.150 ± 0.071."
    ]
    assert "+0.100." in tables([seed(0.5, 0.4)])
