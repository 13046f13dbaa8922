"""Crop law, and the batched colour operations against torchvision applied to each clip alone."""

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
    """(B, 3, 2, 7, 9) in [0, 1], with grey, black, white and fully saturated pixels among them."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.rand(num_clips, 3, 2, 7, 9, generator=generator)
    clips[..., 0, :] = clips[:, :1, :, 0, :]  # grey
    clips[..., 1, :] = clips[..., 1, :].round()  # corners of the colour cube
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


def test_hue_turns_every_colour_of_the_circle():
    # Pure colours at hue 0, 1/360, ...: turned by f, each must equal the colour at its hue + f.
    def colour(turns: torch.Tensor) -> torch.Tensor:
        distance = (6 * turns.unsqueeze(-1) - torch.tensor([0.0, 2.0, 4.0]) + 3).remainder(6) - 3
        return (2 - distance.abs()).clamp(0, 1)  # (..., 3)

    turns = torch.arange(360) / 360
    factors = torch.linspace(-0.5, 0.5, 41)
    clips = colour(turns).T.reshape(1, 3, 1, 1, 360).repeat(41, 1, 1, 1, 1)
    jitter = torch.tensor(video.NEUTRAL_FACTORS).repeat(41, 1)
    jitter[:, 3] = factors
    turned = video.color_jitter_(clips, jitter, torch.arange(4).repeat(41, 1))
    expected = colour(turns + factors.unsqueeze(1))  # (41, 360, 3)
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


def test_to_planes_moves_colours_and_copies():
    frames = torch.arange(2 * 2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 2, 3, 4, 3)
    planes = video.to_planes(frames)
    assert planes.is_contiguous()
    assert all(torch.equal(planes[:, colour], frames[..., colour]) for colour in range(3))
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


def test_random_crop_is_distributed_as_torchvisions():
    rng = np.random.default_rng(0)
    ours = np.stack([video.random_crop(rng, width=160, height=120, min_area=0.08) for _ in range(3000)])
    picture = torch.empty(3, 120, 160)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    theirs = np.array(drawn) / [120, 160, 120, 160]
    quantiles = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(np.quantile(ours, quantiles, axis=0), np.quantile(theirs, quantiles, axis=0), atol=0.03)


@pytest.mark.parametrize("width, height, expected", [(400, 20, (0, 186, 20, 27)), (20, 400, (186, 0, 27, 20))])
def test_a_picture_too_long_for_any_crop_falls_back_to_the_centre(width, height, expected):
    crop = video.random_crop(np.random.default_rng(0), width=width, height=height, min_area=1.0)
    assert crop_in_pixels(crop, width, height) == pytest.approx(np.array(expected))


def test_the_whole_square_picture_is_taken_when_the_area_must_be_all():
    crop = video.random_crop(np.random.default_rng(0), width=96, height=96, min_area=1.0)
    assert crop.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("width, height, expected", [(340, 256, (16, 58, 224, 224)), (256, 340, (58, 16, 224, 224))])
def test_centre_crop_is_the_square_of_seven_eighths(width, height, expected):
    crop = video.centre_crop(width=width, height=height)
    assert crop_in_pixels(crop, width, height) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("min_area", [0.0, -0.1, 1.5])
def test_crop_area_out_of_range_is_refused(min_area):
    with pytest.raises(ValueError, match="min_crop_area"):
        video.random_crop(np.random.default_rng(0), width=8, height=8, min_area=min_area)


def test_an_empty_picture_is_refused():
    with pytest.raises(ValueError, match="width=0"):
        video.centre_crop(width=0, height=8)


def test_jitter_factors_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    drawn = np.stack([video.random_jitter(rng, [0.4, 1.5, 0.0, 0.2]) for _ in range(500)])
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.min(axis=0), [0.6, 0.0, 1.0, -0.2], atol=0.02)
    np.testing.assert_allclose(drawn.max(axis=0), [1.4, 2.5, 1.0, 0.2], atol=0.02)


@pytest.mark.parametrize("strengths", [[0.4, 0.4, 0.4], [0.4, -0.1, 0.4, 0.2], [0.4, 0.4, 0.4, 0.6]])
def test_jitter_strengths_out_of_range_are_refused(strengths):
    with pytest.raises(ValueError, match=r"data\.jitter"):
        video.random_jitter(np.random.default_rng(0), strengths)
