"""Views of pretext tasks: what was done to a clip is drawn in the worker and travels as params["label"]; what is only
put in another order (tiles, segments) is read in its true order, and the method shuffles what it encodes.

Letters: B batch, T frames, H x W pixels, N tiles, P pixels of a tile's side, G segments, n samples, S spectrogram
steps, F frequency bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from avssl.config import DataConfig
from avssl.transforms import video
from avssl.transforms.recipes import Audio, Clip, Plan, Video, Window

NUM_ROTATIONS = 4
SIDE = 3  # tiles along a side of the square that is cut up
NUM_TILES = SIDE * SIDE
FLAT = 0.1  # least deviation of a tile, in normalized units: the noise of what is flat is not blown up


class Rotation(Video):
    """A clip turned as a whole by label quarter turns counterclockwise, after its square crop.

    Source: Gidaris, Singh, Komodakis 2018 (RotNet): k = 1 is flipud of the transpose; one turn for all frames as in
    Jing et al. 2018 (3DRotNet). Differs from both, as vissl does: one drawn turn of a clip instead of all four.
    """

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        plan = super().plan(rng, data, clip, window)
        label = np.asarray(0 if rng is None else rng.integers(NUM_ROTATIONS))
        return replace(plan, params=plan.params | {"label": label})

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        clips = super().apply(x, params, data)  # (B, 3, T, H, W), H = W
        for turns in range(1, NUM_ROTATIONS):
            rows = torch.from_numpy(np.flatnonzero(params["label"].numpy() == turns)).to(x.device, non_blocking=True)
            clips.index_copy_(0, rows, torch.rot90(clips.index_select(0, rows), turns, dims=(-2, -1)))
        return clips


class Tiles(Video):
    """A clip as 3 x 3 tiles, row by row, those of all frames alike: (B, 9, 3, T, P, P).

    The square of data.size is divided into cells, and a tile of data.patch_size lies anywhere in its own: on average a
    third of data.size - data.patch_size is left between two, so that edges do not run on. Colors are jittered for each
    tile by itself, and each color of a tile has mean 0 and deviation 1: neither chromatic aberration nor a gradient of
    light tells the place.

    Source: vissl's ImgPatchesFromTensor (jigsaw) and Doersch et al. 2015 (gap, jitter, dropped colors: data.gray).
    """

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        free = data.size // SIDE - data.patch_size
        if free < 0:
            raise ValueError(
                f"data.patch_size={data.patch_size} with data.size={data.size}: a tile must be at most a third of it"
            )
        plan, num = super().plan(rng, data, clip, window), NUM_TILES
        cells = np.stack(np.divmod(np.arange(num), SIDE), axis=1) * (data.size // SIDE)  # (9, 2) top, left
        if rng is None:
            return replace(plan, params=plan.params | _repeated(plan.params, num) | {"corner": cells + free // 2})
        drawn = {
            "corner": cells + rng.integers(free, size=(num, 2), endpoint=True),
            "jitter": np.stack([video.random_jitter(rng, data.jitter) for _ in range(num)]),
            "order": np.stack([rng.permutation(4) for _ in range(num)]),
        }
        return replace(plan, params=plan.params | drawn)

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        planes = video.flip_(video.to_planes(x), params["flip"])  # (B, 3, T, H, W) uint8
        corner = params["corner"].to(x.device, non_blocking=True)  # (B, 9, 2)
        along = torch.arange(data.patch_size, device=x.device)
        rows, columns = (corner[..., i, None] + along for i in (0, 1))  # (B, 9, P)
        number = torch.arange(len(x), device=x.device)[:, None, None, None]
        tiles = planes[number, :, :, rows[..., :, None], columns[..., None, :]]  # (B, 9, P, P, 3, T)
        tiles = tiles.permute(0, 1, 4, 5, 2, 3).flatten(0, 1).contiguous()  # (B 9, 3, T, P, P)
        tiles = self.color(tiles, _of_parts(params, NUM_TILES), data)
        mean, deviation = tiles.mean(dim=(2, 3, 4), keepdim=True), tiles.std(dim=(2, 3, 4), keepdim=True)
        return ((tiles - mean) / deviation.clamp(min=FLAT)).unflatten(0, corner.shape[:2])


@dataclass(frozen=True)
class Segments(Video):
    """Segments of a clip of data.num_frames each, one after the other: (B, G, 3, T, H, W); one draw of crop and colors.

    Args:
        num: G.
        gap: between two, as a fraction of a segment.
    """

    num: int
    gap: float = 0.0

    def seconds(self, data: DataConfig) -> float:
        return (self.num + (self.num - 1) * self.gap) * super().seconds(data)

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        plan, step = super().plan(rng, data, clip, window), (1 + self.gap) * super().seconds(data)
        first = replace(plan.windows[0], duration=super().seconds(data))
        windows = tuple(replace(first, start=first.start + i * step) for i in range(self.num))
        return Plan(windows, (self.num * data.num_frames, *plan.shape[1:]), plan.params)

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        return super().apply(x, params, data).unflatten(2, (self.num, data.num_frames)).transpose(1, 2)


@dataclass(frozen=True)
class AudioSegments(Audio):
    """Segments of a sound of data.audio_seconds each, as `Segments`: (B, G, 1, S, F)."""

    num: int
    gap: float = 0.0

    def seconds(self, data: DataConfig) -> float:
        return (self.num + (self.num - 1) * self.gap) * super().seconds(data)

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        plan, step = super().plan(rng, data, clip, window), (1 + self.gap) * data.audio_seconds
        (first,) = plan.windows
        windows = tuple(replace(first, start=first.start + i * step) for i in range(self.num))
        return Plan(windows, (self.num * first.num_samples,), plan.params)

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        segments = x.unflatten(1, (self.num, -1)).flatten(0, 1)  # (B G, n)
        each = {name: value.repeat_interleave(self.num, dim=0) for name, value in params.items()}
        return super().apply(segments, each, data).unflatten(0, (len(x), self.num))


@dataclass(frozen=True)
class Speed(Video):
    """A clip at strides[label] times its speed, among those that the clip is long enough for. Colors are jittered for
    each frame by itself, as its difference to the next one would tell the speed at once.

    Source: Wang, Jiao, Liu 2020 (Pace). Differs from Pace: a clip that is too short for a speed is not looped, but not
    shown at it.
    """

    strides: tuple[int, ...] = (1, 2, 3, 4)

    def seconds(self, data: DataConfig) -> float:
        return max(self.strides) * super().seconds(data)

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        length = super().seconds(data)
        label = _draw_stride(
            rng, self.strides, None if clip.video is None else (clip.video.end - window.start) / length
        )
        stride = self.strides[label]
        plan = super().plan(rng, data, clip, window)
        frames = replace(plan.windows[0], duration=stride * length, fps=data.fps / stride)
        if rng is None:
            drawn = _repeated(plan.params, data.num_frames)
        else:
            drawn = {
                "jitter": np.stack([video.random_jitter(rng, data.jitter) for _ in range(data.num_frames)]),
                "order": np.stack([rng.permutation(4) for _ in range(data.num_frames)]),
            }
        return Plan((frames,), plan.shape, plan.params | drawn | {"label": np.asarray(label)})

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        planes = video.flip_(video.to_planes(x), params["flip"]).transpose(1, 2)  # (B, T, 3, H, W) uint8
        num = planes.shape[1]
        planes = planes.flatten(0, 1).unsqueeze(2).contiguous()  # (B T, 3, 1, H, W)
        frames = self.color(planes, _of_parts(params, num), data)
        return frames.squeeze(2).unflatten(0, (len(x), num)).transpose(1, 2)


@dataclass(frozen=True)
class AudioSpeed(Audio):
    """A sound at strides[label] times its speed and its own pitch: the steps of the spectrogram lie that much further
    apart. Otherwise as `Speed`: (B, 1, S, F).
    """

    strides: tuple[int, ...] = (1, 2, 3, 4)

    def seconds(self, data: DataConfig) -> float:
        return max(self.strides) * data.audio_seconds

    def plan(self, rng: np.random.Generator | None, data: DataConfig, clip: Clip, window: Window) -> Plan:
        left = None if clip.audio is None else (clip.audio.end - window.start) / data.audio_seconds
        label = _draw_stride(rng, self.strides, left)
        plan = super().plan(rng, data, clip, window)
        (sound,) = plan.windows
        longest = replace(sound, duration=self.seconds(data))
        return Plan((longest,), (longest.num_samples,), plan.params | {"label": np.asarray(label)})

    def apply(self, x: Tensor, params: Mapping[str, Tensor], data: DataConfig) -> Tensor:
        if data.spectrogram == "none":
            raise ValueError("data.spectrogram=none: speed is told by the steps of a spectrogram, so choose one")
        spectrogram, order = [], []
        for label, stride in enumerate(self.strides):
            rows = torch.from_numpy(np.flatnonzero(params["label"].numpy() == label))
            if not len(rows):
                continue
            own = data.replace(audio_seconds=stride * data.audio_seconds, hop_seconds=stride * data.hop_seconds)
            num = x.shape[1] * stride // max(self.strides)
            chosen = x.index_select(0, rows.to(x.device, non_blocking=True))[:, :num]
            of_rows = {name: value[rows] for name, value in params.items() if name != "label"}
            spectrogram.append(super().apply(chosen, of_rows, own))
            order.append(rows)
        return torch.cat(spectrogram)[torch.cat(order).argsort().to(x.device, non_blocking=True)]


def _draw_stride(rng: np.random.Generator | None, strides: tuple[int, ...], fits: float | None) -> int:
    """Number of one of the strides for which the rest of a clip, `fits` normal lengths long, is enough."""
    if rng is None:
        return 0
    chosen = [i for i, stride in enumerate(strides) if fits is None or stride <= fits + 1e-6] or [0]
    return chosen[rng.integers(len(chosen))]


def _repeated(params: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """Jitter and order of a clip for each of `num` parts."""
    return {name: np.stack([params[name]] * num) for name in ("jitter", "order")}


def _of_parts(params: Mapping[str, Tensor], num: int) -> dict[str, Tensor]:
    """Parameters (B, ...) of clips as those of their parts (B num, ...); jitter and order were drawn for each."""
    return {
        name: value.flatten(0, 1) if name in ("jitter", "order") else value.repeat_interleave(num, dim=0)
        for name, value in params.items()
    }
