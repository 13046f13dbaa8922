"""Pictures: the parameters of a crop, of color jitter and of a blur, and what is done to a whole batch on its device.

What lives here: drawing (numpy, one clip, in a worker process) and applying (torch, all clips of a batch at once). The
crop is applied at decoding, so it is only drawn here. What does not: which of them a view uses (views.py).

Letters: B batch, n some clips of it, T frames, H x W pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CROP_TRIES = 10
BLUR_SIGMA = (0.1, 2.0)  # range in pixels of a crop of BLUR_SIZE
BLUR_SIZE = 224  # side in pixels of the crops that the published range is meant for
NEUTRAL_FACTORS = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue: the values that change nothing


def random_crop(
    rng: np.random.Generator,
    *,
    width: int,
    height: int,
    min_area: float,
    max_area: float = 1.0,
    aspect: Sequence[float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Draw the crop of a random resized crop: area uniform, aspect log-uniform, place uniform, whole pixels.

    After 10 draws that do not fit into the frame: the largest centered crop whose aspect is allowed, whatever its
    area.

    Differs from CVRL: TensorFlow's sample_distorted_bounding_box draws the aspect and the height uniformly, so its
    crops are smaller and wider within the same ranges.

    Args:
        rng: where the randomness comes from.
        width: of the upright frame, in pixels.
        height: likewise.
        min_area: smallest fraction of the frame, in (0, 1].
        max_area: largest fraction of the frame, in [min_area, 1].
        aspect: smallest and largest width over height, in pixels.

    Returns:
        (4,) float64: top, left, height, width as fractions of the frame.

    Raises:
        ValueError: the frame is empty.

    Source: torchvision RandomResizedCrop.get_params.
    """
    _check_picture(width, height)
    for _ in range(CROP_TRIES):
        area = rng.uniform(min_area, max_area) * width * height
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = rng.integers(height - crop_height, endpoint=True)
            left = rng.integers(width - crop_width, endpoint=True)
            return _as_fractions(top, left, crop_height, crop_width, width=width, height=height)
    return _centered(
        min(height, max(1, round(width / aspect[0]))),
        min(width, max(1, round(height * aspect[1]))),
        width=width,
        height=height,
    )


def center_crop(*, width: int, height: int, share: float = 0.875) -> np.ndarray:
    """The evaluation crop: the centered square, in whole pixels.

    Equal to resizing the short side to size / share and cutting the center of side `size` out.

    Args:
        width: of the upright frame, in pixels.
        height: likewise.
        share: of the short side that is the square's side; 224 of 256 is usual.

    Returns:
        (4,) float64: top, left, height, width as fractions of the frame.

    Raises:
        ValueError: the frame is empty.
    """
    _check_picture(width, height)
    side = max(1, round(share * min(width, height)))
    return _centered(side, side, width=width, height=height)


def spread_crops(*, width: int, height: int, num: int, share: float = 0.875) -> np.ndarray:
    """Evaluation crops of the size of `center_crop`, spread from end to end over the long side; one alone is that crop.

    Returns:
        (num, 4) float64: top, left, height, width as fractions of the frame.

    Source: SlowFast's left, center and right (top, center and bottom) crops. Differs from SlowFast: squares of
    `share` of the short side, like the single crop, not of all of it.
    """
    top, left, crop_height, crop_width = center_crop(width=width, height=height, share=share)
    crops = np.tile([top, left, crop_height, crop_width], (num, 1))
    if num > 1:
        along, side = (1, crop_width) if width >= height else (0, crop_height)
        crops[:, along] = np.linspace(0, 1 - side, num)
    return crops


def random_jitter(rng: np.random.Generator, strengths: Sequence[float]) -> np.ndarray:
    """Draw the factors of color jitter.

    Args:
        rng: where the randomness comes from.
        strengths: of brightness, contrast, saturation (factor in 1 +- strength, at least 0) and hue (in +- strength,
            in turns of the color circle).

    Returns:
        (4,) float32: brightness, contrast, saturation, hue.

    Source: torchvision ColorJitter.
    """
    spread = np.asarray(strengths)
    low = np.asarray(NEUTRAL_FACTORS) - spread
    low[:3] = low[:3].clip(min=0)
    return rng.uniform(low, np.asarray(NEUTRAL_FACTORS) + spread).astype(np.float32)


