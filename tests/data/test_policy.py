"""Which rows are in which case, and which of them a run trains on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from avssl.config import Config, ConfigError, PolicyConfig, dumps, loads
from avssl.data.manifest import SCHEMA, Manifest
from avssl.data.policy import TITLES, admit, cases, num_slow

GOOD = {
    "path": "a.mp4",
    "split": "train",
    "status": "ok",
    "reason": "",
    "has_audio": True,
    "content_key": "k",
    "video_start": 0.0,
    "video_end": 10.0,
    "audio_start": 0.0,
    "audio_end": 10.0,
    "duration": 10.0,
    "rotation": 0,
}
SILENT = {"has_audio": False}
NO_AUDIO = {"has_audio": False, "audio_start": None, "audio_end": None}
NO_VIDEO = {"status": "no_video", "video_start": None, "video_end": None, "duration": None, "rotation": None}
FINDINGS = {
    "cut_off_at": pa.float64(),
    "damaged_at": pa.float64(),
    "jump_at": pa.float64(),
    "holes": pa.list_(pa.list_(pa.float64())),
    "variable_rate": pa.bool_(),
    "duplicate_of": pa.string(),
}


def manifest(*rows: dict[str, Any], checked: bool = True) -> Manifest:
    rows = [GOOD | {"path": f"{i}.mp4"} | row for i, row in enumerate(rows)]
    types = dict(zip(SCHEMA.names, SCHEMA.types, strict=True)) | (FINDINGS if checked else {})
    table = pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()})
    return Manifest(table, Path("clips"))


def settings(*lines: str) -> Config:
    policy = "".join(f"\n    {line}" for line in lines)
    return loads(f"data:\n  manifest: m\n  policy:{policy or ' {}'}\nrun: {{dir: x}}")


@pytest.mark.parametrize(
    "row, expected",
    [
        ({}, set()),
        ({"status": "missing"}, {"unreadable"}),
        ({"status": "exchanged", "duplicate_of": "b", "rotation": 90}, {"unreadable"}),  # and in no further case
        ({"status": "timeout"}, {"unreadable"}),
        ({"status": "quarantined"}, {"quarantined"}),
        (NO_VIDEO, {"no_video"}),
        (NO_VIDEO | NO_AUDIO, {"unreadable"}),  # neither picture nor sound
        (NO_VIDEO | {"audio_end": 1.5}, {"no_video", "short"}),
        (NO_AUDIO, {"no_audio"}),
        (NO_AUDIO | {"video_end": 1.5}, {"no_audio", "short"}),
        (SILENT, {"silent"}),
        (SILENT | {"audio_end": 1.0, "video_start": 1.0}, {"silent"}),  # silence is missed nowhere
        ({"video_end": 1.95, "audio_end": 1.95}, set()),
        ({"video_end": 1.85, "audio_end": 1.95}, {"short"}),
        ({"video_end": 2.0, "audio_end": 1.8}, {"short"}),
        ({"start": 3.0, "end": 4.0}, {"short"}),
        ({"start": 8.5}, {"short"}),
        ({"start": 3.0, "end": 5.0}, set()),
        ({"video_start": 0.15}, set()),
        ({"video_start": 0.25}, {"late_start"}),
        ({"video_start": 0.25, "start": 1.0}, set()),  # judged by its own part of the file
        ({"audio_start": 0.4}, set()),
        ({"rotation": 270}, {"rotated"}),
        ({"audio_end": 9.6}, set()),
        ({"audio_end": 9.4}, {"unequal_length"}),
        ({"video_end": 9.4}, {"unequal_length"}),
        ({"audio_end": 9.4, "end": 9.0}, set()),
        ({"cut_off_at": 6.0}, {"cut_off"}),
        ({"cut_off_at": 6.0, "end": 6.0}, set()),
        ({"damaged_at": 0.0}, {"damaged"}),
        ({"damaged_at": 6.0, "start": 1.0, "end": 5.0}, set()),
        ({"jump_at": 4.0}, {"jumps"}),
        ({"jump_at": 4.0, "end": 4.0}, set()),
        ({"holes": [[4.0, 7.0]]}, {"holes"}),
        ({"holes": [[4.0, 7.0]], "end": 4.0}, set()),
        ({"holes": [[4.0, 7.0]], "start": 7.0}, set()),
        ({"holes": []}, set()),
        ({"variable_rate": True}, {"variable_rate"}),
        ({"variable_rate": False}, set()),
        ({"duplicate_of": "b.mp4"}, {"duplicate"}),
    ],
)
def test_cases_of_a_row(row: dict[str, Any], expected: set[str]) -> None:
    found = cases(manifest({}, row, {}), 2.0)
    assert {case for case, rows in found.items() if rows[1]} == expected
    assert not any(rows[0] or rows[2] for rows in found.values())


def test_there_is_a_policy_and_a_title_for_every_case() -> None:
    assert list(PolicyConfig.model_fields) == list(TITLES) == list(cases(manifest({}), 2.0))


def test_what_only_the_doctor_knows_is_in_no_case_before() -> None:
    found = cases(manifest({}, SILENT, checked=False), 2.0)
    assert {case for case, rows in found.items() if rows.any()} == {"silent"}


def test_defaults_leave_out_what_cannot_be_used_and_count_the_rest() -> None:
    rows = [{}, SILENT, {"status": "crashed"}, {"duplicate_of": "0.mp4"}, NO_VIDEO, {"status": "quarantined"}]
    rows += [{"duplicate_of": "1.mp4"} | SILENT, {"split": "test", "status": "empty"}, NO_AUDIO]
    admitted = admit(manifest(*rows), settings().data)
    assert admitted.valid.tolist() == [True, True, *[False] * 6, True]
    assert admitted.skipped == {"unreadable": 1, "quarantined": 1, "no_video": 1, "duplicate": 2}
    assert admitted.masked == {"no_audio": 1, "silent": 1}  # those trained on
    assert admitted.describe() == (
        "left out: 1 unreadable, 1 quarantined, 1 no_video, 2 duplicate; trained on: 1 no_audio, 1 silent"
    )
    assert admit(manifest({}), settings().data).describe() == "left out: none; trained on: none"


def test_skip_and_mask_are_chosen_per_case() -> None:
    rows = manifest({}, SILENT, NO_VIDEO, {"duplicate_of": "0.mp4"}, {"cut_off_at": 3.0, "has_audio": False})
    chosen = settings("silent: skip", "no_video: mask", "duplicate: mask").data
    admitted = admit(rows, chosen)
    assert admitted.valid.tolist() == [True, False, True, True, False]
    assert (admitted.skipped, admitted.masked) == ({"silent": 2}, {"no_video": 1, "duplicate": 1})


def test_rows_of_every_split_count_without_one() -> None:
    data = settings().data.replace(split=None)
    assert np.array_equal(admit(manifest({}, {"split": "test"}, {"split": None}), data).valid, [True] * 3)


def test_short_is_judged_by_the_longer_window_of_the_run() -> None:
    rows = manifest({"video_end": 1.0, "audio_end": 1.0})
    data = settings("short: skip").data
    assert (data.num_frames / data.fps, data.audio_seconds) == (0.5, 2.0)
    assert not admit(rows, data).valid.any()
    data = data.replace(audio_seconds=0.5)
    assert admit(rows, data).valid.all()
    assert not admit(rows, data.replace(num_frames=32)).valid.any()


def test_error_names_the_count_the_first_file_and_the_way_out() -> None:
    rows = manifest({}, SILENT, SILENT, SILENT | {"split": "test"})
    message = (
        r"data\.policy\.silent=error, and 2 clips of data\.split=train are with a silent audio track, first "
        r"clips/1\.mp4: fix or remove them, or set data\.policy\.silent to skip or mask"
    )
    with pytest.raises(ConfigError, match=message):
        admit(rows, settings("silent: error").data)
    with pytest.raises(ConfigError, match=r"1 clips .* unreadable, first .*1\.mp4: .*policy\.unreadable to skip$"):
        admit(manifest({}, {"status": "empty"}), settings("unreadable: error").data)
    assert admit(manifest({}, {"split": "test"} | SILENT), settings("silent: error").data).valid.tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ("silent: drop", r"data\.policy\.silent=drop in .*expected one of error, skip, mask"),
        ("unreadable: mask", r"data\.policy\.unreadable=mask in .*expected one of error, skip$"),
        ("quarantined: mask", r"data\.policy\.quarantined=mask in .*expected one of error, skip$"),
        ("silnt: skip", r"unknown key data\.policy\.silnt in .*did you mean silent\?"),
    ],
)
def test_wrong_policies_are_named(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(line)


def test_policy_round_trip() -> None:
    config = settings("silent: skip", "cut_off: error")
    assert loads(dumps(config)) == config
    assert (config.data.policy.silent, config.data.policy.cut_off, config.data.policy.short) == (
        "skip",
        "error",
        "mask",
    )


def test_long_files_without_an_index_are_counted() -> None:
    rows = [{"path": f"{i}.{end}", "duration": seconds} for i, (end, seconds) in enumerate([
        ("mpg", 2400.0), ("VOB", 2400.0), ("mpg", 20.0), ("mpg.mp4", 2400.0), ("mpeg", 2400.0), ("mpeg", None),
    ])]  # fmt: skip
    assert num_slow(manifest(*rows), np.array([True, True, True, True, False, True])) == 2
