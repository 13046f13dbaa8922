"""Label propagation: carry the mask of a clip's first frame through the clip by feature similarity, without training.

Letters: T frames, H x W pixels, h x w cells of a map, C = h w, D channels, L labels (background and objects),
P cells within reach, S source frames, k neighbors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from avssl.config import DataConfig
from avssl.evaluate.masks import score_masks
from avssl.evaluate.metrics import bootstrap_interval
from avssl.models.heads import Encoder
from avssl.transforms.video import normalize_
from avssl.weights.load import Pretrained

SIZE = 240  # pixels of the frames' short side
LARGEST = 2160  # of them
STRIDE = 8  # pixels per cell that a map may have to be chosen by itself; CRW's map has as many
BATCH_FRAMES = 8  # that go through the encoder together

Read = Callable[[str], tuple[np.ndarray, np.ndarray]]  # name -> frames (T, H, W, 3) uint8, masks (T, H, W) uint8


def score_propagation(
    pretrained: Pretrained,
    names: Sequence[str],
    read: Read,
    *,
    map_name: str | None = None,
    size: int = SIZE,
    progress: str | None = None,
) -> dict[str, Any]:
    """J and F of the video encoder on clips with true masks, and of the first mask copied to every frame.

    Args:
        names: of the clips.
        read: called with each name. A clip is left out if it raises ValueError, has fewer than 3 frames or an empty
            first mask.
        map_name, size: as for `frame_features`.
        progress: label of the progress bar; None = no bar.

    Returns:
        protocol, map, size, scores {propagated, still: {j, f, jf, interval}} with means over all objects and the 95 %
        interval of jf over clips, num_clips, num_things, errors {name: reason}.

    Raises:
        ValueError: every clip is left out, or as for `frame_features`.
    """
    scores: dict[str, list[np.ndarray]] = {"propagated": [], "still": []}
    groups: list[str] = []
    errors: dict[str, str] = {}
    for name in tqdm(names, desc=progress, unit="clip", disable=progress is None, mininterval=1):
        try:
            frames, masks = read(name)
            still = score_masks(masks, np.broadcast_to(masks[0], masks.shape))  # (K, 2)
        except ValueError as error:
            errors[name] = str(error)
            continue
        features, chosen = frame_features(
            pretrained.encoders["video"],
            frames,
            data=pretrained.data,
            size=size,
            map_name=map_name,
            device=pretrained.device,
        )
        scores["propagated"].append(score_masks(masks, propagate_mask(features, masks[0])))
        scores["still"].append(still)
        groups += [name] * len(still)
    if not groups:
        raise ValueError(f"none of {len(names)} clips can be used (first: {next(iter(errors.values()), 'none')})")
    return {
        "protocol": "propagate",
        "map": chosen,
        "size": size,
        "scores": {kind: _summary(np.concatenate(parts), np.array(groups)) for kind, parts in scores.items()},
        "num_clips": len(set(groups)),
        "num_things": len(groups),
        "errors": errors,
    }


@torch.inference_mode()
def frame_features(
    encoder: Encoder,
    frames: np.ndarray,
    *,
    data: DataConfig,
    size: int = SIZE,
    map_name: str | None = None,
    device: torch.device,
) -> tuple[Tensor, str]:
    """One of the encoder's maps of every frame by itself.

    A frame is a clip of length 1, or as often repeated as the encoder needs (S3D: 5); then the map is averaged over
    time.

    Args:
        encoder: on `device`, in evaluation mode.
        frames: (T, H, W, 3) uint8 RGB.
        data: pixel_mean and pixel_std.
        size: pixels of the short side that frames are resized to; both sides become multiples of 8.
        map_name: a key of `encoder.feature_dims` but pool; None = the deepest map of at most 8 pixels per cell, or the
            finest where all are coarser.

    Returns:
        (T, D, h, w) float32 of unit length in every cell, and the name of the map.

    Raises:
        ValueError: an unknown map, or a size that is too small for the encoder.
    """
    names = [name for name in encoder.feature_dims if name != "pool"]
    if map_name is not None and map_name not in names:
        raise ValueError(f"map {map_name} is not one of {type(encoder).__name__}: choose {', '.join(names)}")
    if not STRIDE <= size <= LARGEST:
        raise ValueError(
            f"size={size}: expected {STRIDE} to {LARGEST} pixels for the frames' short side, such as {SIZE}"
        )
    scale = size / min(frames.shape[1:3])
    height, width = (max(STRIDE, STRIDE * round(scale * side / STRIDE)) for side in frames.shape[1:3])
    small = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    parts = []
    for batch in torch.from_numpy(small).split(BATCH_FRAMES):
        clips = batch.to(device).permute(0, 3, 1, 2)[:, :, None].float().div_(255)  # (n, 3, 1, height, width)
        normalize_(clips, mean=data.pixel_mean, std=data.pixel_std)
        maps = encoder.forward_features(clips.repeat_interleave(max(1, encoder.min_size[0]), dim=2))
        map_name = map_name or _fine_map({name: maps[name] for name in names}, height)
        parts.append(F.normalize(maps[map_name].float().mean(dim=2), dim=1))  # (n, D, h, w)
    return torch.cat(parts), map_name


@torch.inference_mode()
def propagate_mask(
    features: Tensor,
    mask: np.ndarray,
    *,
    num_neighbors: int = 10,
    radius: float = 0.2,
    num_context: int = 20,
    temperature: float = 0.05,
) -> np.ndarray:
    """Carry the first frame's mask through a clip: a cell's label is the mean label of the cells most similar to it
    among those within reach in the first frame and in the frames before it, weighted by softmax(cosine / temperature).

    Args:
        features: (T, D, h, w) unit length in every cell.
        mask: (H, W) integers of the first frame; 0 the ground.
        num_neighbors: k, cells that are averaged.
        radius: reach in the map's short side, at least 2 cells. CRW's 12 cells are a fifth of the 60 that 480 pixels
            give; a map of 30 has 6.
        num_context: frames before each that it draws from, besides the first.
        temperature: of the weights.

    Returns:
        (T, H, W) uint8: the mask itself, then what was found.

    Source: Jabri et al. 2020 (CRW), as in videowalk code/test.py.
    Differs from videowalk: the reach holds in the first frame too, as in DINO (Caron et al. 2021, DAVIS protocol);
    otherwise background spreads over the objects when features are weak. Each source frame counts once;
    there, copies of the first stand before the clip and fill the neighbors of early frames. A cell's first label is
    the fraction of its pixels, not an interpolation.
    """
    num_frames, _, height, width = features.shape
    near, outside = _within_reach(height, width, max(2.0, radius * min(height, width)), device=features.device)
    one_hot = F.one_hot(torch.from_numpy(mask.astype(np.int64))).permute(2, 0, 1).float()  # (L, H, W)
    cells = features.flatten(2)  # (T, D, C)
    labels = [F.adaptive_avg_pool2d(one_hot.to(features.device), (height, width)).flatten(1)]  # (L, C) each
    found = [mask.astype(np.uint8)]
    for t in range(1, num_frames):
        sources = [0, *range(max(1, t - num_context), t)]
        cosines = [(cells[t].T @ cells[s]).gather(1, near) + outside for s in sources]  # (C, P) each
        columns = torch.cat(cosines, dim=1)  # (C, S P)
        best = columns.topk(min(num_neighbors, columns.shape[1]), dim=1)  # (C, k)
        weights = torch.softmax(best.values / temperature, dim=1)
        frame, place = best.indices // near.shape[1], best.indices % near.shape[1]
        known = torch.stack([labels[s] for s in sources], dim=1)  # (L, S, C)
        labels.append((known[:, frame, near.gather(1, place)] * weights).sum(dim=2))
        soft = labels[t].unflatten(1, (height, width))[None]  # (1, L, h, w)
        large = F.interpolate(soft, mask.shape, mode="bilinear")[0]  # (L, H, W)
        found.append(large.max(dim=0).indices.to(torch.uint8).cpu().numpy())
    return np.stack(found)


def _fine_map(maps: dict[str, Tensor], height: int) -> str:
    """Name of the deepest map (n, D, T', h, w) whose cells are at most STRIDE pixels high, or of the finest."""
    fine = [name for name, each in maps.items() if height / each.shape[3] <= STRIDE]
    return fine[-1] if fine else max(maps, key=lambda name: maps[name].shape[3])


def _within_reach(height: int, width: int, radius: float, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every cell, the cells nearer than `radius`: their numbers (C, P) int64, and (C, P) float32, -inf where they
    would lie outside of the map, else 0."""
    across = torch.arange(-int(radius), int(radius) + 1, device=device)
    down, right = (each.flatten() for each in torch.meshgrid(across, across, indexing="ij"))
    disk = down**2 + right**2 < radius**2
    rows = torch.arange(height, device=device).repeat_interleave(width)[:, None] + down[disk]  # (C, P)
    columns = torch.arange(width, device=device).repeat(height)[:, None] + right[disk]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return (rows * width + columns).masked_fill(~inside, 0), torch.where(inside, 0.0, -torch.inf)


def _summary(scores: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Scores (n, 2) of objects, and the clip of each -> their means."""
    j, f = scores.mean(axis=0).tolist()
    return {"j": j, "f": f, "jf": (j + f) / 2, "interval": bootstrap_interval(scores.mean(axis=1), groups)}
