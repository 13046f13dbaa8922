"""kNN, linear probe and recalls against definitions written out, and on features whose answer is known."""

import numpy as np
import pytest
import torch
from extra_metrics import chance_class_recall, class_hits, instance_hits, recall_metrics

from avssl.evaluate.classify import linear_predict
from avssl.mining.votes import knn_votes


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_knn_equals_a_loop_over_videos(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 4, generator=generator), torch.randn(25, 4, generator=generator)
    targets = torch.randint(0, 3, (60,), generator=generator)
    truth = torch.eye(3, dtype=torch.bool)[targets]
    found = knn_votes(train, truth, test, k=k).argmax(dim=1)
    for row in range(25):
        cosine = [float(test[row] @ x / (test[row].norm() * x.norm())) for x in train]
        votes = [0.0] * 3
        for i in sorted(range(60), key=lambda i: -cosine[i])[:k]:
            votes[int(targets[i])] += np.exp(cosine[i] / 0.07)
        assert int(found[row]) == int(np.argmax(votes))
    with pytest.raises(ValueError, match="kNN has no training features"):
        knn_votes(train[:0], truth[:0], test)


def test_linear_probe_finds_a_line_and_not_noise() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    noise, _ = linear_predict(features[:150], targets[:150], features[150:])
    assert (noise == targets[150:]).mean() < 0.6
    features[:, 2] += 4 * targets
    features[:, 5] *= 1000  # standardized away
    line, strength = linear_predict(features[:150], targets[:150], features[150:])
    assert (line == targets[150:]).mean() > 0.9
    assert strength > 0
    with pytest.raises(ValueError, match="at least two classes"):
        linear_predict(features[:5], np.zeros(5, dtype=int), features[5:])


def test_linear_probe_never_splits_a_group() -> None:
    """Copies of one clip in one group: a probe that split them would choose the weakest penalty, since copies are
    remembered.
    """
    rng = np.random.default_rng(1)
    base, targets = rng.normal(size=(30, 40)), rng.integers(0, 2, 30)
    features, groups = np.repeat(base, 4, axis=0), np.repeat(np.arange(30), 4)
    repeated = np.repeat(targets, 4)
    _, grouped = linear_predict(features, repeated, base, groups=groups)
    _, split = linear_predict(features, repeated, base)
    assert grouped < split


def test_recalls_equal_loops() -> None:
    rng = np.random.default_rng(0)
    query, gallery, targets = unit(rng.normal(size=(40, 5))), unit(rng.normal(size=(40, 5))), rng.integers(0, 4, 40)
    for k in (1, 5):
        own, same = [], []
        for row in range(40):
            order = sorted(range(40), key=lambda i: -(query[row] @ gallery[i]))
            own.append(row in order[:k])
            others = [i for i in order if i != row][:k]
            same.append(any(targets[i] == targets[row] for i in others))
        assert instance_hits(query, gallery, k=k).mean() == np.mean(own)
        assert class_hits(query, gallery, targets, k=k).mean() == np.mean(same)
    assert instance_hits(query, query, k=1).mean() == 1
    assert chance_class_recall(targets, k=1) == pytest.approx(
        np.mean([[targets[i] == targets[j] for j in range(40) if j != i] for i in range(40)])
    )


def test_chance_is_what_random_vectors_reach() -> None:
    rng = np.random.default_rng(0)
    targets = np.array([0, 0, 0, 1, 1, 1, 2])  # the last has no classmate
    found = [recall_metrics(*(unit(rng.normal(size=(7, 4))) for _ in range(2)), targets) for _ in range(3000)]
    for name in ("r1", "r5", "instance_r1", "instance_r5"):
        reached = np.mean([figures[f"v2a_{name}"] for figures in found])
        assert reached == pytest.approx(found[0][f"chance_{name}"], abs=0.01), name
    assert found[0]["chance_r5"] == pytest.approx(6 / 7)


@pytest.mark.parametrize("k", [5, 6, 50])
def test_recall_of_all_others_is_that_of_having_a_classmate(k: int) -> None:
    rng = np.random.default_rng(0)
    targets = np.array([0, 0, 0, 1, 1, 2])
    query, gallery = unit(rng.normal(size=(6, 4))), unit(rng.normal(size=(6, 4)))
    assert class_hits(query, gallery, targets, k=k).mean() == pytest.approx(5 / 6)  # the last has none
    assert {name.rpartition("_")[2] for name in recall_metrics(query, gallery, targets)} == {"r1"}


def test_a_tie_counts_against_recall() -> None:
    same = unit(np.ones((6, 3)))
    assert instance_hits(same, same, k=1).mean() == 0
    assert instance_hits(same, same, k=6).mean() == 1
