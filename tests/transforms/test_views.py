"""The views as data and methods use them: drawn parameters, batches of them, and the whole of `apply`."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional

from avssl.config import DataConfig
from avssl.transforms.video import cut
from avssl.transforms.views import VIEWS

PICTURE = {"width": 160, "height": 120, "number": 0}
EVERYTHING = {  # as CVRL, but with probabilities at which all cases occur in a few clips
    "min_crop_area": 0.3,
    "max_crop_area": 0.8,
    "crop_aspect": [0.5, 2.0],
    "jitter": [0.8, 0.8, 0.8, 0.2],
    "jitter_probability": 0.6,
    "grey": 0.4,
    "blur": [0.6, 0.4],
    "solarize": [0.4, 0.6],
}
SMALL = {"num_frames": 3, "patch_size": 32, "patch_grid": 3}
RECIPES = [*((name, SMALL) for name in VIEWS), ("video", EVERYTHING)]


def some_batch(name: str, data: DataConfig, num_clips: int, *, train: bool = True) -> tuple[torch.Tensor, dict]:
    """Input and parameters, as a loader hands them over."""
    generator = torch.Generator().manual_seed(0)
    if VIEWS[name].modality == "video":
        # the frames have 32 x 40 pixels whatever data.size, of which the draw of the blur depends
        x = torch.randint(0, 256, (num_clips, 3, 32, 40, 3), dtype=torch.uint8, generator=generator)
    else:
        x = 0.1 * torch.randn(num_clips, round(data.audio_seconds * data.sample_rate), generator=generator)
    rngs = [np.random.default_rng(i) if train else None for i in range(num_clips)]
    drawn = [VIEWS[name].draw(rng, data, **PICTURE) for rng in rngs]
    return x, default_collate([{key: torch.from_numpy(value) for key, value in clip.items()} for clip in drawn])


@pytest.mark.parametrize("name, options", RECIPES)
@pytest.mark.parametrize("train", [True, False])
def test_a_batch_is_each_clip_alone(name, options, train):
    data = DataConfig(manifest="", audio_seconds=0.2, **options)
    x, params = some_batch(name, data, 9, train=train)
    before = x.clone()
    together = VIEWS[name].apply(x, params, data)
    alone = [VIEWS[name].apply(x[i : i + 1], {k: v[i : i + 1] for k, v in params.items()}, data) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name, options", RECIPES)
def test_apply_gives_float32_even_under_autocast(name, options):
    data = DataConfig(manifest="", audio_seconds=0.2, **options)
    x, params = some_batch(name, data, 8)
    expected = VIEWS[name].apply(x, params, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = VIEWS[name].apply(x, params, data)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("name, options", RECIPES)
def test_the_same_generator_draws_the_same(name, options):
    def draw(seed: int | None) -> dict:
        rng = None if seed is None else np.random.default_rng(seed)
        return VIEWS[name].draw(rng, DataConfig(manifest="", **options), **PICTURE)

    assert equal(draw(3), draw(3))
    assert not equal(draw(3), draw(4))
    assert equal(draw(None), draw(None))


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


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("picture, crop, flip, jitter, order, next_number", RECORDED)
def test_the_defaults_draw_what_they_always_drew(picture, crop, flip, jitter, order, next_number, number):
    seed, width, height = picture
    rng = np.random.default_rng(seed)
    drawn = VIEWS["video"].draw(rng, DataConfig(manifest=""), width=width, height=height, number=number)
    assert list(drawn) == ["crop", "flip", "jitter", "order"]
    assert (drawn["crop"].tolist(), drawn["flip"].item()) == (crop, flip)
    assert (drawn["jitter"].tolist(), drawn["order"].tolist()) == (jitter, order)
    assert rng.integers(2**32) == next_number


def test_options_take_their_numbers_after_the_others():
    for seed in range(50):
        default = VIEWS["video"].draw(np.random.default_rng(seed), DataConfig(manifest=""), **PICTURE)
        options = {"jitter_probability": 0.5, "grey": 0.5, "blur": [0.5], "solarize": [0.5]}
        drawn = VIEWS["video"].draw(np.random.default_rng(seed), DataConfig(manifest="", **options), **PICTURE)
        kept = ["crop", "flip", "order"] + ["jitter"] * (drawn["jitter"].tolist() != [1, 1, 1, 0])
        assert equal({key: default[key] for key in kept}, {key: drawn[key] for key in kept})


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_video_is_torchvisions_clip_by_clip(options):
    data = DataConfig(manifest="", **options)
    num_clips = 24
    x, params = some_batch("video", data, num_clips)
    for key in params.keys() - {"crop", "jitter", "order"}:
        assert 0 < (params[key] > 0).sum() < num_clips, key
    applied = VIEWS["video"].apply(x, params, data)
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
        if "grey" in params and params["grey"][i]:
            frames = functional.rgb_to_grayscale(frames, num_output_channels=3)
        if "blur" in params and params["blur"][i]:
            frames = functional.gaussian_blur(frames, [5, 3], [params["blur"][i].item()] * 2)
        if "solarize" in params and params["solarize"][i]:
            frames = functional.solarize(frames, 0.5)  # at the threshold 0.5 becomes 0.5: rounding makes no jump
        frames = functional.normalize(frames, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(applied[i], frames.transpose(0, 1), rtol=0, atol=5e-5)


OTHER_COLOURS = {"pixel_mean": [0.43, 0.39, 0.38], "pixel_std": [0.23, 0.22, 0.21]}


@pytest.mark.parametrize("options", [{}, EVERYTHING, OTHER_COLOURS])
def test_the_evaluation_view_only_normalises(options):
    data = DataConfig(manifest="", audio_seconds=0.2, **options)
    x, params = some_batch("video", data, 1, train=False)
    assert params.keys() == some_batch("video", data, 1)[1].keys()
    mean, std = options.get("pixel_mean", [0.485, 0.456, 0.406]), options.get("pixel_std", [0.229, 0.224, 0.225])
    expected = functional.normalize(x[0].permute(0, 3, 1, 2).float() / 255, mean, std)
    torch.testing.assert_close(VIEWS["video"].apply(x, params, data)[0], expected.transpose(0, 1))
    assert some_batch("audio", data, 1, train=False)[1]["gain"].tolist() == [1.0]


@pytest.mark.parametrize("options", [{"pixel_mean": [0.5]}, {"pixel_std": [0.2, 0.2, 0.0]}])
def test_colours_that_cannot_be_standardised(options):
    x, params = some_batch("video", DataConfig(manifest=""), 1, train=False)
    with pytest.raises(ValueError, match=r"pixel_(mean|std)=\[.*\] in DataConfig: expected a list of 3, each a number"):
        VIEWS["video"].apply(x, params, DataConfig(manifest="", **options))


@pytest.mark.parametrize("spectrogram, num_bins", [("avid", 257), ("log_mel", 64)])
def test_gain_and_shape_of_sound(spectrogram, num_bins):
    data = DataConfig(manifest="", audio_seconds=0.5, spectrogram=spectrogram)
    x, params = some_batch("audio", data, 2)
    applied = VIEWS["audio"].apply(x, params, data)
    assert applied.shape == (2, 1, 50, num_bins)
    unit = {"gain": torch.ones(2)}
    torch.testing.assert_close(applied, VIEWS["audio"].apply(x * params["gain"].unsqueeze(1), unit, data))
    assert not torch.equal(applied, VIEWS["audio"].apply(x, unit, data))


def test_draws_follow_the_configuration():
    rng = np.random.default_rng(0)
    never = DataConfig(manifest="", flip=0.0, jitter=[0, 0, 0, 0], volume_jitter=0.0, min_crop_area=1.0)
    for _ in range(20):
        drawn = VIEWS["video"].draw(rng, never, width=64, height=64, number=0)
        assert not drawn["flip"]
        assert drawn["jitter"].tolist() == [1, 1, 1, 0]
        assert drawn["crop"].tolist() == [0, 0, 1, 1]
        assert VIEWS["audio"].draw(rng, never, width=64, height=64, number=0)["gain"] == 1
    drawn = [VIEWS["video"].draw(rng, DataConfig(manifest=""), **PICTURE) for _ in range(1200)]
    orders = Counter(tuple(one["order"].tolist()) for one in drawn)
    assert len(orders) == 24
    assert max(orders.values()) < 90  # 50 expected
    assert sum(int(one["flip"]) for one in drawn) == pytest.approx(600, abs=90)
    gains = [VIEWS["audio"].draw(rng, DataConfig(manifest=""), **PICTURE)["gain"] for _ in range(500)]
    assert min(gains) == pytest.approx(0.9, abs=0.01)
    assert max(gains) == pytest.approx(1.1, abs=0.01)


@pytest.mark.parametrize("number, blur, solarize", [(0, 1.0, 0.0), (1, 0.1, 0.2), (2, 0.1, 0.2)])
def test_probabilities_of_each_clip_of_a_video(number, blur, solarize):
    rng = np.random.default_rng(number)
    data = DataConfig(manifest="", size=112, jitter_probability=0.8, grey=0.2, blur=[1.0, 0.1], solarize=[0.0, 0.2])
    picture = PICTURE | {"number": number}
    drawn = [VIEWS["video"].draw(rng, data, **picture) for _ in range(2000)]
    jittered = np.mean([one["jitter"].tolist() != [1, 1, 1, 0] for one in drawn])
    assert jittered == pytest.approx(0.8, abs=0.03)  # 3 standard deviations are 0.027
    assert np.mean([one["grey"] for one in drawn]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([one["solarize"] for one in drawn]) == pytest.approx(solarize, abs=0.03 if solarize else 0)
    sigma = np.array([one["blur"] for one in drawn])
    assert sigma.dtype == np.float32
    assert np.mean(sigma > 0) == pytest.approx(blur, abs=0 if blur == 1 else 0.03)
    quantiles = np.quantile(sigma[sigma > 0], [0, 0.5, 1])
    np.testing.assert_allclose(quantiles, [0.05, 0.525, 1.0], atol=0.1)  # [0.1, 2] halved: the crop has half of 224


def test_what_is_off_has_no_parameter():
    rng = np.random.default_rng(0)
    for key, value in {"grey": 0.1, "blur": [0.0, 0.1], "solarize": [0.1, 0.0]}.items():
        for number in (0, 1, 5):
            drawn = VIEWS["video"].draw(rng, DataConfig(manifest="", **{key: value}), **(PICTURE | {"number": number}))
            assert list(drawn) == ["crop", "flip", "jitter", "order", key]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", [{"grey": 0.01}, {"blur": [0.0, 0.5]}, {"solarize": [0.0, 0.5]}])
def test_an_option_that_touches_no_clip_changes_no_bit(options, train):
    x, params = some_batch("video", DataConfig(manifest="", **options), 4, train=train)
    assert params[next(iter(options))].sum() == 0
    default = {key: params[key] for key in ("flip", "jitter", "order")}
    applied = VIEWS["video"].apply(x, params, DataConfig(manifest="", **options))
    assert torch.equal(applied, VIEWS["video"].apply(x, default, DataConfig(manifest="")))


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
        ("video", {"grey": 2.0}, r"grey=2\.0 in DataConfig: expected a number from 0 to 1"),
        ("video", {"grey": float("nan")}, r"grey=nan in DataConfig: expected a finite number from 0 to 1"),
        ("video", {"blur": []}, r"blur=\[\] in DataConfig: expected a list of one or more, each a number from 0 to 1"),
        (
            "video",
            {"blur": [1.0, 1.1]},
            r"blur=\[1\.0, 1\.1\] in DataConfig: expected a list of one or more, each a number from 0 to 1",
        ),
        (
            "video",
            {"solarize": [-0.1]},
            r"solarize=\[-0\.1\] in DataConfig: expected a list of one or more, each a number from 0 to 1",
        ),
    ],
)
def test_values_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        VIEWS[name].draw(np.random.default_rng(0), DataConfig(manifest="", **options), **PICTURE)


@pytest.mark.parametrize(
    "change, message", [({"sample_rate": 16000}, "log_mel"), ({"spectrogram": "mfcc"}, "avid, log_mel")]
)
def test_spectrograms_that_do_not_exist_are_refused(change, message):
    x, params = some_batch("audio", DataConfig(manifest="", audio_seconds=0.2), 1)
    with pytest.raises(ValueError, match=message):
        VIEWS["audio"].apply(x, params, DataConfig(manifest="", audio_seconds=0.2, **change))


def test_cut_is_the_crop_that_decoding_makes() -> None:
    """The middle of a pixel that comes out lies at left + (x + 0.5) / size * width; beyond the edge, the edge."""
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.random((2, 3, 20, 30), dtype=np.float32))
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.4], [0.0, 0.0, 1.0, 1.0]], [[0.5, 0.5, 0.5, 0.5], [0.3, 0.0, 0.2, 0.9]]])
    patches = cut(frames, boxes, size=8)
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
    drawn = VIEWS["walk"].draw(np.random.default_rng(0), data, **PICTURE)
    still = VIEWS["walk"].draw(None, data, **PICTURE)["cells"]
    assert drawn["cells"].shape == still.shape == (4, 25, 4)
    np.testing.assert_allclose(still[0, [0, 4, 24], :2], [[0, 0], [0, 2 / 3], [2 / 3, 2 / 3]], atol=1e-6)
    np.testing.assert_allclose(still[..., 2:], 1 / 3, atol=1e-6)
    begin, end = drawn["cells"][..., :2], drawn["cells"][..., :2] + drawn["cells"][..., 2:]
    assert (begin >= still[..., :2] - 1e-6).all()
    assert (end <= still[..., :2] + 1 / 3 + 1e-6).all()
    area = 9 * drawn["cells"][..., 2] * drawn["cells"][..., 3]
    assert 0.6 < area.min() < 0.75  # drawn from .7 to .9, less where a side would leave the cell
    assert 0.85 < area.max() <= 0.9
    assert len(np.unique(drawn["cells"][:, 0, 0])) == 4  # each frame by itself


@pytest.mark.parametrize("options", [{"patch_size": 65, "size": 64}, {"num_frames": 2}])
def test_a_walk_that_cannot_be_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"data\.(patch_size=65 must be .* data\.size=64|num_frames=2: a walk)"):
        VIEWS["walk"].draw(None, DataConfig(manifest="", **options), **PICTURE)
