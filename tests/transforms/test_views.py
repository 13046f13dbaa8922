"""The views as data and methods use them: drawn parameters, batches of them, and the whole of `apply`."""

import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional

from avssl.config import DataConfig
from avssl.transforms.audio import mix_background
from avssl.transforms.pretext import AudioSegments, AudioSpeed
from avssl.transforms.recipes import Clip, Window
from avssl.transforms.video import crop_boxes
from avssl.transforms.views import (
    RECIPES,
    Same,
    View,
    check_views,
    clips,
    make_example,
    multi_crop,
    two_views,
)

PICTURE = Clip(160, 120, None, None)
EVERYTHING = {  # as CVRL, but with probabilities at which all cases occur in a few clips
    "min_crop_area": 0.3,
    "max_crop_area": 0.8,
    "crop_aspect": [0.5, 2.0],
    "jitter": [0.8, 0.8, 0.8, 0.2],
    "jitter_probability": 0.6,
    "gray": 0.4,
    "blur": 0.5,
    "solarize": 0.5,
}
SMALL = {"num_frames": 3, "patch_size": 32, "patch_grid": 3}
CASES = [*((name, SMALL) for name in RECIPES), ("video", EVERYTHING)]


def draw(name: str, rng: np.random.Generator | None, data: DataConfig, clip: Clip = PICTURE) -> dict[str, np.ndarray]:
    return RECIPES[name].plan(rng, data, clip, Window(0.0, (0, 0, 1, 1) if name == "patch" else None)).params


def some_batch(name: str, data: DataConfig, num_clips: int, *, train: bool = True) -> tuple[torch.Tensor, dict]:
    """Input and parameters, as a loader hands them over."""
    generator = torch.Generator().manual_seed(0)
    if RECIPES[name].modality == "video":
        # the frames have 32 x 40 pixels whatever data.size, of which the draw of the blur depends
        height, width = {"rotation": (32, 32), "tiles": (data.size, data.size)}.get(name, (32, 40))
        x = torch.randint(0, 256, (num_clips, 3, height, width, 3), dtype=torch.uint8, generator=generator)
    else:
        x = 0.1 * torch.randn(num_clips, round(data.audio_seconds * data.sample_rate), generator=generator)
    rngs = [np.random.default_rng(i) if train else None for i in range(num_clips)]
    drawn = [draw(name, rng, data) for rng in rngs]
    return x, default_collate([{key: torch.from_numpy(value) for key, value in clip.items()} for clip in drawn])


