"""Propagation against a loop over cells, on features whose answer is known, through every kind of encoder, and the tool
from end to end.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.config import DataConfig
from avssl.data.manifest import Manifest
from avssl.evaluate.masks import score_masks
from avssl.evaluate.propagate import frame_features, propagate_mask, score_propagation
from avssl.evaluate.scenes import make_scene
from avssl.models import ENCODERS
from avssl.training.loop import train
from avssl.weights.load import load_run
from tests.support.clips import write_davis
from tests.support.runs import config

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> None:
    """Thousands of small steps: threads would wait for each other for longer than they work."""
    torch.set_num_threads(1)


def moving_squares(num_frames: int = 12, *, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Two things in colors of their own that cross the picture: frames (T, H, W, 3), masks (T, H, W)."""
    masks = np.zeros((num_frames, side, side), dtype=np.uint8)
    for t in range(num_frames):
        masks[t, 16:40, 4 * t : 4 * t + 24] = 1
        masks[t, 64 - 2 * t : 88 - 2 * t, 60:84] = 2
    colors = np.array([(60, 60, 60), (220, 60, 40), (40, 80, 220)], dtype=np.uint8)
    return colors[masks], masks


def pooled(pixels: np.ndarray, cell: int = 4) -> Tensor:
    """(T, H, W, D) -> unit features (T, D, H / cell, W / cell)."""
    return F.normalize(F.avg_pool2d(torch.from_numpy(pixels).float().permute(0, 3, 1, 2), cell), dim=1)


def naive_propagation(features: Tensor, mask: np.ndarray, *, k: int, reach: float, context: int) -> list[np.ndarray]:
    """Soft labels (L, h, w) of every frame, cell by cell in float64."""
    num_frames, _, height, width = features.shape
    features = features.double().numpy()
    down, across = mask.shape[0] // height, mask.shape[1] // width
    first = np.zeros((int(mask.max()) + 1, height, width))
    for y in range(height):
        for x in range(width):
            pixels = mask[y * down : (y + 1) * down, x * across : (x + 1) * across]
            first[:, y, x] = [np.mean(pixels == label) for label in range(len(first))]
    labels = [first]
    for t in range(1, num_frames):
        labels.append(np.zeros_like(first))
        sources = sorted({0, *range(max(0, t - context), t)})
        for y in range(height):
            for x in range(width):
                candidates = [
                    (features[t, :, y, x] @ features[s, :, b, a], s, b, a)
                    for s in sources
                    for b in range(height)
                    for a in range(width)
                    if math.hypot(b - y, a - x) < reach
                ]
                best = sorted(candidates, reverse=True)[:k]
                weights = np.exp([cosine / 0.05 for cosine, *_ in best])
                for weight, (_, s, b, a) in zip(weights / weights.sum(), best, strict=True):
                    labels[t][:, y, x] += weight * labels[s][:, b, a]
    return labels


