"""Which rows are learned from and which are asked about."""

import numpy as np
import pyarrow as pa
import pytest

from avssl.data.manifest import Manifest
from avssl.evaluate.harness import Labels
from avssl.evaluate.splits import grouped_by, groups_of, read_splits
from tests.support.clips import manifest_of, rows_of


def test_official_splits_come_before_the_column_split() -> None:
    rows = rows_of(
        6,
        label=list("ababab"),
        split=["train"] * 6,
        split2=["train", "train", "test", None, "train", "test"],
        split1=["test", "test", "train", "train", "train", "train"],
        split10=["train", "train", "train", "train", "test", "test"],
    )
    rows[4]["status"], rows[5]["status"] = "no_frames", "no_frames"
    found = read_splits(manifest_of(rows))
    assert [split.name for split in found] == ["split1", "split2", "split10"]
    assert found[0].train.tolist() == [2, 3, 4, 5]  # unreadable ones too: they are counted
    assert found[0].test.tolist() == [0, 1]
    assert found[1].test.tolist() == [2, 5]
    assert found[2].test.tolist() == [4, 5]


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_the_column_split(name: str) -> None:
    rows = rows_of(5, label=["a", "b", "a", None, "b"], split=["train", "train", name, "train", "other"])
    (split,) = read_splits(manifest_of(rows))
    assert (split.train.tolist(), split.test.tolist()) == ([0, 1], [2])
    (split,) = read_splits(manifest_of(rows), test_split="other")
    assert split.test.tolist() == [4]


def test_folds_divide_no_group_and_ask_about_every_clip_once() -> None:
    groups = [f"g{i // 2}" for i in range(40)]
    rows = rows_of(40, label=["ab"[i // 2 % 2] for i in range(40)], group=groups)
    manifest = manifest_of(rows)
    found = read_splits(manifest, folds=5)
    assert [split.name for split in found] == [f"fold{i}" for i in range(1, 6)]
    assert sorted(np.concatenate([split.test for split in found])) == list(range(40))
    for split in found:
        assert not {groups[i] for i in split.train} & {groups[i] for i in split.test}
        assert sorted([*split.train, *split.test]) == list(range(40))
        assert 0.4 <= np.mean([rows[i]["label"] == "a" for i in split.test]) <= 0.6
    again = read_splits(manifest, folds=5)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(
    "columns, options, match",
    [
        ({"label": [None] * 4, "split": ["train"] * 4}, {}, "no clip of the manifest has a label"),
        (
            {"label": list("abab"), "split": [None] * 4},
            {"test_split": "test"},
            "no labeled clip has split=train .there are none.*--folds",
        ),
        ({"label": list("abab"), "split": ["train"] * 4}, {}, "split=test .there is train.*--test-split"),
        ({"label": list("aabb"), "split": ["train", "train", "test", "test"]}, {}, r"of split have 1 classes \(a\)"),
        (
            {"label": list("abab"), "group": list("xxyy")},
            {"folds": 3},
            "--folds 3: expected 2 to 2, as there are no more groups",
        ),
        ({"label": list("abab")}, {"folds": 1}, "--folds 1"),
        ({"label": list("aabb")}, {"folds": 3}, "--folds 3: expected 2 to 2, as there are no more clips of a class"),
        ({"label": list("abab"), "split": ["train"] * 4}, {"test_split": "train"}, "--test-split train: training"),
    ],
)
def test_what_cannot_be_asked(columns: dict, options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read_splits(manifest_of(rows_of(4, **columns)), **options)


def test_hidden_labels_of_a_test_side_leave_val() -> None:
    rows = rows_of(6, label=["a", "b", "a", "b", None, None], split=["train", "train", "val", "val", "test", "test"])
    (split,) = read_splits(manifest_of(rows))
    assert split.test.tolist() == [2, 3]


def test_a_clip_without_a_group_is_one_of_its_own() -> None:
    manifest = manifest_of(rows_of(8, label=list("abababab")))
    place = manifest.table.column_names.index("group")
    unknown = Manifest(manifest.table.set_column(place, "group", pa.nulls(8, pa.string())), manifest.root)
    assert len(read_splits(unknown, folds=4)) == 4
    assert len(set(Labels(unknown, read_splits(unknown, folds=2)).groups)) == 8


def test_a_rare_class_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert len(read_splits(manifest_of(rows_of(9, label=list("aaaabbbbc"))), folds=3)) == 3
    assert not len(recwarn)


@pytest.mark.parametrize(
    "by, wanted",
    [
        ("folder", ["fight/v1", "fight/v1", "walk", "."]),
        (r"v\d", ["v1", "v1", "v2", "v3"]),
        (r"(\d)[_.]", ["1", "2", "2", "9"]),
    ],
)
def test_groups_by_folder_or_by_what_a_path_says(by: str, wanted: list[str]) -> None:
    names = ["fight/v1/1_a.mp4", "fight/v1/2.mp4", "walk/v2_7.mp4", "v3-9.mp4"]
    manifest = manifest_of([{"path": name, "group": "x"} for name in names])
    found = grouped_by(manifest, by)
    assert groups_of(found).tolist() == wanted
    assert found.hash == manifest.hash


@pytest.mark.parametrize(
    "by, match",
    [
        ("[", r"--group \[ is no regular expression"),
        ("^0", "--group .0 finds nothing in 10.mp4: it must name the group of every file"),
        ("()", "finds nothing in 00.mp4"),
    ],
)
def test_groups_that_cannot_be_made(by: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        grouped_by(manifest_of(rows_of(12)), by)


def test_classes_that_are_one_group_each_make_no_folds() -> None:
    manifest = manifest_of(rows_of(8, label=list("aabbccdd"), group=list("wwxxyyzz")))
    with pytest.raises(ValueError, match="--folds 2: all clips of each class are one group"):
        read_splits(manifest, folds=2)


def test_rows_without_a_label_are_counted() -> None:
    rows = rows_of(8, label=["a", "b", None, "a", "", "b", None, None], split=["train"] * 4 + ["test"] * 3 + [None])
    (split,) = read_splits(manifest_of(rows))
    assert split.unlabeled.tolist() == [2, 4, 6]
    assert all(split.unlabeled.tolist() == [2, 4, 6, 7] for split in read_splits(manifest_of(rows), folds=2))


def test_a_row_with_several_labels_needs_no_first_one() -> None:
    rows = rows_of(
        4, label=[None, "a", "b", "a"], labels=[["b", "c"], [], None, ["c", "a"]], split=["train"] * 2 + ["test"] * 2
    )
    manifest = manifest_of(rows)
    assert manifest.label_sets == [("b", "c"), ("a",), ("b",), ("a", "c")]
    (split,) = read_splits(manifest)
    assert split.train.tolist() == [0, 1]
    assert Labels(manifest, [split]).classes == ["a", "b", "c"]
    as_text = manifest_of(rows_of(2, labels=["a;b", "c"]))
    with pytest.raises(ValueError, match="column labels holds string, expected lists of names"):
        as_text.label_sets  # noqa: B018
