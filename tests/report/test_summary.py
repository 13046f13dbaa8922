"""The answers at the top of a run's page."""

import math

import numpy as np
import pytest

from avssl.config import Config, from_dict
from avssl.report.history import History
from avssl.report.summary import loss_limits, summary_parts


def config(**method: object) -> Config:
    sections = {"data": {"manifest": "m", "batch_size": 64}, "run": {"dir": "r"}, "method": method}
    return from_dict(sections, source="test")


def test_what_the_loss_is_compared_with() -> None:
    """The values of docs/learning-on-small-sets.md; for a posterior that is uniform over C classes by summing it."""
    avid = loss_limits(config(name="avid", num_negatives=256), num_classes=10)
    assert avid["knowing the class"] == pytest.approx(4.26, abs=0.005)
    density = 256 / np.array([1, 10])  # of noise per unit of the data's density
    by_hand = np.log1p(density) + density * np.log1p(1 / density)
    assert list(avid.values()) == pytest.approx(by_hand)
    info = loss_limits(config(name="avid", num_negatives=256, contrast="info_nce"), num_classes=0)
    assert info == {"guessing": pytest.approx(math.log(257))}
    both = loss_limits(config(name="avid", num_negatives=9, contrast="info_nce", in_batch_epochs=1), num_classes=3)
    assert both == {"guessing in batch": pytest.approx(math.log(64)), "guessing by banks": pytest.approx(math.log(10))}
    assert loss_limits(config(name="infonce"), num_classes=8)["guessing"] == pytest.approx(math.log(64))
    for other in ({"name": "byol"}, {"name": "avid", "within": 1}, {"name": "avid_cma"}):
        assert loss_limits(config(**other), num_classes=5) == {}


def line(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(values)), np.array(values, dtype=np.float32)


def test_answers_come_from_the_last_values() -> None:
    lines = {"loss": line(5, 4.125), "video_rank": line(3, 40), "video_std": line(0.9, 0.9)}
    lines |= {"audio_rank": line(30, 1.25), "audio_std": line(0.5, 0.5)}
    lines |= {"probe/video": line(0.25), "probe/both": line(0.5), "probe/chance": line(0.125)}
    facts = {"stand": "complete, 3 min", "clips": "60 clips", "disk_bytes": 4_400_000, "has_labels": False}
    figure = {"num": 9, "chance": 0.1, "clips": [9]}
    scores = {"both": figure | {"mean": 0.75, "interval": [0.5, 0.875]}}
    result = {"protocol": "knn", "scores": scores, "random": {"both": figure | {"mean": 0.25, "interval": [0, 0.5]}}}
    (page,) = summary_parts(History(lines), [result], **facts, limits={"guessing": 4.8})
    for answer in (
        "complete, 3 min",
        "60 clips; 4 MB for a checkpoint",
        "4.12 at the end; guessing: 4.80",
        "yes: audio_rank; effective rank: video 40.0, audio 1.2",
        "video 0.25, both 0.50 of the labeled training clips are named by their neighbors; the commonest class: 0.12",
        "knn by both: 0.750 (0.500 to 0.875); random weights 0.250 (0.000 to 0.500)",
    ):
        assert answer in page
    (page,) = summary_parts(History(), [], **facts, limits={})
    assert page.count("not known") == 2
    assert "the clips have no labels" in page
    assert "none was reported" in page
    assert "not measured" in page
    last = {"guessing in batch": 2.77, "guessing by banks": 5.55}
    (page,) = summary_parts(History({"loss": line(4.92)}), [], **facts, limits=last)
    assert "4.92 at the end; guessing by banks: 5.55" in page