@pytest.mark.parametrize("name, options", CASES)
@pytest.mark.parametrize("train", [True, False])
def test_a_batch_is_each_clip_alone(name, options, train):
    data = DataConfig(manifest="", audio_seconds=0.2, **options)
    x, params = some_batch(name, data, 9, train=train)
    before = x.clone()
    together = RECIPES[name].apply(x, params, data)
    alone = [RECIPES[name].apply(x[i : i + 1], {k: v[i : i + 1] for k, v in params.items()}, data) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name, options", CASES)
def test_apply_gives_float32_even_under_autocast(name, options):
    data = DataConfig(manifest="", audio_seconds=0.2, **options)
    x, params = some_batch(name, data, 8)
    expected = RECIPES[name].apply(x, params, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = RECIPES[name].apply(x, params, data)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("name, options", CASES)
def test_the_same_generator_draws_the_same(name, options):
    def drawn(seed: int | None) -> dict:
        rng = None if seed is None else np.random.default_rng(seed)
        return draw(name, rng, DataConfig(manifest="", **options))

    assert equal(drawn(3), drawn(3))
    assert not equal(drawn(3), drawn(4))
    assert equal(drawn(None), drawn(None))


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


RECORDED = [  # drawn by the recipe before it had options that are off by default; the last: the number drawn next
    (
        (7, 160, 120),
        [0.1, 0.16875, 0.8333333333333334, 0.7875],
        True,
        [0.840133011341095, 1.2988427877426147, 0.60421222448349, 0.1284913718700409],
        [0, 3, 1, 2],
        2009765319,
    ),
    (
        (8, 400, 20),
        [0.0, 0.465, 1.0, 0.0675],
        False,
        [0.7201648950576782, 0.8971096873283386, 0.8276965022087097, -0.1932871788740158],
        [0, 1, 3, 2],
        4240420986,
    ),
]


@pytest.mark.parametrize("picture, crop, flip, jitter, order, next_number", RECORDED)
def test_the_defaults_draw_what_they_always_drew(picture, crop, flip, jitter, order, next_number):
    seed, width, height = picture
    rng = np.random.default_rng(seed)
    drawn = draw("video", rng, DataConfig(manifest=""), Clip(width, height, None, None))
    assert list(drawn) == ["crop", "flip", "jitter", "order"]
    assert (drawn["crop"].tolist(), drawn["flip"].item()) == (crop, flip)
    assert (drawn["jitter"].tolist(), drawn["order"].tolist()) == (jitter, order)
    assert rng.integers(2**32) == next_number


def test_options_take_their_numbers_after_the_others():
    for seed in range(50):
        default = draw("video", np.random.default_rng(seed), DataConfig(manifest=""))
        options = {"jitter_probability": 0.5, "gray": 0.5, "blur": 0.5, "solarize": 0.5}
        drawn = draw("video", np.random.default_rng(seed), DataConfig(manifest="", **options))
        kept = ["crop", "flip", "order"] + ["jitter"] * (drawn["jitter"].tolist() != [1, 1, 1, 0])
        assert equal({key: default[key] for key in kept}, {key: drawn[key] for key in kept})


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_video_is_torchvisions_clip_by_clip(options):
    data = DataConfig(manifest="", **options)
    num_clips = 24
    x, params = some_batch("video", data, num_clips)
    for key in params.keys() - {"crop", "jitter", "order"}:
        assert 0 < (params[key] > 0).sum() < num_clips, key
    applied = RECIPES["video"].apply(x, params, data)
    operations = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for i in range(num_clips):
        frames = x[i].permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
        if params["flip"][i]:
            frames = functional.horizontal_flip(frames)
        for number in params["order"][i].tolist():
            frames = operations[number](frames, params["jitter"][i, number].item())
        if "gray" in params and params["gray"][i]:
            frames = functional.rgb_to_grayscale(frames, num_output_channels=3)
        if "blur" in params and params["blur"][i]:
            frames = functional.gaussian_blur(frames, [5, 3], [params["blur"][i].item()] * 2)
        if "solarize" in params and params["solarize"][i]:
            frames = functional.solarize(frames, 0.5)  # at the threshold 0.5 becomes 0.5: rounding makes no jump
        frames = functional.normalize(frames, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(applied[i], frames.transpose(0, 1), rtol=0, atol=5e-5)


OTHER_COLORS = {"pixel_mean": [0.43, 0.39, 0.38], "pixel_std": [0.23, 0.22, 0.21]}


@pytest.mark.parametrize("options", [{}, EVERYTHING, OTHER_COLORS])
def test_the_evaluation_view_only_normalizes(options):
    data = DataConfig(manifest="", audio_seconds=0.2, **options)
    x, params = some_batch("video", data, 1, train=False)
    assert params.keys() == some_batch("video", data, 1)[1].keys()
    mean, std = options.get("pixel_mean", [0.485, 0.456, 0.406]), options.get("pixel_std", [0.229, 0.224, 0.225])
    expected = functional.normalize(x[0].permute(0, 3, 1, 2).float() / 255, mean, std)
    torch.testing.assert_close(RECIPES["video"].apply(x, params, data)[0], expected.transpose(0, 1))
    assert some_batch("audio", data, 1, train=False)[1]["gain"].tolist() == [1.0]


@pytest.mark.parametrize("options", [{"pixel_mean": [0.5]}, {"pixel_std": [0.2, 0.2, 0.0]}])
def test_colors_that_cannot_be_standardized(options):
    x, params = some_batch("video", DataConfig(manifest=""), 1, train=False)
    with pytest.raises(ValueError, match=r"pixel_(mean|std)=\[.*\] in DataConfig: expected a list of 3, each a number"):
        RECIPES["video"].apply(x, params, DataConfig(manifest="", **options))


@pytest.mark.parametrize("spectrogram, shape", [("avid", (50, 257)), ("log_mel", (50, 64)), ("none", (12_000,))])
def test_gain_and_shape_of_sound(spectrogram, shape):
    data = DataConfig(manifest="", audio_seconds=0.5, spectrogram=spectrogram)
    x, params = some_batch("audio", data, 2)
    applied = RECIPES["audio"].apply(x, params, data)
    assert applied.shape == (2, 1, *shape)
    unit = {"gain": torch.ones(2)}
    torch.testing.assert_close(applied, RECIPES["audio"].apply(x * params["gain"].unsqueeze(1), unit, data))
    assert not torch.equal(applied, RECIPES["audio"].apply(x, unit, data))


def test_another_sound_lies_below():
    """In the share of the power that was drawn; nobody is their own background."""
    data = DataConfig(manifest="", audio_seconds=0.5, spectrogram="log_mel", background=0.4, volume_jitter=0.0)
    x, params = some_batch("audio", data, 6)
    share, place = params["background"].unbind(dim=1)
    assert 0 < share.min() <= share.max() < 0.4
    mixed = mix_background(x, share=share, place=place)
    for row, (a, p) in enumerate(zip(share.tolist(), place.tolist(), strict=True)):
        (other,) = (j for j in range(6) if j == (row + 1 + int(p * 5)) % 6)
        assert other != row
        torch.testing.assert_close(mixed[row], (1 - a) ** 0.5 * x[row] + a**0.5 * x[other])
    unit = {"gain": torch.ones(6)}
    applied = RECIPES["audio"].apply(x, params, data)
    torch.testing.assert_close(applied, RECIPES["audio"].apply(mixed, unit, data))
    assert torch.equal(mix_background(x[:1], share=share[:1], place=place[:1]), x[:1])
    _, still = some_batch("audio", data, 2, train=False)
    two = {"gain": unit["gain"][:2]}
    torch.testing.assert_close(RECIPES["audio"].apply(x[:2], still, data), RECIPES["audio"].apply(x[:2], two, data))


@pytest.mark.parametrize("time, band", [(0.5, 0.0), (0.0, 0.3), (0.4, 0.2)])
def test_stripes_are_masked_as_spec_augment_does(time, band):
    data = DataConfig(manifest="", audio_seconds=0.5, spectrogram="log_mel", time_mask=time, band_mask=band)
    x, params = some_batch("audio", data, 200)
    masks, plain = params["masks"], {"gain": params["gain"]}
    assert masks.shape == (200, 2, 2, 2)
    assert (masks >= 0).all()
    assert (masks.sum(dim=-1) <= 1).all()  # a stripe ends inside
    for axis, largest in enumerate((time, band)):
        assert masks[:, axis, :, 1].max() <= largest
        assert masks[:, axis, :, 1].mean().item() == pytest.approx(largest / 2, abs=0.03)
    few = {name: value[:3] for name, value in params.items()}
    applied, whole = (RECIPES["audio"].apply(x[:3], p, data) for p in (few, {"gain": few["gain"]}))
    for row in range(3):
        hidden = torch.zeros(50, 64, dtype=torch.bool)
        for start, width in masks[row, 0].tolist():
            hidden |= torch.tensor([start <= (s + 0.5) / 50 < start + width for s in range(50)])[:, None]
        for start, width in masks[row, 1].tolist():
            hidden |= torch.tensor([start <= (f + 0.5) / 64 < start + width for f in range(64)])
        assert torch.equal(applied[row, 0], whole[row, 0].masked_fill(hidden, 0))
    assert torch.equal(RECIPES["audio"].apply(x[:3], {k: v[:3] for k, v in plain.items()}, data), whole)


def test_draws_follow_the_configuration():
    rng = np.random.default_rng(0)
    never = DataConfig(manifest="", flip=0.0, jitter=[0, 0, 0, 0], volume_jitter=0.0, min_crop_area=1.0)
    for _ in range(20):
        drawn = draw("video", rng, never, Clip(64, 64, None, None))
        assert not drawn["flip"]
        assert drawn["jitter"].tolist() == [1, 1, 1, 0]
        assert drawn["crop"].tolist() == [0, 0, 1, 1]
        assert draw("audio", rng, never, Clip(64, 64, None, None))["gain"] == 1
    drawn = [draw("video", rng, DataConfig(manifest="")) for _ in range(1200)]
    orders = Counter(tuple(one["order"].tolist()) for one in drawn)
    assert len(orders) == 24
    assert max(orders.values()) < 90  # 50 expected
    assert sum(int(one["flip"]) for one in drawn) == pytest.approx(600, abs=90)
    gains = [draw("audio", rng, DataConfig(manifest=""))["gain"] for _ in range(500)]
    assert min(gains) == pytest.approx(0.9, abs=0.01)
    assert max(gains) == pytest.approx(1.1, abs=0.01)


@pytest.mark.parametrize("blur, solarize", [(1.0, 0.3), (0.1, 0.2)])
def test_probabilities_are_those_of_the_configuration(blur, solarize):
    rng = np.random.default_rng(0)
    data = DataConfig(manifest="", size=112, jitter_probability=0.8, gray=0.2, blur=blur, solarize=solarize)
    drawn = [draw("video", rng, data) for _ in range(2000)]
    jittered = np.mean([one["jitter"].tolist() != [1, 1, 1, 0] for one in drawn])
    assert jittered == pytest.approx(0.8, abs=0.03)  # 3 standard deviations are 0.027
    assert np.mean([one["gray"] for one in drawn]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([one["solarize"] for one in drawn]) == pytest.approx(solarize, abs=0.03)
    sigma = np.array([one["blur"] for one in drawn])
    assert sigma.dtype == np.float32
    assert np.mean(sigma > 0) == pytest.approx(blur, abs=0 if blur == 1 else 0.03)
    quantiles = np.quantile(sigma[sigma > 0], [0, 0.5, 1])
    np.testing.assert_allclose(quantiles, [0.05, 0.525, 1.0], atol=0.1)  # [0.1, 2] halved: the crop has half of 224


def test_what_is_off_has_no_parameter():
    rng = np.random.default_rng(0)
    for key in ("gray", "blur", "solarize"):
        drawn = draw("video", rng, DataConfig(manifest="", **{key: 0.1}))
        assert list(drawn) == ["crop", "flip", "jitter", "order", key]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", [{"gray": 0.001}, {"blur": 0.001}, {"solarize": 0.001}])
def test_an_option_that_touches_no_clip_changes_no_bit(options, train):
    x, params = some_batch("video", DataConfig(manifest="", **options), 4, train=train)
    assert params[next(iter(options))].sum() == 0
    default = {key: params[key] for key in ("flip", "jitter", "order")}
    applied = RECIPES["video"].apply(x, params, DataConfig(manifest="", **options))
    assert torch.equal(applied, RECIPES["video"].apply(x, default, DataConfig(manifest="")))


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "audio",
            {"volume_jitter": 1.5},
            r"volume_jitter=1\.5 in DataConfig: expected a number of at least 0 and below 1",
        ),
        ("video", {"min_crop_area": 0.0}, r"min_crop_area=0\.0 in DataConfig: expected a number above 0 and at most 1"),
        ("video", {"max_crop_area": 1.1}, r"max_crop_area=1\.1 in DataConfig: expected a number above 0 and at most 1"),
        ("video", {"max_crop_area": 0.05}, r"data\.max_crop_area=0\.05 must be in \[data\.min_crop_area, 1\]"),
        ("video", {"crop_aspect": [2.0, 0.5]}, r"data\.crop_aspect=\[2\.0, 0\.5\] .* \[1, 1\] takes squares"),
        (
            "video",
            {"crop_aspect": [0.75]},
            r"crop_aspect=\[0\.75\] in DataConfig: expected a list of 2, each a number above 0",
        ),
        ("video", {"crop_aspect": [0.0, 1.0]}, r"crop_aspect=\[0\.0, 1\.0\] in DataConfig: .* above 0"),
        ("video", {"jitter_probability": 1.5}, r"jitter_probability=1\.5 in DataConfig: expected a number from 0 to 1"),
        (
            "video",
            {"jitter_probability": -0.5},
            r"jitter_probability=-0\.5 in DataConfig: expected a number from 0 to 1",
        ),
        ("video", {"gray": 2.0}, r"gray=2\.0 in DataConfig: expected a number from 0 to 1"),
        ("video", {"gray": float("nan")}, r"gray=nan in DataConfig: expected a finite number from 0 to 1"),
        ("video", {"blur": 1.1}, r"blur=1\.1 in DataConfig: expected a number from 0 to 1"),
        ("video", {"solarize": -0.1}, r"solarize=-0\.1 in DataConfig: expected a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        draw(name, np.random.default_rng(0), DataConfig(manifest="", **options))


def test_spectrograms_that_do_not_exist_are_refused():
    data = DataConfig(manifest="", audio_seconds=0.2, sample_rate=16000)
    x, params = some_batch("audio", data, 1)
    with pytest.raises(ValueError, match="log_mel"):
        RECIPES["audio"].apply(x, params, data)


def test_samples_have_no_speed_and_no_stripes_to_mask() -> None:
    data = DataConfig(manifest="", spectrogram="none", audio_seconds=0.1)
    with pytest.raises(ValueError, match=r"data\.spectrogram=none: speed is told by the steps"):
        make_example(View("x", recipe=AudioSpeed()), data)
    assert make_example(View("x", recipe="audio"), data).shape == (1, 1, 2400)
    assert make_example(View("x", recipe=AudioSegments(3)), data).shape == (3, 1, 2400)
    with pytest.raises(ValueError, match=r"data\.time_mask and data\.band_mask .* 0 with spectrogram=none"):
        DataConfig(manifest="", spectrogram="none", band_mask=0.1)


def test_cut_is_the_crop_that_decoding_makes() -> None:
    """The middle of a pixel that comes out lies at left + (x + 0.5) / size * width; beyond the edge, the edge."""
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.random((2, 3, 20, 30), dtype=np.float32))
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.4], [0.0, 0.0, 1.0, 1.0]], [[0.5, 0.5, 0.5, 0.5], [0.3, 0.0, 0.2, 0.9]]])
    patches = crop_boxes(frames, boxes, size=8)
    assert patches.shape == (2, 2, 3, 8, 8)
    for i in range(2):
        picture = np.ascontiguousarray(frames[i].permute(1, 2, 0).numpy())
        for j, (top, left, height, width) in enumerate(boxes[i].tolist()):
            middles = (np.arange(8) + 0.5) / 8
            columns, rows = np.meshgrid((left + middles * width) * 30 - 0.5, (top + middles * height) * 20 - 0.5)
            expected = cv2.remap(
                picture,
                columns.astype(np.float32),
                rows.astype(np.float32),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            np.testing.assert_allclose(patches[i, j].permute(1, 2, 0), expected, atol=0.02)  # OpenCV: 1/32 of a pixel


def test_a_walks_cells_lie_inside_their_grid() -> None:
    data = DataConfig(manifest="", num_frames=4, size=96, patch_size=32, patch_grid=5)
    drawn = draw("walk", np.random.default_rng(0), data)
    still = draw("walk", None, data)["cells"]
    assert drawn["cells"].shape == still.shape == (4, 25, 4)
    np.testing.assert_allclose(still[0, [0, 4, 24], :2], [[0, 0], [0, 2 / 3], [2 / 3, 2 / 3]], atol=1e-6)
    np.testing.assert_allclose(still[..., 2:], 1 / 3, atol=1e-6)
    begin, end = drawn["cells"][..., :2], drawn["cells"][..., :2] + drawn["cells"][..., 2:]
    assert (begin >= still[..., :2] - 1e-6).all()
    assert (end <= still[..., :2] + 1 / 3 + 1e-6).all()
    area = 9 * drawn["cells"][..., 2] * drawn["cells"][..., 3]
    assert 0.6 < area.min() < 0.75  # drawn from .7 to .9, less where a side would leave the cell
    assert 0.85 < area.max() <= 0.9
    assert len(np.unique(drawn["cells"][:, 0, 0])) == len(np.unique(drawn["crop"], axis=0)) == 4  # each frame by itself


def test_a_walks_frames_are_cropped_one_by_one() -> None:
    data = DataConfig(manifest="", num_frames=4, fps=10, size=96, patch_size=32, patch_grid=3)
    plan = RECIPES["walk"].plan(np.random.default_rng(0), data, PICTURE, Window(1.0))
    assert [(window.start, window.num_frames) for window in plan.windows] == [(1.0 + i / 10, 1) for i in range(4)]
    assert [window.crop for window in plan.windows] == [tuple(crop) for crop in plan.params["crop"].tolist()]


@pytest.mark.parametrize("options", [{"patch_size": 65, "size": 64}, {"num_frames": 2}])
def test_a_walk_that_cannot_be_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"data\.(patch_size=65 must be .* data\.size=64|num_frames=2: a walk)"):
        draw("walk", None, DataConfig(manifest="", **options))


