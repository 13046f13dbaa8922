"""What a log says: its lines thinned, its time, collapse, and refreshes of agreement sets."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from avssl.report.curves import MAX_POINTS, Chart, charts_html, svg, thinned
from avssl.report.history import MAX_REFRESHES, History, collapse_parts, read_history, refresh_parts, training_parts


def write_log(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_log_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "epoch": 0, "loss": 4.0, "clips_per_second": 20.0, "data_wait": 0.5, "video_std": 1.0},
        {"step": 10, "unreadable": ["a.mp4: cut"]},
        {"step": 10, "epoch": 1, "mining/exact": 1.0, "mining/overlap": None},
        {"step": 20, "epoch": 1, "loss": None, "clips_per_second": 40.0, "unreadable": ["a.mp4: cut", "b.mp4: gone"]},
    ]
    path = write_log(tmp_path / "log.jsonl", lines)
    with path.open("a") as file:
        file.write('{"step": 30, "lo')
    found = read_history(path, batch_size=8)
    assert (found.step, found.epoch) == (20, 1)
    assert found.seconds == 10 * 8 / 20 + 10 * 8 / 40
    assert found.unreadable == {"a.mp4: cut": 2, "b.mp4: gone": 1}
    assert [value.tolist() for value in found.lines["loss"]] == [[10], [4.0]]
    assert found.refreshes == lines[2:3]
    assert "loss" not in read_history(tmp_path / "none.jsonl", batch_size=8).lines
    assert "before its first report" in training_parts(History())[0]


def test_thinning_keeps_means_and_extremes() -> None:
    few = (np.array([1, 2, 5]), np.array([1.0, 3.0, 2.0], dtype=np.float32))
    assert [each.tolist() for each in thinned(few)] == [[1, 2, 5], [1, 3, 2], [1, 3, 2], [1, 3, 2]]
    values = np.random.default_rng(0).normal(size=10 * MAX_POINTS).astype(np.float32)
    values[777] = 99
    steps, means, low, high = thinned((np.arange(len(values)), values))
    assert len(steps) == MAX_POINTS
    assert np.allclose(means, values.reshape(MAX_POINTS, 10).mean(axis=1), atol=1e-5)
    assert (low.min(), high.max()) == (values.min(), 99)
    assert steps[0] == 4.5


@pytest.mark.slow
def test_a_huge_log_makes_a_small_page(tmp_path: Path) -> None:
    line = json.dumps(
        {"step": 0, "epoch": 0, "loss": 1.5, "lr": 1e-3, "v2a": 0.5, "a2v": 0.25, "clips_per_second": 9.0}
    )
    (tmp_path / "log.jsonl").write_text("".join(line.replace("0", str(step), 1) + "\n" for step in range(1, 200_001)))
    page = "".join(training_parts(read_history(tmp_path / "log.jsonl", batch_size=1)))
    assert len(page) < 100_000
    assert "200,000" in page


def test_a_chart_says_in_words_what_it_shows() -> None:
    line = (np.array([10, 20]), np.array([4.0, 2.0]))
    picture = svg(Chart("Loss", {"a<b": line, "c": line}))
    assert 'aria-label="Loss over steps: a&lt;b from 4.000 at step 10 to 2.000 at step 20;' in picture
    assert picture.count("stroke: var(--s0)") == picture.count("stroke: var(--s1)") == 2  # in the plot and the legend
    assert picture.count("stroke-dasharray: 7,3") == 2  # told apart without colors
    assert ">a&lt;b</text>" in picture
    assert "<use" in svg(Chart("One", {"": (np.array([3]), np.array([0.0]))}))  # a dot
    assert charts_html([Chart("Nothing", {"": (np.array([]), np.array([]))})]) == ""


@pytest.mark.parametrize("std, rank, words", [(0.9, 20.0, "show no collapse"), (0.05, 20.0, "video_std is 0.05")])
def test_collapse_is_said(std: float, rank: float, words: str) -> None:
    steps = np.array([1, 2])
    lines = {"video_std": (steps, np.array([1.0, std])), "patch/video_rank": (steps, np.array([30.0, rank]))}
    assert words in "".join(collapse_parts(lines))


def refreshes(num: int, prefix: str = "mining") -> list[dict]:
    names = {"exact": 1.0, "score": 0.25, "rows_with_set": 0.75, "overlap": 0.6125, "precision": 0.4567, "chance": 0.08}
    lines = [
        {"step": i * 7, "epoch": i, **{f"{prefix}/{name}": value for name, value in names.items()}} for i in range(num)
    ]
    del lines[0][f"{prefix}/overlap"]
    return lines


def test_refreshes_of_a_joint_run(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.jsonl", refreshes(3, "avid_cma/mining"))
    page = "".join(refresh_parts(read_history(path, batch_size=1), has_labels=True))
    assert "Refreshes of the sets of avid_cma" in page
    first, second = page.split("<tbody>")[1].split("</tr>")[:2]
    assert first.count("<td") == second.count("<td") == 7
    assert '<td class="number"></td>' in first  # no overlap of the first
    assert all(figure in second for figure in ("0.613", "0.457", "0.080", "0.750", "1.000"))
    assert page.count("<svg") == 4


def test_parts_of_a_joint_loss_stand_by_method() -> None:
    names = ("loss", "patch/loss", "patch/frac_tracked", "avid/loss", "avid/v2a", "walk/returned", "lr", "data_wait")
    line = (np.array([1, 2]), np.array([1.0, 0.5], dtype=np.float32))
    page = "".join(training_parts(History(lines=dict.fromkeys(names, line))))
    titles = re.findall(r"<figcaption>([^<]*)", page)
    assert titles == [
        *("Loss", "Parts of the loss of patch", "Parts of the loss of avid", "Learning rate"),
        *("Fraction of time waiting for data", "Fractions of the training data"),
    ]
    assert "clips with a track" in page
    assert "No collapse metrics" in page


def test_many_refreshes_and_runs_without_labels(tmp_path: Path) -> None:
    lines = refreshes(500)
    for line in lines:
        del line["mining/precision"], line["mining/chance"]
    history = read_history(write_log(tmp_path / "log.jsonl", lines), batch_size=1)
    page = "".join(refresh_parts(history, has_labels=False))
    assert page.split("<tbody>")[1].count("<tr>") == MAX_REFRESHES
    assert f"{MAX_REFRESHES} of 500 refreshes" in page
    assert "No precision: the clips have no labels" in page
    assert '<th scope="col" class="number">precision' not in page
    assert refresh_parts(History(), has_labels=True) == []