def crop_boxes(frames: Tensor, boxes: Tensor, *, size: int) -> Tensor:
    """Cut boxes out of frames, bilinearly at their exact places.

    Args:
        frames: (n, 3, H, W) float.
        boxes: (n, N, 4) top, left, height, width as fractions of a frame.
        size: side of the patches, in pixels.

    Returns:
        (n, N, 3, size, size).
    """
    middles = (torch.arange(size, device=frames.device) + 0.5) / size  # of the pixels, as fractions of the box
    rows, columns = (boxes[..., i, None] + boxes[..., i + 2, None] * middles for i in (0, 1))  # (n, N, size)
    shape = (*boxes.shape[:2], size, size)
    grid = torch.stack([columns[:, :, None, :].expand(shape), rows[:, :, :, None].expand(shape)], dim=-1) * 2 - 1
    patches = F.grid_sample(
        frames, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False
    )  # (n, 3, N size, size)
    return patches.unflatten(2, (boxes.shape[1], size)).transpose(1, 2)


def bernoulli(rng: np.random.Generator, probability: float) -> bool:
    """Draw whether something of this probability happens."""
    return bool(rng.random() < probability)


def random_sigma(rng: np.random.Generator, *, size: int) -> float:
    """Draw the standard deviation of a blur in pixels, uniform in [0.1, 2] for a crop of 224 pixels.

    Differs from SimCLR and CVRL: they scale the kernel by the size of the crop, but not this range; here a small crop
    is blurred as the large one of the same frame is.

    Args:
        rng: where the randomness comes from.
        size: side of the square crop in pixels.
    """
    return rng.uniform(*BLUR_SIGMA) * size / BLUR_SIZE


def to_planes(frames: Tensor) -> Tensor:
    """Move the colors of decoded frames in front of time: (B, T, H, W, 3) uint8 -> a new (B, 3, T, H, W) uint8.

    Raises:
        ValueError: another shape or type.
    """
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames of shape {tuple(frames.shape)} and {frames.dtype}: expected (B, T, H, W, 3) torch.uint8, "
            "as decoding returns them"
        )
    # Moved as bytes: moving and converting to float in one go is 20 times slower on CPU.
    return frames.permute(0, 4, 1, 2, 3).clone(memory_format=torch.contiguous_format)


def flip_(video: Tensor, flip: Tensor) -> Tensor:
    """Mirror the marked clips left to right, in place.

    Args:
        video: (B, 3, T, H, W), any type.
        flip: (B,) bool on the CPU.

    Returns:
        `video`.
    """
    return _change_(video, _rows(flip.numpy(), video.device), lambda chosen: chosen.flip(-1))


