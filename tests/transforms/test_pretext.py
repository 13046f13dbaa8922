"""Views of pretext tasks: what is read, what is drawn, and what the encoder gets to see."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from avssl.config import DataConfig
from avssl.transforms.pretext import AudioSegments, AudioSpeed, Segments, Speed, Tiles
from avssl.transforms.recipes import Audio, Clip, Plan, Recipe, Video, Window
from avssl.transforms.views import View, make_example
from avssl.windows import Span

LONG = Clip(160, 120, Span(0, 60), Span(0, 60))
PLAIN = {"jitter": [0, 0, 0, 0], "flip": 0.0}
DATA = DataConfig(
    manifest="",
    size=48,
    num_frames=4,
    fps=8,
    audio_seconds=0.5,
    sample_rate=8000,
    n_fft=256,
    patch_size=12,
    spectrogram="log_mel",
)
RECIPES = [Tiles(), Segments(3, 0.5), AudioSegments(3, 0.5), Speed(), AudioSpeed()]


def named(recipe: Recipe) -> str:
    return type(recipe).__name__


def plans(recipe: Recipe, data: DataConfig, num: int, *, clip: Clip = LONG, start: float = 1.0) -> list[Plan]:
    return [recipe.plan(np.random.default_rng(i), data, clip, Window(start)) for i in range(num)]


def batch_of(recipe: Recipe, data: DataConfig, num: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    made, generator = plans(recipe, data, num), torch.Generator().manual_seed(0)
    shape = (num, *made[0].shape)
    if recipe.modality == "video":
        x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        x = 0.1 * torch.randn(shape, generator=generator)
    return x, default_collate([{k: torch.from_numpy(np.asarray(v)) for k, v in plan.params.items()} for plan in made])


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_a_batch_is_each_clip_alone_and_its_plan_says_what_is_read(recipe: Recipe) -> None:
    data = DATA.replace(jitter=(0.4, 0.4, 0.4, 0.1), gray=0.3, blur=0.5)
    x, params = batch_of(recipe, data, 6)
    before, together = x.clone(), recipe.apply(x, params, data)
    alone = [recipe.apply(x[i : i + 1], {k: v[i : i + 1] for k, v in params.items()}, data) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert torch.equal(x, before)
    assert together.dtype == torch.float32
    example = make_example(View("view", recipe=recipe), data)  # as the encoder takes it
    assert together.flatten(0, -example.dim()).shape[1:] == example.shape[1:]
    for plan in plans(recipe, data, 3):
        if recipe.modality == "video":
            num = sum(round(window.duration * window.fps) for window in plan.windows)
            assert plan.shape == (num, 48, 48, 3)
        else:
            assert plan.shape == (sum(window.num_samples for window in plan.windows),)
        last = max(window.start + window.duration for window in plan.windows)
        assert last <= 1.0 + recipe.seconds(data) + 1e-9


# ---- tiles


def test_a_tile_is_cut_out_at_its_place_and_normalized_by_itself() -> None:
    data = DATA.replace(**PLAIN)
    x, params = batch_of(Tiles(), data, 5)
    tiles = Tiles().apply(x, params, data)
    assert tiles.shape == (5, 9, 3, 4, 12, 12)
    torch.testing.assert_close(tiles.mean(dim=(3, 4, 5)), torch.zeros(5, 9, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(tiles.std(dim=(3, 4, 5)), torch.ones(5, 9, 3), rtol=0, atol=1e-4)
    for clip in range(5):
        for number, (top, left) in enumerate(params["corner"][clip].tolist()):
            assert number // 3 * 16 <= top <= number // 3 * 16 + 4
            assert number % 3 * 16 <= left <= number % 3 * 16 + 4
            cut = x[clip, :, top : top + 12, left : left + 12].movedim(-1, 0).float()  # (3, T, P, P)
            flat = (cut - cut.mean(dim=(1, 2, 3), keepdim=True)) / cut.std(dim=(1, 2, 3), keepdim=True)
            torch.testing.assert_close(tiles[clip, number], flat, rtol=0, atol=1e-3)
    assert len(params["corner"].unique(dim=0)) == 5


def test_colors_of_tiles_are_drawn_for_each_and_gray_for_all() -> None:
    data = DATA.replace(jitter=(0.4, 0.4, 0.4, 0.1), gray=0.5)
    _, params = batch_of(Tiles(), data, 40)
    assert params["jitter"].shape == (40, 9, 4)
    assert len(params["jitter"].flatten(0, 1).unique(dim=0)) == 360
    assert params["gray"].shape == (40,)
    assert 5 < params["gray"].sum() < 35


def test_flat_tiles_stay_finite() -> None:
    x, params = batch_of(Tiles(), DATA, 2)
    assert Tiles().apply(torch.full_like(x, 7), params, DATA).abs().max() < 1e-2


def test_evaluation_takes_the_middle_of_each_cell() -> None:
    plan = Tiles().plan(None, DATA, LONG, Window(1.0))
    assert plan.params["corner"].tolist() == [[16 * (i // 3) + 2, 16 * (i % 3) + 2] for i in range(9)]


def test_tiles_larger_than_a_third_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data\.patch_size=17 with data\.size=48: a tile must be at most a third of it"
    ):
        Tiles().plan(None, DATA.replace(patch_size=17), LONG, Window(0.0))


# ---- segments


@pytest.mark.parametrize(
    "recipe, plain", [(Segments(3, 0.5), Video()), (AudioSegments(3, 0.5), Audio())], ids=["video", "audio"]
)
def test_segments_are_clips_of_their_own_with_one_draw(recipe: Recipe, plain: Recipe) -> None:
    data = DATA.replace(jitter=(0.4, 0.4, 0.4, 0.1), gray=0.3, volume_jitter=0.5)
    x, params = batch_of(recipe, data, 4)
    together = recipe.apply(x, params, data)
    assert together.shape[:2] == (4, 3)
    for number, part in enumerate(x.unflatten(1, (3, -1)).unbind(1)):
        torch.testing.assert_close(together[:, number], plain.apply(part, params, data), rtol=0, atol=1e-5)
    (plan,) = plans(recipe, data, 1)
    assert [window.start for window in plan.windows] == pytest.approx([1.0, 1.75, 2.5])  # half a second each
    assert [window.duration for window in plan.windows] == pytest.approx([0.5] * 3)
    assert recipe.seconds(data) == pytest.approx(2.0)


# ---- speed


@pytest.mark.parametrize("recipe", [Speed(), AudioSpeed()], ids=named)
def test_a_clip_is_shown_at_the_speeds_that_it_is_long_enough_for(recipe: Recipe) -> None:
    """Half a second at normal speed; 1.6 s are left behind the start."""
    short = Clip(160, 120, Span(0, 2.6), Span(0, 2.6))
    assert {int(plan.params["label"]) for plan in plans(recipe, DATA, 60)} == {0, 1, 2, 3}
    assert {int(plan.params["label"]) for plan in plans(recipe, DATA, 60, clip=short)} == {0, 1, 2}
    assert {int(plan.params["label"]) for plan in plans(recipe, DATA, 20, clip=short, start=2.3)} == {0}
    assert recipe.seconds(DATA) == pytest.approx(2.0)
    assert int(recipe.plan(None, DATA, LONG, Window(0.0)).params["label"]) == 0


def test_frames_of_a_faster_clip_lie_further_apart() -> None:
    for plan in plans(Speed(), DATA, 20):
        (window,), stride = plan.windows, int(plan.params["label"]) + 1
        assert (window.fps, window.duration) == pytest.approx((8 / stride, 0.5 * stride))


def test_colors_are_drawn_for_each_frame_of_a_speed() -> None:
    data = DATA.replace(jitter=(0.4, 0.4, 0.4, 0.1), flip=0.0)
    x, params = batch_of(Speed(), data, 4)
    assert params["jitter"].shape == (4, 4, 4)
    assert len(params["jitter"].flatten(0, 1).unique(dim=0)) == 16
    same = x[:, :1].expand_as(x).contiguous()  # one frame over and over
    shown = Speed().apply(same, params, data)
    assert (shown[:, :, 1:] - shown[:, :, :1]).abs().amax(dim=(1, 3, 4)).min() > 0.01
    straight = Speed().apply(x, params | {"jitter": torch.tensor([1.0, 1, 1, 0]).expand(4, 4, 4)}, data)
    torch.testing.assert_close(
        straight,
        Video().apply(
            x,
            {
                "flip": params["flip"],
                "jitter": torch.tensor([1.0, 1, 1, 0]).expand(4, 4),
                "order": params["order"][:, 0],
            },
            data,
        ),
    )


def test_a_faster_sound_keeps_its_pitch() -> None:
    data = DATA.replace(volume_jitter=0.0)
    x, params = batch_of(AudioSpeed(), data, 8)
    params["label"] = torch.tensor([3, 0, 1, 2, 0, 3, 1, 2])
    shown = AudioSpeed().apply(x, params, data)
    assert shown.shape == (8, 1, 50, shown.shape[-1])
    for row, label in enumerate(params["label"].tolist()):
        stride = label + 1
        own = data.replace(audio_seconds=0.5 * stride, hop_seconds=0.01 * stride)
        expected = Audio().apply(x[row : row + 1, : 4000 * stride], {"gain": params["gain"][row : row + 1]}, own)
        torch.testing.assert_close(shown[row : row + 1], expected, rtol=0, atol=1e-5)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(x.shape[1]) / 8000).expand_as(x)
    peaks = AudioSpeed().apply(tone, params, data)[:, 0, 5:45].mean(dim=1).argmax(dim=1)
    assert (peaks == peaks[0]).all()
