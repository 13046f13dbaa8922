"""Synthetic clips with known masks: textured objects on smooth paths over a textured background, with camera shake and
pan. Background and objects alpha a family of textures, so that only motion separates them.

Letters: T frames, H x W pixels, K objects.
"""

from dataclasses import dataclass

import cv2
import numpy as np

OCTAVES = ((60, 26), (22, 20), (8, 16))  # (pixels of a cell, contrast in gray levels) of a texture
RADII = (0.10, 0.16)  # of an object, as fractions of the short side
WAY = (0.45, 0.9)  # path length in 40 frames, as fractions of the short side
SLACK = 8  # extra background pixels for the shake


@dataclass(frozen=True)
class Scene:
    """A synthetic clip with its masks and boxes.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, H, W) uint8; 0 = background, 1 to K = object. Later objects are in front.
        boxes: (T, K, 4) float64; top, left, height, width of the visible part as fractions of the frame; NaN if
            hidden.
    """

    frames: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


def make_scene(
    seed: int,
    *,
    num_frames: int = 40,
    height: int = 240,
    width: int = 320,
    num_objects: int = 2,
    shake: float = 1.5,
    pan: float = 24.0,
) -> Scene:
    """Draw one scene; the same arguments give the same bytes.

    Args:
        num_objects: K; 0 = only the camera moves.
        shake: standard deviation in pixels of the camera position per frame, with slight rotation, zoom and tilt.
            0 = a tripod.
        pan: camera movement over the whole scene, pixels.
    """
    rng = np.random.default_rng(seed)
    margin = int(np.ceil(abs(pan) + 6 * shake)) + SLACK
    ground = draw_texture(rng, height + 2 * margin, width + 2 * margin)
    angle = rng.uniform(0, 2 * np.pi)
    pans = np.linspace(0, pan, num_frames)[:, None] * [np.cos(angle), np.sin(angle)]  # (T, 2) x, y
    cameras = shake_camera(rng, num_frames, height, width, shake=shake)  # (T, 3, 3)
    objects = [_draw_object(rng, min(height, width)) for _ in range(num_objects)]  # (P, P, 3) colors, (P, P) cover
    paths = [_draw_path(rng, num_frames, height, width) for _ in range(num_objects)]  # (T, 3, 3) each

    frames = np.empty((num_frames, height, width, 3), np.uint8)
    masks = np.zeros((num_frames, height, width), np.uint8)
    for i in range(num_frames):
        place = cameras[i] @ _shift(*(pans[i] - margin))
        frames[i] = cv2.warpPerspective(ground, place, (width, height), borderMode=cv2.BORDER_REFLECT)
        for number, ((colors, cover), path) in enumerate(zip(objects, paths, strict=True), 1):
            side = len(cover)
            place = cameras[i] @ path[i] @ _shift(-side / 2, -side / 2)
            color = cv2.warpPerspective(colors, place, (width, height), borderMode=cv2.BORDER_REFLECT)
            alpha = cv2.warpPerspective(cover, place, (width, height))[..., None] / 255.0  # (H, W, 1)
            frames[i] = np.rint(alpha * color + (1 - alpha) * frames[i])
            masks[i][alpha[..., 0] > 0.5] = number
    return Scene(frames, masks, _boxes(masks, num_objects))


