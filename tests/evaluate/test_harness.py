"""What counts as right, wrong and unanswered, on vectors whose answers are known."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, average_precision_score, normalized_mutual_info_score

from avssl.evaluate import table
from avssl.evaluate.classify import cluster, draw_few, svm_scores
from avssl.evaluate.harness import Labels, compute_metrics, count_missing, evaluate_split, find_similar
from avssl.evaluate.metrics import (
    average_precision_of,
    bootstrap,
    chance_average_precision,
    chance_gallery_recall,
    gallery_hits,
    partition_of,
    purity,
)
from avssl.evaluate.protocols import Options
from avssl.evaluate.splits import Split
from avssl.mining.votes import knn_votes
from avssl.weights.features import ClipVectors
from tests.support.clips import manifest_of, rows_of

CPU = torch.device("cpu")
NUM, NUM_TRAIN = 60, 40
UNREADABLE, MUTE = [45, 50], [3, 46, 50]  # rows; 50 is both: it cannot be read, so nothing is known of its sound
SPLIT = Split("split", np.arange(NUM_TRAIN), np.arange(NUM_TRAIN, NUM))


@pytest.fixture(scope="module")
def labels() -> Labels:
    rows = rows_of(NUM, label=["abc"[i % 3] for i in range(NUM)], group=[f"g{i // 2}" for i in range(NUM)])
    return Labels(manifest_of(rows), [SPLIT])


@pytest.fixture(scope="module")
def vectors() -> ClipVectors:
    """Both sides tell the class exactly; 2 clips x 2 crops of pictures, 2 clips of sound."""
    rng = np.random.default_rng(0)
    readable = ~np.isin(np.arange(NUM), UNREADABLE)
    has_audio = readable & ~np.isin(np.arange(NUM), MUTE)

    def modality(views: int, present: np.ndarray) -> np.ndarray:
        exact = 5 * np.eye(6)[np.arange(NUM) % 3][:, None] + 0.3 * rng.normal(size=(NUM, views, 6)) + 1
        return (exact * present[:, None, None]).astype(np.float32)

    video, audio = modality(4, readable), modality(2, has_audio)
    unit = [each / np.maximum(np.linalg.norm(each, axis=2, keepdims=True), 1e-12) for each in (video, audio)]
    return ClipVectors(
        ids=np.arange(NUM),
        readable=readable,
        has_audio=has_audio,
        has_video=readable,
        vectors={"video": {"conv1": rng.normal(size=(NUM, 4, 3)).astype(np.float32), "pool": video},
                 "audio": {"pool": audio}},
        embedding=dict(zip(("video", "audio"), unit, strict=True)),
        errors={row: f"{row} is damaged" for row in UNREADABLE},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["knn", "linear", "svm", "fewlabels", "retrieval"])
@pytest.mark.parametrize("skip", [False, True])
def test_what_has_no_answer_counts_as_wrong_or_not_at_all(
    protocol: str, skip: bool, vectors: ClipVectors, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avssl.evaluate.heads.MIN_STEPS", 100)
    part = evaluate_split(protocol, vectors, labels, SPLIT, Options(shares=(0.2,), draws=3), device=CPU)
    found = compute_metrics([part], labels, skip_unreadable=skip)
    suffix = {"fewlabels": " 20%", "retrieval": " R@1"}.get(protocol, "")
    unanswered = {"video": 2, "audio": 3, "both": 3, "video to audio": 2, "audio to video": 3}
    modalities = ["video", "audio", *(["video to audio", "audio to video"] if protocol == "retrieval" else ["both"])]
    for modality in modalities:
        figure, lost = found[f"{modality}{suffix}"], unanswered[modality]
        assert figure["unanswered"] == lost
        assert figure["num"] == (20 - lost if skip else 20)
        assert figure["mean"] == pytest.approx(1 if skip else 1 - lost / 20), modality
        low, high = figure["interval"]
        assert low <= figure["mean"] <= high
        if not skip:
            assert low < 1
        if protocol in ("knn", "linear", "svm"):
            table = np.array(figure["confusion"])
            assert table.sum() == figure["num"]
            assert table[:, -1].sum() == (0 if skip else lost)
            assert np.trace(table[:, :-1]) == 20 - lost
        assert 0.28 < figure["chance"] < 0.45
        if protocol == "fewlabels":
            assert np.mean(figure["draws"]) == pytest.approx(figure["mean"])  # on one scale
    assert all(len(figure["splits"]) == 1 for figure in found.values())


def test_counts_of_what_is_lacking(vectors: ClipVectors) -> None:
    assert count_missing([(vectors, SPLIT.test)]) == {
        "clips": 20, "unreadable": 2, "without_audio": 1, "without_video": 0
    }  # fmt: skip
    twice = [(vectors, SPLIT.test), (vectors, np.arange(30, NUM))]
    assert count_missing(twice)["clips"] == 30


def test_figures_over_splits_are_means_with_a_spread(vectors: ClipVectors, labels: Labels) -> None:
    other = Split("split2", np.arange(20, NUM), np.arange(20))
    parts = [evaluate_split("knn", vectors, labels, split, Options(k=3), device=CPU) for split in (SPLIT, other)]
    figure = compute_metrics(parts, labels, skip_unreadable=False)["video"]
    assert [split["value"] for split in figure["splits"]] == [0.9, 1.0]
    assert figure["mean"] == pytest.approx(0.95)
    assert figure["spread"] == pytest.approx(np.std([0.9, 1.0], ddof=1))
    assert figure["num"] == 40


def test_nothing_to_compare(vectors: ClipVectors, labels: Labels) -> None:
    lost = dataclasses.replace(vectors, readable=vectors.readable & (np.arange(NUM) < NUM_TRAIN))
    with pytest.raises(ValueError, match=r"no test clip of split could be read \(first: 45 is damaged\)"):
        evaluate_split("knn", lost, labels, SPLIT, Options(), device=CPU)
    dark = dataclasses.replace(vectors, has_video=vectors.has_video & (np.arange(NUM) < NUM_TRAIN))
    dark = dataclasses.replace(dark, has_audio=dark.has_audio & (np.arange(NUM) >= NUM_TRAIN))
    with pytest.raises(ValueError, match="training and test clips have no modality in common"):
        evaluate_split("knn", dark, labels, SPLIT, Options(), device=CPU)
    with pytest.raises(ValueError, match="--map conv9 is not a map of the video encoder: choose conv1, pool"):
        evaluate_split("svm", vectors, labels, SPLIT, Options(map="conv9"), device=CPU)


@pytest.mark.slow
def test_the_linear_head_that_stands_for_a_side_is_chosen_without_the_test_videos(
    vectors: ClipVectors, labels: Labels
) -> None:
    kept: dict = {}
    part = evaluate_split("linear", vectors, labels, SPLIT, Options(), device=CPU, keep=kept)
    found = compute_metrics([part], labels, skip_unreadable=True)
    assert set(found) == {"video", "video conv1", "video pool", "audio", "audio pool", "both", "both pool"}
    assert found["video"]["chosen"][0]["map"] == "pool"
    assert found["video conv1"]["mean"] < 0.8
    assert kept["video"].classifier.stage == "pool"
    assert set(kept) == {"video", "audio", "both"}


def test_a_sound_stands_beside_each_crop_of_its_clip(vectors: ClipVectors) -> None:
    both = vectors.maps("both", np.array([0, 5]))["pool"]
    assert both.shape == (2, 4, 12)
    for view in range(4):
        audio = vectors.vectors["audio"]["pool"][5, view // 2]
        np.testing.assert_allclose(both[1, view, 6:], audio / np.linalg.norm(audio), rtol=1e-5)


def test_partition_equals_scikit_learn(vectors: ClipVectors, labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avssl.evaluate.metrics.NUM_PARTITION_RESAMPLES", 100)
    found = compute_metrics(
        [evaluate_split("partition", vectors, labels, SPLIT, Options(), device=CPU)], labels, skip_unreadable=True
    )
    assert {way: figure["mean"] for way, figure in found.items() if way.startswith("video")} == {
        "video nmi": pytest.approx(1), "video ari": pytest.approx(1), "video purity": 1,
    }  # fmt: skip
    assert abs(found["video ari"]["chance"]) < 0.2
    assert 0.35 < found["video purity"]["chance"] < 0.7
    rng = np.random.default_rng(0)
    targets, clusters = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    wanted = sum(np.bincount(targets[clusters == each]).max() for each in range(4)) / 50
    assert purity(targets, clusters) == pytest.approx(wanted)
    low, high = bootstrap([partition_of("purity", targets, clusters)], [np.arange(50)], num=100)
    assert low < wanted < high + 0.1
    points = np.concatenate([rng.normal(size=(20, 4)) + 9 * np.eye(4)[i] for i in range(3)])
    told = cluster(points, num_clusters=3)
    truth = np.repeat(np.arange(3), 20)
    assert normalized_mutual_info_score(truth, told) == adjusted_rand_score(truth, told) == 1


def test_gallery_recall_equals_a_loop_and_a_tie_counts_against_it() -> None:
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(30, 4)), rng.normal(size=(50, 4))
    wanted, known = rng.integers(0, 6, 30), rng.integers(0, 5, 50)  # class 5 has no gallery video
    hits = gallery_hits(query, wanted, gallery, known, ks=(1, 5, 60))
    for row in range(30):
        order = sorted(range(50), key=lambda i: -(query[row] @ gallery[i]))
        for place, k in enumerate((1, 5, 60)):
            assert hits[row, place] == any(known[i] == wanted[row] for i in order[:k])
    same = np.ones((4, 2))
    tied = gallery_hits(same[:1], np.array([0]), same, np.array([0, 1, 0, 1]), ks=(1, 2, 3))
    assert tied.tolist() == [[False, False, True]]  # two of another class come first
    reached = [
        gallery_hits(rng.normal(size=(5, 3)), wanted[:5], rng.normal(size=(12, 3)), known[:12], ks=(1, 3)).mean(axis=0)
        for _ in range(3000)
    ]
    for place, k in enumerate((1, 3)):
        assert chance_gallery_recall(wanted[:5], known[:12], k=k).mean() == pytest.approx(
            np.mean(reached, axis=0)[place], abs=0.02
        )


def test_plain_votes_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 4, generator=generator), torch.randn(25, 4, generator=generator)
    targets = torch.randint(0, 3, (40,), generator=generator)
    truth = torch.eye(3, dtype=torch.bool)[targets]
    found = knn_votes(train, truth, test, k=6, temperature=None).argmax(dim=1)
    for row in range(25):
        cosine = torch.nn.functional.cosine_similarity(test[row], train)
        nearest = [int(targets[i]) for i in cosine.argsort(descending=True)[:6]]
        most = max(nearest.count(each) for each in set(nearest))
        assert int(found[row]) == next(each for each in nearest if nearest.count(each) == most)


def test_svm_chooses_c_inside_and_averages_decision_values() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(3), 20)
    train = rng.normal(size=(60, 2, 5)) + 3 * np.eye(5)[targets][:, None]
    test = rng.normal(size=(30, 2, 5)) + 3 * np.eye(5)[np.arange(30) % 3][:, None]
    scores, strength = svm_scores(train, targets, test, groups=np.arange(60), num_classes=4)
    assert (scores.argmax(axis=1) == np.arange(30) % 3).mean() > 0.9
    assert np.isneginf(scores[:, 3]).all()  # a class without training videos is never said
    assert 0 < strength <= 1
    single = [svm_scores(train, targets, test[:, i : i + 1], groups=np.arange(60), num_classes=4)[0] for i in (0, 1)]
    np.testing.assert_allclose(scores[:, :3], np.mean(single, axis=0)[:, :3], atol=1e-9)
    two, _ = svm_scores(train[:40], targets[:40], test, groups=np.arange(40), num_classes=3)
    np.testing.assert_allclose(two[:, 0], -two[:, 1])


def test_few_labels_are_drawn_from_every_class() -> None:
    targets = np.array([0] * 50 + [1] * 20 + [2] * 3)
    draws = list(draw_few(targets, 0.1, num_draws=4))
    for rows in draws:
        assert np.bincount(targets[rows]).tolist() == [5, 2, 1]
        assert len(set(rows.tolist())) == 8
    assert len({tuple(rows) for rows in draws}) == 4
    assert all(np.array_equal(a, b) for a, b in zip(draws, draw_few(targets, 0.1, num_draws=4), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["knn", "linear", "svm", "fewlabels"])
@pytest.mark.parametrize("heard", [[0], [0, 3], [0, 1], [0, 1, 2]])
def test_a_side_that_hardly_any_training_clip_has(
    protocol: str, heard: list[int], vectors: ClipVectors, labels: Labels
) -> None:
    """One clip, two of a class, one of each of two classes: pictures answer as ever, sound as it can."""
    keep = (np.arange(NUM) >= NUM_TRAIN) | np.isin(np.arange(NUM), heard)
    thin = dataclasses.replace(vectors, has_audio=vectors.has_audio & keep | np.isin(np.arange(NUM), heard))
    part = evaluate_split(protocol, thin, labels, SPLIT, Options(shares=(0.5,), draws=2), device=CPU)
    found = compute_metrics([part], labels, skip_unreadable=True)
    suffix = " 50%" if protocol == "fewlabels" else ""
    assert found[f"video{suffix}"]["mean"] == 1
    assert 0.2 < found[f"audio{suffix}"]["mean"] <= 1
    if len({row % 3 for row in heard}) == 1 and protocol != "knn":
        assert found[f"audio{suffix}"]["chosen"][0] == {"only_class": "abc"[heard[0] % 3]}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["linear", "svm", "fewlabels"])
def test_all_training_clips_in_one_group(protocol: str, vectors: ClipVectors, labels: Labels) -> None:
    one = copy.copy(labels)
    one.groups = np.where(np.arange(NUM) < NUM_TRAIN, "video", labels.groups)
    part = evaluate_split(protocol, vectors, one, SPLIT, Options(shares=(0.4,), draws=2), device=CPU)
    found = compute_metrics([part], one, skip_unreadable=True)
    assert found["video 40%" if protocol == "fewlabels" else "video"]["mean"] > 0.9
    one.groups = np.full(NUM, "video")
    found = compute_metrics(
        [evaluate_split("knn", vectors, one, SPLIT, Options(), device=CPU)], one, skip_unreadable=True
    )
    assert found["video"]["interval"] is None  # one group says nothing of how sure a figure is


@pytest.mark.parametrize("protocol", ["knn", "retrieval", "fewlabels"])
def test_a_split_in_which_nobody_answers_counts(protocol: str, vectors: ClipVectors, labels: Labels) -> None:
    other = Split("split2", np.arange(20, NUM), np.arange(20))
    mute = dataclasses.replace(vectors, has_audio=vectors.has_audio & (np.arange(NUM) >= 20))
    options = Options(shares=(0.2,), draws=2)
    parts = [evaluate_split(protocol, mute, labels, split, options, device=CPU) for split in (SPLIT, other)]
    way = {"knn": "audio", "retrieval": "audio R@1", "fewlabels": "audio 20%"}[protocol]
    wrong, left_out = (compute_metrics(parts, labels, skip_unreadable=skip)[way] for skip in (False, True))
    assert (wrong["num"], wrong["unanswered"], len(wrong["splits"])) == (40, 23, 2)
    assert wrong["splits"][1]["value"] == 0
    assert wrong["mean"] == pytest.approx(wrong["splits"][0]["value"] / 2)
    assert (left_out["num"], left_out["unanswered"], len(left_out["splits"])) == (17, 23, 1)


def test_small_temperatures_are_those_of_the_nearest_neighbor() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(50, 6, generator=generator)
    targets = torch.randint(0, 4, (50,), generator=generator)
    for temperature in (0.02, 0.005, 1e-4):
        votes = knn_votes(train, torch.eye(4, dtype=torch.bool)[targets], train, temperature=temperature)
        assert torch.equal(votes.argmax(dim=1), targets)


def as_result(scores: dict, **facts: object) -> dict:
    """What a table needs of a result."""
    same = {"protocol": "knn", "weights": "runs/a/last.pt", "manifest": "m", "manifest_hash": "h", "splits": ["split"]}
    same |= {"asked_hash": "h", "training": None, "random": None, "clips": {}, "shared": [], "several_labels": 0}
    same |= {"settings": {"skip_unreadable": False}, "unlabeled": 0, "own_groups": False, "similar": []}
    return same | {"scores": scores} | facts


@pytest.mark.parametrize("protocol", ["knn", "fewlabels", "retrieval", "partition"])
@pytest.mark.parametrize("skip", [False, True])
def test_rows_of_one_block_are_about_the_same_clips_or_marked(
    protocol: str, skip: bool, vectors: ClipVectors, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avssl.evaluate.metrics.NUM_PARTITION_RESAMPLES", 10)
    part = evaluate_split(protocol, vectors, labels, SPLIT, Options(shares=(0.2,), draws=2), device=CPU)
    found = compute_metrics([part], labels, skip_unreadable=skip)
    paired = {name: figure["paired"] for name, figure in found.items()}
    assert {figure["num"] for figure in paired.values()} == {17}  # 20 less 45, 46 and 50
    assert len({figure["clips"] for figure in paired.values()}) == 1
    if protocol == "knn":
        assert {figure["mean"] for figure in paired.values()} == {1.0}
        rest = [row for row in range(NUM_TRAIN, NUM) if row not in (*UNREADABLE, *MUTE)]
        assert paired["both"]["chance"] == pytest.approx(max(np.bincount(np.array(rest) % 3)) / 17)
    group = [as_result(found, settings={"skip_unreadable": skip})]
    lines = table.rows(group)
    names = [name for name, _ in lines]
    assert names == [*found, table.PAIRED, *(f"  {name}" for name in found)]
    cells = dict(lines)
    for name, figure in found.items():
        assert cells[name][0].split()[0] == str(figure["num"])
        assert cells[name][1] == f"{figure['chance']:.3f}"
        assert cells[f"  {name}"][0] == "17"
    differ = skip or protocol == "partition"
    marks = {figure["clips"]: cells[name][0].split()[1:] for name, figure in found.items()}
    assert len(marks) == len({tuple(mark) for mark in marks.values()}) == (2 if differ else 1)
    assert any("different clips" in line for line in table.remarks(group)) == differ


def test_equal_numbers_of_different_clips_are_marked(vectors: ClipVectors, labels: Labels) -> None:
    """19 clips with video, 19 with audio, and they are not the same."""
    has_video, has_audio = np.ones(NUM, dtype=bool), np.ones(NUM, dtype=bool)
    has_video[41], has_audio[42] = False, False
    odd = dataclasses.replace(vectors, readable=np.ones(NUM, dtype=bool), has_video=has_video, has_audio=has_audio)
    found = compute_metrics(
        [evaluate_split("knn", odd, labels, SPLIT, Options(), device=CPU)], labels, skip_unreadable=True
    )
    cells = dict(table.rows([as_result(found)]))
    assert [cells[name][0] for name in ("video", "audio", "both")] == ["19 a", "19 b", "18 c"]


def test_a_set_whose_clips_have_both_needs_one_block(vectors: ClipVectors, labels: Labels) -> None:
    every = np.ones(NUM, dtype=bool)
    full = dataclasses.replace(vectors, readable=every, has_video=every, has_audio=every)
    part = evaluate_split("knn", full, labels, SPLIT, Options(), device=CPU)
    assert not any("paired" in figure for figure in compute_metrics([part], labels, skip_unreadable=False).values())


def test_classes_without_a_training_clip_are_counted(vectors: ClipVectors, labels: Labels) -> None:
    few = dataclasses.replace(SPLIT, train=np.array([row for row in SPLIT.train if row % 3]))
    mute = dataclasses.replace(
        vectors, has_audio=vectors.has_audio & ~np.isin(np.arange(NUM), few.train[few.train % 3 == 1])
    )
    part = evaluate_split("knn", mute, labels, few, Options(), device=CPU)
    found = compute_metrics([part], labels, skip_unreadable=False)
    assert (found["video"]["unseen"], found["audio"]["unseen"]) == (6, 13)
    told = table.remarks([as_result(found, unlabeled=4, own_groups=True)])
    assert "6 test clips have a class without a training clip, which nothing can predict (video, video plain)" in told
    assert "4 clips have no label: left out" in told
    assert any(line.startswith("no groups given: every file is its own group (--group") for line in told)


@pytest.mark.parametrize("num_train, left", [(4, (1,)), (10, (1, 5)), (11, (1, 5, 10)), (40, (1, 5, 10, 20))])
def test_recall_at_the_size_of_the_gallery_is_left_out(
    num_train: int, left: tuple[int, ...], vectors: ClipVectors, labels: Labels
) -> None:
    short = dataclasses.replace(SPLIT, train=np.arange(NUM_TRAIN - num_train, NUM_TRAIN))
    parts = [evaluate_split("retrieval", vectors, labels, split, Options(), device=CPU) for split in (SPLIT, short)]
    found = compute_metrics(parts, labels, skip_unreadable=False)
    assert [name for name in found if name.startswith("video R@")] == [f"video R@{k}" for k in left]


def test_average_precision_equals_scikit_learn_and_its_chance_a_random_order() -> None:
    rng = np.random.default_rng(0)
    truth, every = rng.random((40, 5)) < [0.1, 0.3, 0.5, 0.9, 0], np.ones(40, dtype=bool)  # the last never occurs
    scores = np.round(rng.normal(size=(40, 5)) + truth, 1)  # with ties
    wanted = np.mean([average_precision_score(truth[:, i], scores[:, i]) for i in range(4)])
    statistic, one = average_precision_of(scores, truth, every), np.ones((1, 40))
    assert statistic(one)[0] == pytest.approx(wanted)
    counts = rng.integers(0, 3, size=(3, 40))
    repeated = [np.repeat(np.arange(40), each) for each in counts]
    drawn = [average_precision_of(scores[r], truth[r], np.ones(len(r)) > 0)(np.ones((1, len(r)))) for r in repeated]
    np.testing.assert_allclose(statistic(counts.astype(float)), np.concatenate(drawn))
    answered = np.arange(40) >= 10
    lower = average_precision_of(scores[answered], truth, answered)(one)[0]
    shares = truth[answered, :4].sum(axis=0) / truth[:, :4].sum(axis=0)
    each = [average_precision_score(truth[answered, i], scores[answered, i]) for i in range(4)]
    assert lower == pytest.approx(np.mean(shares * each))  # what has no answer is never found
    reached = [average_precision_of(rng.random((30, 5)), truth, answered)(one)[0] for _ in range(500)]
    assert chance_average_precision(truth, answered) == pytest.approx(np.mean(reached), abs=0.01)


@pytest.fixture(scope="module")
def several() -> Labels:
    """Every second clip has a second class beside its own, which its vector does not hide."""
    more = [["abc"[i % 3], "d"] if i % 2 else ["abc"[i % 3]] for i in range(NUM)]
    rows = rows_of(NUM, label=["abc"[i % 3] for i in range(NUM)], group=[f"g{i // 2}" for i in range(NUM)], labels=more)
    return Labels(manifest_of(rows), [SPLIT])


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_all_classes_of_a_clip_count(protocol: str, vectors: ClipVectors, several: Labels) -> None:
    video = vectors.vectors["video"]["pool"].copy()
    video[1::2, :, 5] += 9  # tells class d
    seen = dataclasses.replace(vectors, vectors=vectors.vectors | {"video": {"pool": video}})
    part = evaluate_split(protocol, seen, several, SPLIT, Options(k=5), device=CPU)
    found = compute_metrics([part], several, skip_unreadable=False)
    assert all(name.endswith(" mAP") for name in found)
    truth = several.truth(SPLIT.test)
    assert several.classes == ["a", "b", "c", "d"]
    assert truth.sum() == 30
    found_share = (truth & vectors.has_video[SPLIT.test][:, None]).sum(axis=0) / truth.sum(axis=0)
    assert found["video mAP"]["mean"] == pytest.approx(found_share.mean(), abs=0.02)  # all that could be read
    assert found["audio mAP"]["mean"] < found["video mAP"]["mean"] - 0.05  # no sound of d
    assert found["video mAP"]["paired"]["mean"] == pytest.approx(1, abs=0.01)
    assert found["video mAP"]["chance"] < 0.6
    low, high = found["video mAP"]["interval"]
    assert low <= found["video mAP"]["mean"] <= high
    said = table.remarks([as_result(found, several_labels=several.num_several)])
    assert "30 clips have several classes: mAP is the mean over classes of the average precision here" in said
    svm = evaluate_split("svm", vectors, several, SPLIT, Options(), device=CPU)
    assert compute_metrics([svm], several, skip_unreadable=True)["video"]["mean"] == 1  # of the first class


def test_copies_across_the_split_are_found_and_other_clips_are_not(vectors: ClipVectors) -> None:
    manifest = manifest_of(rows_of(NUM))
    rng = np.random.default_rng(1)
    video = 9 + rng.normal(size=(NUM, 4, 32)).astype(np.float32)
    video[41] = video[7] + 0.01
    video[52] = video[7] + rng.normal(size=32) * 0.02
    mine = dataclasses.replace(vectors, vectors={"video": {"pool": video}})
    found = find_similar(mine, SPLIT, manifest, cosine={"video": 0.95})
    assert found["num"] == 2
    assert sorted(found["pairs"]) == [["41.mp4", "07.mp4"], ["52.mp4", "07.mp4"]]
    facts = {"similar": [found]}
    (said,) = [line for line in table.remarks([as_result({}, **facts)]) if "nearly equal" in line]
    assert said.startswith("2 test clips are nearly equal to a training clip, such as ")
