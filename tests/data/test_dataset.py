"""Views of real clips: every recipe's pixels, a recipe of one's own, crops and sounds of other sizes."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avssl.config import DataConfig
from avssl.data.dataset import ClipDataset, collate
from avssl.data.loader import build_loader
from avssl.data.manifest import Manifest, read_manifest
from avssl.data.sampling import NO_CLIP, Key
from avssl.media.decode import read_frames
from avssl.transforms.recipes import Clip, Plan, Video, Window
from avssl.transforms.views import RECIPES, First, Same, View, apply_views, multi_crop, two_views
from avssl.windows import VideoWindow

CPU = torch.device("cpu")
FRAMES, FPS, SIZE = 2, 5.0, 32


@pytest.fixture
def data(clip_set: Manifest) -> DataConfig:
    return DataConfig(
        manifest=str(clip_set.root / "manifest.parquet"),
        num_frames=FRAMES,
        fps=FPS,
        size=SIZE,
        audio_seconds=0.5,
        sample_rate=8000,
        spectrogram="log_mel",
        n_fft=256,
        num_mels=24,
        num_workers=2,
    )


class ClipOrder:
    """Three short pieces of a clip in a drawn order, which is to be told: several windows in one view."""

    modality = "video"
    ORDERS = ((0, 1, 2), (2, 1, 0), (1, 0, 2))

    def seconds(self, data: DataConfig) -> float:
        return 5 / data.fps

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        label = 0 if rng is None else int(rng.integers(len(self.ORDERS)))
        size = (data.size, data.size)
        starts = [window.start + 2 * piece / data.fps for piece in self.ORDERS[label]]
        windows = tuple(VideoWindow(start, 1 / data.fps, data.fps, size=size) for start in starts)
        return Plan(windows, (3, 1, *size, 3), {"label": np.asarray(label)})

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        return x.permute(0, 1, 5, 2, 3, 4).float().div(255)  # (B, 3 pieces, 3, 1, H, W)


def test_a_file_exchanged_since_the_manifest_was_written_is_named(
    clip_set: Manifest, data: DataConfig, tmp_path: Path
) -> None:
    shutil.copytree(clip_set.root, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set" / "manifest.parquet")
    shutil.copy(manifest.path(4), manifest.path(0))
    content = bytearray(manifest.path(2).read_bytes())
    content[-1] ^= 1  # of the same size
    manifest.path(2).write_bytes(content)
    dataset = ClipDataset(manifest, data, (View("video"), View("audio", recipe="audio")))
    for _ in range(2):
        batch = collate([dataset[Key(0, row, 0)] for row in range(4)])
        assert batch.ids.tolist() == [-1, 1, -1, 3]
        for row, error in zip((0, 2), batch.errors, strict=True):
            assert error.startswith(f"{manifest.path(row)}: the file is not the one that the manifest was written from")


def test_workers_touch_no_python_object_of_every_row(clip_set: Manifest, data: DataConfig) -> None:
    """Each text that a worker looks at would be copied into its memory, as it counts who looks: 190 bytes a row."""
    dataset = ClipDataset(clip_set, data, (View("video"), View("audio", recipe="audio")))
    arrays = [value for value in vars(dataset).values() if isinstance(value, np.ndarray)]
    assert arrays
    assert not [each for each in arrays if each.dtype == object]
    assert not [each for each in vars(dataset).values() if isinstance(each, list | dict) and len(each) >= len(clip_set)]


def test_a_recipe_of_ones_own_gives_its_pixels(
    clip_set: Manifest, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "clip_order", ClipOrder())
    views = (View("audio", recipe="audio"), View("pieces", recipe="clip_order"))
    dataset = ClipDataset(clip_set, data, views)
    keys = [[Key(0, row, 0) for row in range(4)]]
    (batch,) = build_loader(dataset, keys, data, device=CPU)
    labels = set()
    for row in range(4):
        label, start = int(batch.params["pieces"]["label"][row]), float(batch.start["pieces"][row])
        labels.add(label)
        order = ClipOrder.ORDERS[label]
        for place, piece in enumerate(order):
            seconds = dataset.windows(keys[0][row])["pieces"].start + 2 * piece / FPS
            expected = read_frames(clip_set.path(row), start=seconds, duration=1 / FPS, fps=FPS, size=(SIZE, SIZE))
            assert expected.data.any()
            assert np.array_equal(batch.video["pieces"][row, place].numpy(), expected.data)
            assert place or start == expected.start
    assert len(labels) > 1
    assert batch.has_video.all()
    assert apply_views(batch, views, data).video["pieces"].shape == (4, 3, 3, 1, SIZE, SIZE)


def test_every_recipe_sees_pixels(clip_set: Manifest, data: DataConfig) -> None:
    data = data.replace(num_frames=3, patch_size=10)  # a third of the frames at most
    views = [View(name, recipe=name, when=First()) for name, recipe in RECIPES.items() if name != "patch"]
    batch = collate([ClipDataset(clip_set, data, views)[Key(0, row, 0)] for row in range(3)])
    for view in views:
        seen = (batch.video if view.modality == "video" else batch.audio)[view.name]
        assert all(row.any() for row in seen), view.name


def test_an_unknown_recipe_is_refused_before_any_worker_starts(clip_set: Manifest, data: DataConfig) -> None:
    with pytest.raises(ValueError, match="view a: recipe clip_ordre is unknown"):
        ClipDataset(clip_set, data, [View("a", recipe="clip_ordre")])


def test_views_have_sizes_of_their_own(clip_set: Manifest, data: DataConfig) -> None:
    views = (
        *multi_crop(2, 2, small={"size": 24, "max_crop_area": 0.3}),
        View("fast", when=Same("video"), changes={"fps": 2 * FPS, "num_frames": 4}),
        View("audio", recipe="audio"),
        View("short", recipe="audio", when=Same("video"), changes={"audio_seconds": 0.25}),
    )
    dataset = ClipDataset(clip_set, data, views)
    batch = collate([dataset[Key(0, row, 0)] for row in range(3)])
    ready = apply_views(batch, views, data)
    assert {name: tuple(value.shape[2:]) for name, value in ready.video.items()} == {
        **dict.fromkeys(("video", "video.1"), (FRAMES, SIZE, SIZE)),
        **dict.fromkeys(("small.0", "small.1"), (FRAMES, 24, 24)),
        "fast": (4, SIZE, SIZE),
    }
    assert {name: value.shape[2] for name, value in ready.audio.items()} == {"audio": 50, "short": 25}
    assert len({batch.start[name][0].item() for name in ("video", "video.1", "small.0", "fast")}) == 1
    area = batch.params["small.0"]["crop"][:, 2] * batch.params["small.0"]["crop"][:, 3]
    assert (area <= 0.31).all()
    assert not torch.equal(batch.params["video"]["crop"], batch.params["video.1"]["crop"])


def test_two_views_differ_in_what_their_changes_say(clip_set: Manifest, data: DataConfig) -> None:
    views = two_views({"blur": 1.0}, {"solarize": 1.0})
    batch = collate([ClipDataset(clip_set, data, views)[Key(0, row, 0)] for row in range(3)])
    assert (batch.params["video"]["blur"] > 0).all()
    assert batch.params["video.1"]["solarize"].all()
    assert "solarize" not in batch.params["video"]
    assert "blur" not in batch.params["video.1"]


class Short(Video):
    """Plans no frames."""

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        return replace(super().plan(rng, data, clip, window), windows=())


def test_a_view_that_plans_nothing_is_refused_by_name(
    clip_set: Manifest, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "short", Short())
    with pytest.raises(ValueError, match="view a: recipe short plans no window"):
        ClipDataset(clip_set, data, [View("a", recipe="short")])


def test_an_empty_place_is_zeros_of_no_clip_and_no_error(clip_set: Manifest, data: DataConfig) -> None:
    dataset = ClipDataset(clip_set, data, (View("video"), View("audio", recipe="audio")))
    batch = collate([dataset[Key(0, 1, 0)], dataset[Key(0, NO_CLIP, 0)]])
    assert batch.ids.tolist() == [1, -1]
    assert (batch.has_video.tolist(), batch.has_audio[1].item(), batch.errors) == ([True, False], False, ())
    assert all(not value[1].any() for value in [*batch.video.values(), *batch.audio.values()])
    assert all(value[0].any() for value in batch.video.values())