def test_a_view_is_a_value() -> None:
    """Equal whatever way its changes were written, hashable, and the same behind a process."""
    one = View("a", changes={"size": 96, "crop_aspect": [0.5, 2.0]})
    two = View("a", changes=(("crop_aspect", (0.5, 2.0)), ("size", 96)))
    assert one == two == pickle.loads(pickle.dumps(one))
    assert len({one, two, View("a")}) == 2
    data = DataConfig(manifest="")
    assert one.settings(data) == data.replace(size=96, crop_aspect=(0.5, 2.0))
    assert View("a").settings(data) is data


def test_views_that_cannot_be_planned_are_refused_by_name() -> None:
    data = DataConfig(manifest="", num_frames=4)
    for views, message in (
        ((View("a", recipe="vidio"),), "view a: recipe vidio is unknown: did you mean video"),
        ((View("a", changes={"sise": 3}),), r"view a cannot change data\.sise: did you mean size"),
        ((View("a", changes={"batch_size": 3}),), r"view a cannot change data\.batch_size"),
        ((View("a", changes={"size": 0}),), "size=0 in DataConfig"),
        ((View("a"), View("a")), "two views have the name a"),
        ((View("a", when=Same("b")), View("b")), "view a lies where view b does, which must stand before it"),
        ((View("a", recipe="walk", changes={"num_frames": 2}),), "a walk there and back needs at least 3 frames"),
    ):
        with pytest.raises(ValueError, match=message):
            check_views(views, data)
    with pytest.raises(ValueError, match=r"view video\.1 is drawn at random"):
        check_views(clips(2), data, evaluation=True)


def test_helpers_list_their_crops() -> None:
    views = multi_crop(2, 2, small={"size": 96})
    assert [(view.name, dict(view.changes)) for view in views] == [
        ("video", {}),
        ("video.1", {}),
        ("small.0", {"size": 96}),
        ("small.1", {"size": 96}),
    ]
    assert {view.when for view in views[1:]} == {Same("video")}
    first, second = two_views({"blur": 1.0}, {"blur": 0.1, "solarize": 0.2})
    assert (dict(first.changes), dict(second.changes)) == ({"blur": 1.0}, {"blur": 0.1, "solarize": 0.2})


def test_a_turn_is_flipud_of_the_transpose() -> None:
    data = DataConfig(manifest="", size=32)
    x, params = some_batch("rotation", data, 40)
    turned = RECIPES["rotation"].apply(x, params, data)
    straight = RECIPES["video"].apply(x, params, data)
    counts = Counter(params["label"].tolist())
    assert set(counts) == {0, 1, 2, 3}
    for label, one, other in zip(params["label"].tolist(), turned, straight, strict=True):
        for _ in range(label):
            other = other.transpose(-1, -2).flip(-2)
        assert torch.equal(one, other)
