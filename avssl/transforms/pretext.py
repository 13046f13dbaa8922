"""Views of pretext tasks: what was done to a clip is drawn in the worker and travels as params["label"].

Letters: B batch, T frames, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from avssl.config import DataConfig
from avssl.transforms.recipes import Clip, Plan, Video, Window

NUM_ROTATIONS = 4


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
