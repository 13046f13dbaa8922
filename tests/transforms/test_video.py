"""Crop law, and the batched color operations against torchvision applied to each clip alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from avssl.transforms import video

OPERATIONS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def random_clips(num_clips: int, *, seed: int) -> torch.Tensor:
    """(B, 3, 2, 7, 9) in [0, 1], with gray, black, white and fully saturated pixels among them."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.rand(num_clips, 3, 2, 7, 9, generator=generator)
    clips[..., 0, :] = clips[:, :1, :, 0, :]  # gray
    clips[..., 1, :] = clips[..., 1, :].round()  # corners of the color cube
    return clips


def random_parameters(num_clips: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    factors = np.stack([video.random_jitter(rng, [1.0, 1.0, 1.0, 0.5]) for _ in range(num_clips)])
    order = np.stack([rng.permutation(4) for _ in range(num_clips)])
    return torch.from_numpy(factors), torch.from_numpy(order)


def jitter_alone(clip: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """torchvision on one clip (3, T, H, W)."""
    frames = clip.transpose(0, 1)
    for number in order.tolist():
        frames = OPERATIONS[number](frames, factors[number].item())
    return frames.transpose(0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_jitter_equals_torchvision_clip_by_clip(seed):
    clips = random_clips(48, seed=seed)
    factors, order = random_parameters(48, seed=seed)
    expected = torch.stack([jitter_alone(*case) for case in zip(clips, factors, order, strict=True)])
    torch.testing.assert_close(video.color_jitter_(clips, factors, order), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("share", [-1.0, -0.51, -0.1, 0.07, 0.34, 1.0])
def test_each_operation_over_its_range(number, share):
    clips = random_clips(3, seed=9)
    factors = torch.tensor(video.NEUTRAL_FACTORS).repeat(3, 1)
    factors[:, number] += share * (0.5 if number == 3 else 1)
    expected = OPERATIONS[number](clips.transpose(1, 2), factors[0, number].item()).transpose(1, 2)
    jittered = video.color_jitter_(clips, factors, torch.arange(4).repeat(3, 1))
    torch.testing.assert_close(jittered, expected, rtol=0, atol=1e-5)


def test_hue_turns_every_color_of_the_circle():
    # Pure colors at hue 0, 1/360, ...: turned by f, each must equal the color at its hue + f.
    def color(turns: torch.Tensor) -> torch.Tensor:
        distance = (6 * turns.unsqueeze(-1) - torch.tensor([0.0, 2.0, 4.0]) + 3).remainder(6) - 3
        return (2 - distance.abs()).clamp(0, 1)  # (..., 3)

    turns = torch.arange(360) / 360
    factors = torch.linspace(-0.5, 0.5, 41)
    clips = color(turns).T.reshape(1, 3, 1, 1, 360).repeat(41, 1, 1, 1, 1)
    jitter = torch.tensor(video.NEUTRAL_FACTORS).repeat(41, 1)
    jitter[:, 3] = factors
    turned = video.color_jitter_(clips, jitter, torch.arange(4).repeat(41, 1))
    expected = color(turns + factors.unsqueeze(1))  # (41, 360, 3)
    torch.testing.assert_close(turned[:, :, 0, 0].transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_contrast_is_taken_around_the_mean_of_each_frame():
    clip = torch.cat([torch.full((1, 3, 1, 4, 4), 0.2), torch.full((1, 3, 1, 4, 4), 0.8)], dim=2)
    factors = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    jittered = video.color_jitter_(clip.clone(), factors, torch.arange(4).unsqueeze(0))
    torch.testing.assert_close(jittered, clip, rtol=0, atol=1e-3)  # the clip's mean would give 0.5 everywhere


def test_jitter_of_a_batch_is_the_jitter_of_each_clip():
    clips = random_clips(12, seed=5)
    factors, order = random_parameters(12, seed=5)
    alone = [video.color_jitter_(clips[i : i + 1].clone(), factors[i : i + 1], order[i : i + 1]) for i in range(12)]
    assert torch.equal(video.color_jitter_(clips, factors, order), torch.cat(alone))


def test_neutral_factors_change_no_bit():
    clips = random_clips(4, seed=6)
    jittered = video.color_jitter_(
        clips.clone(), torch.tensor(video.NEUTRAL_FACTORS).repeat(4, 1), torch.arange(4).repeat(4, 1)
    )
    assert torch.equal(jittered, clips)


def test_flip_mirrors_only_the_marked_clips():
    clips = random_clips(3, seed=7)
    flipped = video.flip_(clips.clone(), torch.tensor([True, False, True]))
    assert torch.equal(flipped[1], clips[1])
    assert torch.equal(flipped[::2], clips[::2].flip(-1))


def larger_clips(num_clips: int, height: int, width: int, *, seed: int) -> torch.Tensor:
    """(B, 3, 2, H, W) in [0, 1]."""
    return torch.rand(num_clips, 3, 2, height, width, generator=torch.Generator().manual_seed(seed))


def test_gray_equals_torchvision_on_the_marked_clips():
    clips = larger_clips(5, 7, 9, seed=1)
    marked = torch.tensor([True, False, True, True, False])
    expected = clips.clone()
    for i in (0, 2, 3):
        expected[i] = functional.rgb_to_grayscale(clips[i].transpose(0, 1), num_output_channels=3).transpose(0, 1)
    returned = video.gray_(clips, marked)
    assert returned is clips
    assert torch.equal(clips, expected)


def test_solarize_equals_torchvision_on_the_marked_clips():
    clips = larger_clips(3, 7, 9, seed=2)
    clips[:, :, 0, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    marked = torch.tensor([True, False, True])
    expected = clips.clone()
    expected[::2] = functional.solarize(clips[::2], 0.5)
    assert torch.equal(video.solarize_(clips, marked), expected)


@pytest.mark.parametrize("height, width", [(7, 9), (20, 39), (48, 48), (48, 64), (112, 100), (224, 224)])
def test_blur_equals_torchvision_clip_by_clip(height, width):
    num_clips = 3 if height > 48 else 12
    clips = larger_clips(num_clips, height, width, seed=3)
    sigma = torch.linspace(0, 3, num_clips)  # the first is left as it is; wider than its kernel at small sides
    kernel = [2 * (side // 10 // 2) + 1 for side in (width, height)]
    expected = clips.clone()
    for i in range(1, num_clips):
        expected[i] = functional.gaussian_blur(clips[i], kernel, [sigma[i].item()] * 2)
    torch.testing.assert_close(video.blur_(clips, sigma), expected, rtol=0, atol=2e-6)


def test_blur_keeps_a_flat_picture_and_spreads_a_point():
    clips = torch.zeros(2, 3, 2, 48, 48)
    clips[0] = 0.25
    clips[1, :, 1, 10, 20] = 1
    blurred = video.blur_(clips, torch.tensor([0.4, 0.4]))
    torch.testing.assert_close(blurred[0], torch.full((3, 2, 48, 48), 0.25))
    assert not blurred[1, :, 0].any()  # no frame into another
    spread = blurred[1, 0, 1]
    assert spread.sum() == pytest.approx(1)
    assert (spread > 0).nonzero().amin(0).tolist() == [8, 18]  # the kernel of 48 pixels reaches 2
    assert (spread > 0).nonzero().amax(0).tolist() == [12, 22]
    assert spread[10, 21] / spread[10, 20] == pytest.approx(np.exp(-0.5 / 0.4**2))


@pytest.mark.parametrize("size", [16, 48, 112, 224])
def test_sigma_follows_the_size_of_the_crop(size):
    rng = np.random.default_rng(0)
    drawn = np.array([video.random_sigma(rng, size=size) for _ in range(1000)]) * 224 / size
    np.testing.assert_allclose(np.quantile(drawn, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.575, 1.05, 1.525, 2], atol=0.08)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_how_often_it_happens(probability):
    rng = np.random.default_rng(0)
    share = np.mean([video.bernoulli(rng, probability) for _ in range(2000)])
    assert share == pytest.approx(probability, abs=0.03 if probability == 0.3 else 0)


def test_to_planes_moves_colors_and_copies():
    frames = torch.arange(2 * 2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 2, 3, 4, 3)
    planes = video.to_planes(frames)
    assert planes.is_contiguous()
    assert all(torch.equal(planes[:, color], frames[..., color]) for color in range(3))
    planes.zero_()
    assert frames.any()


@pytest.mark.parametrize("frames", [torch.zeros(2, 2, 3, 4, 3), torch.zeros(2, 3, 2, 4, 4, dtype=torch.uint8)])
def test_to_planes_refuses_other_shapes_and_types(frames):
    with pytest.raises(ValueError, match=r"expected \(B, T, H, W, 3\) torch.uint8"):
        video.to_planes(frames)


@pytest.mark.parametrize("width, height", [(320, 240), (96, 96), (64, 200), (31, 17)])
def test_random_crop_lies_in_the_picture_and_in_its_ranges(width, height):
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, crop_height, crop_width = pixels = crop_in_pixels(
            video.random_crop(rng, width=width, height=height, min_area=0.2), width, height
        )
        assert pixels == pytest.approx(np.round(pixels), abs=1e-9)
        assert min(top, left) >= 0
        assert top + crop_height <= height + 1e-9
        assert left + crop_width <= width + 1e-9
        # rounding moves each side by at most half a pixel
        assert (crop_height + 0.5) * (crop_width + 0.5) >= 0.2 * width * height
        assert (crop_width + 0.5) / (crop_height - 0.5) >= 3 / 4
        assert (crop_width - 0.5) / (crop_height + 0.5) <= 4 / 3


def crop_in_pixels(crop: np.ndarray, width: int, height: int) -> np.ndarray:
    assert crop.dtype == np.float64
    return crop * [height, width, height, width]


@pytest.mark.parametrize(
    "area, aspect",
    [
        ((0.08, 1.0), (3 / 4, 4 / 3)),
        ((0.3, 1.0), (0.5, 2.0)),  # CVRL
        ((0.2, 0.766), (0.75, 1.333)),  # SlowFast
    ],
)
def test_random_crop_is_distributed_as_torchvisions(area, aspect):
    rng = np.random.default_rng(0)
    settings = {"width": 160, "height": 120, "min_area": area[0], "max_area": area[1], "aspect": aspect}
    ours = np.stack([video.random_crop(rng, **settings) for _ in range(3000)])
    picture = torch.empty(3, 120, 160)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(picture, list(area), list(aspect)) for _ in range(3000)]
    theirs = np.array(drawn) / [120, 160, 120, 160]
    quantiles = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(np.quantile(ours, quantiles, axis=0), np.quantile(theirs, quantiles, axis=0), atol=0.03)


def test_random_crop_lies_in_the_ranges_that_are_asked_for():
    rng = np.random.default_rng(0)
    for _ in range(300):
        crop = video.random_crop(rng, width=160, height=120, min_area=0.3, max_area=0.5, aspect=(1.0, 1.5))
        _, _, height, width = crop_in_pixels(crop, 160, 120)
        assert (height - 0.5) * (width - 0.5) <= 0.5 * 160 * 120
        assert (height + 0.5) * (width + 0.5) >= 0.3 * 160 * 120
        assert (width + 0.5) / (height - 0.5) >= 1
        assert (width - 0.5) / (height + 0.5) <= 1.5


@pytest.mark.parametrize("width, height, expected", [(400, 20, (0, 186, 20, 27)), (20, 400, (186, 0, 27, 20))])
def test_a_picture_too_long_for_any_crop_falls_back_to_the_center(width, height, expected):
    crop = video.random_crop(np.random.default_rng(0), width=width, height=height, min_area=1.0)
    assert crop_in_pixels(crop, width, height) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("width, height, expected", [(400, 20, (0, 180, 20, 40)), (1, 9, (3, 0, 2, 1))])
def test_the_fallback_keeps_the_aspect_that_is_asked_for(width, height, expected):
    settings = {"min_area": 1.0, "aspect": (0.5, 2.0)}
    crop = video.random_crop(np.random.default_rng(0), width=width, height=height, **settings)
    assert crop_in_pixels(crop, width, height) == pytest.approx(np.array(expected))


def test_the_whole_square_picture_is_taken_when_the_area_must_be_all():
    crop = video.random_crop(np.random.default_rng(0), width=96, height=96, min_area=1.0)
    assert crop.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("width, height, expected", [(340, 256, (16, 58, 224, 224)), (256, 340, (58, 16, 224, 224))])
def test_center_crop_is_the_square_of_seven_eighths(width, height, expected):
    crop = video.center_crop(width=width, height=height)
    assert crop_in_pixels(crop, width, height) == pytest.approx(np.array(expected))


def test_center_crop_takes_the_share_that_is_asked_for():
    assert video.center_crop(width=100, height=40, share=1.0).tolist() == [0, 0.3, 1, 0.4]
    crops = video.spread_crops(width=100, height=40, num=2, share=0.5)
    assert crops.tolist() == [[0.25, 0, 0.5, 0.2], [0.25, 0.8, 0.5, 0.2]]


def test_an_empty_picture_is_refused():
    with pytest.raises(ValueError, match="width=0"):
        video.center_crop(width=0, height=8)


def test_jitter_factors_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    drawn = np.stack([video.random_jitter(rng, [0.4, 1.5, 0.0, 0.2]) for _ in range(500)])
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.min(axis=0), [0.6, 0.0, 1.0, -0.2], atol=0.02)
    np.testing.assert_allclose(drawn.max(axis=0), [1.4, 2.5, 1.0, 0.2], atol=0.02)