@pytest.mark.parametrize("k, context, radius", [(10, 20, 0.2), (3, 2, 0.5), (40, 1, 0.25)])
def test_propagation_equals_a_loop_over_cells(k: int, context: int, radius: float) -> None:
    """k = 40 is more than a corner has within reach."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(5, 6, 10, 12, generator=generator), dim=1)
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[6:22, 10:30], mask[20:38, 33:45] = 1, 2
    found = propagate_mask(features, mask, num_neighbors=k, num_context=context, radius=radius)
    expected = naive_propagation(features, mask, k=k, reach=max(2.0, 10 * radius), context=context)
    assert np.array_equal(found[0], mask)
    for t in range(1, 5):
        soft = torch.from_numpy(expected[t])[None].float()
        large = F.interpolate(soft, mask.shape, mode="bilinear")[0].sort(dim=0, descending=True)
        sure = (large.values[0] - large.values[1] > 1e-4).numpy()  # ties of two labels may fall either way
        assert sure.mean() > 0.9
        assert np.array_equal(found[t][sure], large.indices[0].numpy()[sure])


def test_ideal_features_carry_the_mask() -> None:
    """What a cell shows, one-hot, and where on the thing it lies."""
    _, masks = moving_squares()
    ideal = np.eye(3, dtype=np.float32)[masks]
    place = np.zeros((*masks.shape, 4), dtype=np.float32)
    for t, mask in enumerate(masks):
        for thing in (1, 2):
            rows, columns = np.nonzero(mask == thing)
            y, x = (rows - rows[0]) / 24, (columns - columns.min()) / 24
            place[t, rows, columns] = 0.3 * np.stack([np.sin(6 * y), np.cos(6 * y), np.sin(6 * x), np.cos(6 * x)], 1)
    scores = score_masks(masks, propagate_mask(pooled(np.concatenate([ideal, place], axis=3)), masks[0]))
    assert (scores > [0.95, 0.95]).all(), scores


def test_pixel_colors_follow_things_that_move() -> None:
    frames, masks = moving_squares()
    still = score_masks(masks, np.broadcast_to(masks[0], masks.shape))
    scores = score_masks(masks, propagate_mask(pooled(frames - 128.0), masks[0]))
    assert (scores[:, 0] > 0.9).all(), scores
    assert (still[:, 0] < 0.6).all(), still


def test_a_label_does_not_jump_beyond_reach() -> None:
    """Two equal things far apart, of which one is marked."""
    mask = np.zeros((80, 80), dtype=np.uint8)
    mask[8:24, 8:24] = 1
    looks = mask.copy()
    looks[56:72, 56:72] = 1
    features = pooled(np.broadcast_to(np.eye(2, dtype=np.float32)[looks], (4, 80, 80, 2)).copy())
    found = propagate_mask(features, mask)
    assert not found[:, 40:, 40:].any()
    assert (score_masks(np.broadcast_to(mask, found.shape), found) > 0.9).all()


TWO_BY_FOUR = np.random.default_rng(0).integers(0, 256, (3, 64, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("r2plus1d_avid", "conv3x"),
        ("r3d_18", "conv4x"),
        ("s3d", "conv3x"),
        ("swin3d_t", "stage2"),
        ("resnet18_frames", "conv3x"),
    ],
)
def test_every_kind_of_encoder_gives_a_map_of_eight_pixels_per_cell(name: str, expected: str) -> None:
    encoder = (ENCODERS[name](depth=10, width=0.25) if name == "r2plus1d_avid" else ENCODERS[name]()).eval()
    features, chosen = frame_features(encoder, TWO_BY_FOUR, size=64, data=DataConfig(manifest=""), device=CPU)
    assert chosen == expected
    assert features.shape == (3, encoder.feature_dims[expected], 8, 16)
    assert torch.allclose(features.norm(dim=1), torch.ones(3, 8, 16), atol=1e-4)
    alone, _ = frame_features(
        encoder, TWO_BY_FOUR[1:2], size=64, data=DataConfig(manifest=""), device=CPU
    )  # no frame sees another
    assert torch.allclose(features[1:2], alone, atol=1e-4)


def test_map_and_size_are_as_asked() -> None:
    encoder = ENCODERS["r2plus1d_avid"](depth=10, width=0.25).eval()
    features, chosen = frame_features(
        encoder, TWO_BY_FOUR, size=96, map_name="conv4x", data=DataConfig(manifest=""), device=CPU
    )
    assert chosen == "conv4x"
    assert features.shape == (3, 64, 6, 12)
    with pytest.raises(ValueError, match=r"map pool is not one of R2Plus1DAvid: choose conv1, conv2x, .*, conv5x$"):
        frame_features(encoder, TWO_BY_FOUR, map_name="pool", data=DataConfig(manifest=""), device=CPU)
    with pytest.raises(ValueError, match="too small, expected at least"):
        frame_features(encoder, TWO_BY_FOUR, size=24, data=DataConfig(manifest=""), device=CPU)
    with pytest.raises(ValueError, match="size=4: expected 8 to 2160 pixels"):
        frame_features(encoder, TWO_BY_FOUR, size=4, data=DataConfig(manifest=""), device=CPU)


# ---- the tool


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("propagate") / "run"
    assert train(config(clip_set, folder, "optim.epochs=1"))
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """tools/evaluate.py -> exit code and what it printed."""
    spec = importlib.util.spec_from_file_location("called_evaluate", repository / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        try:
            code = module.main()
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_tool_on_scenes(run: Path, call: Call, tmp_path: Path) -> None:
    asked = [run, "propagate", "--scenes", 1, "--seed", 3, "--size", 64]
    code, printed, _ = call(*asked, "--json", tmp_path / "scores.json")
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].split() == ["J", "F", "J&F"]
    assert [line[:10].strip() for line in lines[1:3]] == ["conv3x", "first mask"]
    assert lines[3] == "1 clips, 2 things"
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    random = json.loads(call(*asked, "--random-weights", "--json")[1])["scores"]
    assert scores["propagated"] != random["propagated"]
    assert scores["still"] == random["still"]
    masks = make_scene(3).masks
    still = score_masks(masks, np.broadcast_to(masks[0], masks.shape)).mean(axis=0)
    assert [scores["still"]["j"], scores["still"]["f"]] == pytest.approx(still)
    for each in scores.values():
        assert each["jf"] == pytest.approx((each["j"] + each["f"]) / 2)
        assert 0 <= each["interval"][0] <= each["jf"] + 1e-9
        assert each["jf"] - 1e-9 <= each["interval"][1] <= 1


def test_tool_on_davis_names_clips_that_cannot_be_used(run: Path, call: Call, tmp_path: Path) -> None:
    davis = tmp_path / "DAVIS"
    frames, masks = moving_squares(5)
    for name in ("bear", "cows", "dogs"):
        write_davis(davis, name, frames, masks * (name != "cows"))
    asked = [run, "propagate", "--davis", davis, "--size", 96, "--map", "conv2x"]
    code, printed, error = call(*asked)
    assert code == 1
    assert "not read: cows: the first mask shows only background" in error
    assert "2 clips, 4 things" in printed
    (davis / "val.txt").write_text("dogs\n")
    code, printed, _ = call(*asked, "--split", davis / "val.txt")
    assert code == 0
    assert "1 clips, 2 things" in printed
    (davis / "val.txt").write_text("cows\n")
    code, _, error = call(*asked, "--split", davis / "val.txt")
    assert code == 2
    assert "error: none of 1 clips can be used (first: the first mask shows only background" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["knn"], "the following arguments are required: --dataset"),
        (["linear", "--dataset", "a", "--scenes", "3"], "unrecognized arguments: --scenes 3"),
        (["propagate", "--dataset", "a"], "unrecognized arguments: --dataset a"),
        (["propagate", "--scenes", "3", "--davis", "a"], "argument --davis: not allowed with argument --scenes"),
        (["propagate", "--davis", "nowhere"], "error: nowhere has no JPEGImages/480p"),
        (["propagate", "--davis", "nowhere", "--seed", "1"], "error: --seed 1 is for synthetic scenes"),
        (["propagate", "--split", "val.txt"], "error: --split val.txt lists clips of DAVIS: give its folder"),
        (["propagate", "--scenes", "0"], "error: --scenes 0 --seed 0: expected at least 1 and 0"),
        (["propagate", "--seed", "-1"], "error: --scenes 10 --seed -1: expected at least 1 and 0"),
        (["propagate", "--map", "conv9"], "error: map conv9 is not one of R2Plus1DAvid: choose conv1"),
    ],
)
def test_wrong_calls_end_with_code_2(run: Path, call: Call, arguments: list[str], message: str) -> None:
    code, _, error = call(run, *arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def test_a_clip_is_scored_by_what_moved(run: Path) -> None:
    """The same numbers as by hand, for a reader of one's own."""
    frames, masks = moving_squares(6)
    loaded = load_run(run)
    result = score_propagation(loaded, ["mine"], lambda name: (frames, masks), size=96, map_name="conv1")
    features, _ = frame_features(
        loaded.method.encoders["video"], frames, data=loaded.data, size=96, map_name="conv1", device=CPU
    )
    by_hand = score_masks(masks, propagate_mask(features, masks[0]))
    assert [result["scores"]["propagated"][name] for name in "jf"] == pytest.approx(by_hand.mean(axis=0))
    assert (result["num_clips"], result["num_things"], result["errors"]) == (1, 2, {})