def color_jitter_(video: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, with own factors and own order for each clip, in place.

    Equal to torchvision.transforms.v2.functional applied to each clip alone: values are clamped to [0, 1] after each
    operation, and contrast is taken around the mean gray of each frame, not of the clip. A clip whose factor is exactly
    neutral skips that operation.

    Differs from AVID-CMA: floats are not rounded to 8 bits after each operation, as PIL's are.

    Args:
        video: (B, 3, T, H, W) float32 in [0, 1].
        factors: (B, 4) float32 on the CPU: brightness, contrast, saturation >= 0, hue in [-0.5, 0.5] turns.
        order: (B, 4) int64 on the CPU: each row a permutation; `order[b, p]` is the operation (as in `factors`) done at
            place p.

    Returns:
        `video`.
    """
    # Which clips meet at each place decides the shapes: counted in numpy, which refuses to wait for a GPU.
    active = factors.numpy() != np.asarray(NEUTRAL_FACTORS, dtype=np.float32)  # (B, 4)
    moved = factors.to(video.device, non_blocking=True)
    for place in range(order.shape[1]):
        for number, operation in enumerate((_brightness_, _contrast_, _saturation_, _hue_)):
            rows = _rows((order[:, place].numpy() == number) & active[:, number], video.device)
            factor = moved[rows, number].view(-1, 1, 1, 1)  # (n, 1, 1, 1) against planes of (n, T, H, W)
            _change_(video, rows, functools.partial(operation, factor=factor))
    return video


def gray_(video: Tensor, marked: Tensor) -> Tensor:
    """Replace the three colors of the marked clips by their gray, in place.

    Equal to torchvision.transforms.v2.functional.rgb_to_grayscale with three channels.

    Args:
        video: (B, 3, T, H, W) float32.
        marked: (B,) bool on the CPU.

    Returns:
        `video`.
    """
    rows = _rows(marked.numpy(), video.device)
    return _change_(video, rows, lambda chosen: _gray(chosen).unsqueeze(1).expand_as(chosen))


def blur_(video: Tensor, sigma: Tensor) -> Tensor:
    """Blur each frame by a Gaussian, each clip by its own, in place.

    Equal to torchvision.transforms.v2.functional.gaussian_blur applied to each clip alone, with a kernel of a tenth of
    the side, made odd (224 pixels: 23, 48: 5); below 20 pixels it is one pixel and changes nothing. The borders are
    mirrored.

    Differs from SimCLR and CVRL: they put zeros beyond the borders, which darkens them.

    Args:
        video: (B, 3, T, H, W) float32.
        sigma: (B,) float32 on the CPU: standard deviation in pixels; 0 leaves a clip as it is.

    Returns:
        `video`.
    """
    rows = _rows(sigma.numpy() > 0, video.device)
    chosen_sigma = sigma.to(video.device, non_blocking=True)[rows]  # (n,)

    def blurred(chosen: Tensor) -> Tensor:
        # One matrix product per direction: on CPU 5 times faster than a grouped convolution at 48 pixels, and no slower
        # at 224. A product would be rounded to bfloat16 under autocast.
        height, width = chosen.shape[-2:]
        with torch.autocast(video.device.type, enabled=False):
            across = chosen.view(len(chosen), -1, width) @ _blurring(chosen_sigma, width).mT  # (n, 3 T H, W)
            return _blurring(chosen_sigma, height).view(-1, 1, 1, height, height) @ across.view_as(chosen)

    return _change_(video, rows, blurred)


def solarize_(video: Tensor, marked: Tensor) -> Tensor:
    """Invert the values of at least 0.5 in the marked clips, in place.

    Equal to torchvision.transforms.v2.functional.solarize with a threshold of 0.5.

    Args:
        video: (B, 3, T, H, W) float32 in [0, 1].
        marked: (B,) bool on the CPU.

    Returns:
        `video`.
    """
    rows = _rows(marked.numpy(), video.device)
    return _change_(video, rows, lambda chosen: torch.minimum(chosen, 1 - chosen))  # the threshold is the middle


def normalize_(video: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract a mean and divide by a standard deviation per color, in place: (B, 3, T, H, W) float32 in [0, 1].

    Raises:
        ValueError: not three of each, or a deviation that is not positive.
    """
    mean, std = _statistics(tuple(mean), tuple(std), video.device)
    return video.sub_(mean).div_(std)


@functools.cache
@torch.inference_mode(False)  # made inside an evaluation, they must still serve training afterwards
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"data.pixel_mean={list(mean)} and data.pixel_std={list(std)}: expected a value for each of red, green and "
            "blue, deviations above 0"
        )
    return torch.tensor(mean, device=device).view(3, 1, 1, 1), torch.tensor(std, device=device).view(3, 1, 1, 1)


