"""Linear heads: against scikit-learn and a head trained alone, the rate chosen without the test videos."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from avssl.evaluate import heads as heads_module
from avssl.evaluate.heads import RATES, head_scores, train_heads
from avssl.evaluate.metrics import video_scores

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")


def made(num: int = 90, *, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two maps of 2 views: one tells the class, one is noise; far from zero, and of other sizes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, num)
    told = rng.normal(size=(num, 2, 5)) + 2 * np.eye(5)[targets][:, None]
    vectors = {"conv1": rng.normal(size=(num, 2, 7)) * 100 - 30, "pool": told * np.array([1, 10, 0.1, 1, 1]) + 50}
    return {name: each.astype(np.float32) for name, each in vectors.items()}, targets, np.arange(num) // 3


def trained(vectors: dict[str, np.ndarray], targets: np.ndarray, groups: np.ndarray, **options: object) -> dict:
    return train_heads(vectors, targets, groups, classes=CLASSES, modality="video", device=CPU, **options)


@pytest.mark.slow
def test_a_head_tells_what_its_map_holds_and_says_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "MIN_STEPS", 300)
    vectors, targets, groups = made()
    found, again = trained(vectors, targets, groups), trained(vectors, targets, groups)
    asked, wanted, _ = made(seed=1)
    right = {name: (head_scores(h.classifier, asked[name]).argmax(1) == wanted).mean() for name, h in found.items()}
    assert right["pool"] > 0.85
    assert right["conv1"] < 0.6
    for name, head in found.items():
        assert np.array_equal(
            head_scores(head.classifier, asked[name]), head_scores(again[name].classifier, asked[name])
        )
        assert (head.rate, head.held_out) == (again[name].rate, again[name].held_out)
        assert head.rate in RATES
    assert found["pool"].held_out > found["conv1"].held_out
    assert found["pool"].classifier.classes == CLASSES


@pytest.mark.slow
def test_heads_trained_together_are_those_trained_alone() -> None:
    vectors, targets, groups = made()
    together = trained(vectors, targets, groups)
    for name, each in vectors.items():
        alone = trained({name: each}, targets, groups)[name]
        assert alone.rate == together[name].rate
        np.testing.assert_allclose(
            head_scores(alone.classifier, each), head_scores(together[name].classifier, each), atol=1e-5
        )


@pytest.mark.slow
def test_long_training_is_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "RATES", (0.03,))
    monkeypatch.setattr(heads_module, "MIN_STEPS", 1500)
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 3, 200)
    x = (rng.normal(size=(200, 1, 3)) + np.eye(3)[targets][:, None]).astype(np.float32)
    head = trained({"pool": x}, targets, np.arange(200))["pool"].classifier
    scaled = StandardScaler().fit_transform(x[:, 0])
    reference = LogisticRegression(C=1e6, max_iter=2000).fit(scaled, targets).predict_proba(scaled)
    np.testing.assert_allclose(head_scores(head, x), reference, atol=0.02)


def test_the_rate_is_chosen_on_whole_groups_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, targets, groups = made()
    inside, outside = heads_module._hold_out(targets, groups, seed=0)
    assert not set(groups[inside]) & set(groups[outside])
    assert sorted([*inside, *outside]) == list(range(len(targets)))
    assert 0.1 < len(outside) / len(targets) < 0.3
    one_group = heads_module._hold_out(targets, np.zeros(len(targets)), seed=0)
    assert len(one_group[1])
    # with the held-out classes exchanged, what was best before is not what is chosen
    monkeypatch.setattr(heads_module, "RATES", (1e-9, 1e-2))
    assert trained(vectors, targets, groups)["pool"].rate == 1e-2
    spoilt = targets.copy()
    spoilt[outside] = (targets[outside] + 1) % 3
    assert trained(vectors, spoilt, groups)["pool"].rate == 1e-9


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_scores_of_a_video_are_means_over_its_views(average: str) -> None:
    logits = torch.tensor([[[9.0, 0, 0], [0, 1, 0], [0, 1, 0]]])
    wanted = torch.softmax(logits, dim=2)[0].mean(0) if average == "softmax" else logits[0].mean(0)
    torch.testing.assert_close(video_scores(logits, average=average)[0], wanted)
    far_once = torch.tensor([[[9.0, 0.0], [0, 1.9], [0, 1.9]]])
    assert [int(video_scores(far_once, average=a).argmax()) for a in ("softmax", "logits")] == [1, 0]  # they differ