def draw_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Cloudy texture of three sizes around a random color -> (height, width, 3) uint8."""
    texture = np.broadcast_to(rng.uniform(100, 156, 3), (height, width, 3))
    for pixels, contrast in OCTAVES:
        cells = contrast * rng.standard_normal((-(-height // pixels) + 2, -(-width // pixels) + 2, 3))
        big = cv2.resize(cells, None, fx=pixels, fy=pixels, interpolation=cv2.INTER_CUBIC)
        texture = texture + big[pixels : pixels + height, pixels : pixels + width]
    return np.clip(texture, 0, 255).astype(np.uint8)


def shake_camera(rng: np.random.Generator, num_frames: int, height: int, width: int, *, shake: float) -> np.ndarray:
    """(T, 3, 3) homographies: small camera movements about the center of the frame."""
    noise = rng.standard_normal((num_frames + 2, 6))
    noise = (noise[:-2] + noise[1:-1] + noise[2:]) / np.sqrt(3) * shake  # correlated between frames
    cameras = np.empty((num_frames, 3, 3))
    for i, (x, y, turn, zoom, *tilt) in enumerate(noise):
        angle, scale = 0.002 * turn, 1 + 0.002 * zoom
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        move = np.array([[cos, -sin, x], [sin, cos, y], [1e-5 * tilt[0], 1e-5 * tilt[1], 1]])
        cameras[i] = _shift(width / 2, height / 2) @ move @ _shift(-width / 2, -height / 2)
    return cameras


def _draw_object(rng: np.random.Generator, short_side: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured polygon or blob -> colors (P, P, 3) and cover (P, P), both uint8."""
    radius = rng.uniform(*RADII) * short_side
    if rng.random() < 0.5:
        angles = np.sort(2 * np.pi * (np.arange(6) + rng.uniform(-0.3, 0.3, 6)) / 6)
        radii = rng.uniform(0.7, 1.0, 6)
    else:
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        strengths, phases = rng.uniform(0, 0.12, 3), rng.uniform(0, 2 * np.pi, 3)
        radii = 0.88 + sum(
            a * np.sin(n * angles + phase) for n, a, phase in zip((2, 3, 4), strengths, phases, strict=True)
        )
    side = int(np.ceil(2.8 * radius))
    corners = side / 2 + radius * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cover = np.zeros((side, side), np.uint8)
    cv2.fillPoly(cover, [np.rint(16 * corners).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return draw_texture(rng, side, side), cover


def _draw_path(rng: np.random.Generator, num_frames: int, height: int, width: int) -> np.ndarray:
    """(T, 3, 3) from object to frame coordinates: a slightly curved path with some rotation and scaling."""
    size = np.array([width, height])
    short_side = min(height, width)
    low, high = np.full(2, 0.18 * short_side), size - 0.18 * short_side  # keeps most of an object inside
    length = min(rng.uniform(*WAY) * short_side * num_frames / 40, 0.75 * np.linalg.norm(high - low))
    begin = end = low
    while abs(np.linalg.norm(end - begin) - length) > 0.1 * short_side:
        begin, end = rng.uniform(low, high, (2, 2))
    t = np.linspace(0, 1, num_frames)
    across = np.array([begin[1] - end[1], end[0] - begin[0]]) * rng.uniform(-0.15, 0.15)
    places = begin + (end - begin) * t[:, None] + across * np.sin(np.pi * t)[:, None]  # (T, 2) x, y
    places = np.clip(places, low, high)
    angles = rng.uniform(-0.5, 0.5) * t
    scales = rng.uniform(0.8, 1.25) ** (t - 0.5)
    path = np.zeros((num_frames, 3, 3))
    path[:, 0, 0] = path[:, 1, 1] = scales * np.cos(angles)
    path[:, 1, 0] = scales * np.sin(angles)
    path[:, 0, 1] = -path[:, 1, 0]
    path[:, :2, 2], path[:, 2, 2] = places, 1
    return path


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def _boxes(masks: np.ndarray, num_objects: int) -> np.ndarray:
    """(T, H, W) -> (T, K, 4) extents as fractions."""
    num_frames, height, width = masks.shape
    boxes = np.full((num_frames, num_objects, 4), np.nan)
    for i in range(num_frames):
        for k in range(num_objects):
            seen = masks[i] == k + 1
            rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
            if len(rows):
                top, left = rows[0] / height, columns[0] / width
                boxes[i, k] = top, left, (rows[-1] + 1) / height - top, (columns[-1] + 1) / width - left
    return boxes