def _change_(video: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Put change(clips) in the place of the clips (n, 3, T, H, W) of some rows (n,), in place -> `video`."""
    if len(rows):
        video.index_copy_(0, rows, change(video.index_select(0, rows)))
    return video


def _rows(marked: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of the marked clips, (n,) int64 on `device`."""
    return torch.from_numpy(np.flatnonzero(marked)).to(device, non_blocking=True)


def _blurring(sigma: Tensor, size: int) -> Tensor:
    """The blur of a line of pixels as a matrix, its borders mirrored: (n,) -> (n, size, size), blurred = matrix @ line.

    The pixel at the border is not doubled: left of 0 1 2 3 stand 2 1.
    """
    reach = size // 10 // 2  # of the kernel to each side; what lies further weighs nothing
    distance = torch.arange(reach + 2, device=sigma.device)
    weight = torch.exp(-0.5 * (distance / sigma.unsqueeze(1)) ** 2)  # (n, reach + 2), of the pixel at each distance
    weight[:, -1] = 0
    weight /= 2 * weight.sum(1, keepdim=True) - weight[:, :1]  # each distance but 0 occurs twice
    place = torch.arange(size, device=sigma.device)
    straight = (place.unsqueeze(1) - place).abs()  # (size, size): row = pixel of the result, column = source
    left = place.unsqueeze(1) + place  # to the source's image beyond the first pixel
    right = 2 * (size - 1) - left
    left[:, 0] = right[:, -1] = reach + 1  # the border has no image
    return sum(weight[:, way.clamp(max=reach + 1)] for way in (straight, left, right))


def _check_picture(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"frame of width={width} and height={height} pixels: expected at least 1 x 1")


def _centered(crop_height: int, crop_width: int, *, width: int, height: int) -> np.ndarray:
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return _as_fractions(top, left, crop_height, crop_width, width=width, height=height)


def _as_fractions(
    top: int, left: int, crop_height: int, crop_width: int, *, width: int, height: int
) -> np.ndarray:  # (4,)
    return np.array([top / height, left / width, crop_height / height, crop_width / width])


# The operations take their own copy of some clips (n, 3, T, H, W) and may write into it; factor: (n, 1, 1, 1).


def _brightness_(video: Tensor, factor: Tensor) -> Tensor:
    return video.mul_(factor.unsqueeze(1)).clamp_(0, 1)


def _contrast_(video: Tensor, factor: Tensor) -> Tensor:
    return _blend_(video, _gray(video).mean(dim=(-2, -1), keepdim=True), factor)  # the mean of each frame: (n, T, 1, 1)


def _saturation_(video: Tensor, factor: Tensor) -> Tensor:
    return _blend_(video, _gray(video), factor)


def _blend_(video: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return video.mul_(factor.unsqueeze(1)).add_((other * (1 - factor)).unsqueeze(1)).clamp_(0, 1)


def _gray(video: Tensor) -> Tensor:
    red, green, blue = video.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # (n, T, H, W)


def _hue_(video: Tensor, factor: Tensor) -> Tensor:
    """Turn the color circle by `factor` turns.

    With c = max - min of a pixel and its hue h in sixths of a turn, HSV to RGB reads, for the channel whose own hue is
    k = 0, 2, 4 (red, green, blue): min + clamp(2c - c * distance(h, k), 0, c), the distance going round the circle.
    Everything is kept multiplied by c, so gray pixels (c = 0) need no care and nothing is divided.
    """
    red, green, blue = video.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)  # (n, T, H, W)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    hue = torch.where(  # c * h: h in [-1, 1] where red is the largest, [-5, -3] green, [-3, -1] blue
        high == red,
        green - blue,
        torch.where(high == green, (blue - red).sub_(chroma, alpha=4), (red - green).sub_(chroma, alpha=2)),
    )
    # The turn modulo 6, taken from [5, 11): h comes to lie in [0, 12), and one step back brings it into [0, 6).
    hue.addcmul_(chroma, 6 * torch.frac(factor + 7 / 6) + 5)  # + 7/6: frac keeps the sign, factor >= -1/2
    hue = torch.where(hue < 6 * chroma, hue, hue.sub(chroma, alpha=6))
    # distance(h, 0) = 3 - |h - 3|, distance(h, 2) = |h - 2| or more than 2, distance(h, 4) = |h - 4| or more than 2
    rise = hue.sub(chroma, alpha=3).abs_().sub_(chroma).add_(low)
    torch.clamp(rise, low, high, out=red)
    for plane, own_hue in ((green, 2), (blue, 4)):
        fall = hue.sub(chroma, alpha=own_hue).abs_().sub_(chroma, alpha=2)
        torch.clamp(low - fall, low, high, out=plane)
    return video
