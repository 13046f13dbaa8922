"""Contrastive random walk: patches of successive frames are linked by how alike they are; a walk through the frames and
back has to end where it began. Correspondence without labels and without a tracker.
"""

import torch
import torch.nn.functional as F
from torch import nn

from avssl.config import Positive, Share
from avssl.methods.base import Encode, HeadOptions, Method, build_heads, check_usable
from avssl.objectives.walk import walk_accuracy, walk_loss
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import View


class WalkOptions(HeadOptions):
    temperature: Positive = 0.05
    dropout: Share = 0.1  # fraction of links that are cut


class Walk(Method):
    """See the module. Each cell of the data.patch_grid is a clip of one frame to the video encoder, which transfers.

    Source: Jabri, Owens, Efros 2020 (videowalk), eq. 3 and 4. Differs from videowalk: a head of three layers instead of
    one, as in the other methods here.
    """

    Options = WalkOptions
    modalities = ("video",)
    views = (View("walk", recipe="walk"),)

    def __init__(self, options: WalkOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_usable(instances, "video", least=1)
        self.heads = build_heads(encoders, options, self.modalities)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        raw = encode("walk")  # (B, T, N, dim)
        z = F.normalize(self.heads["video"](raw.flatten(0, 2)).float(), dim=1).unflatten(0, raw.shape[:3])
        valid = self.present(batch, "video")  # (B,)
        temperature, dropout = self.options.temperature, self.options.dropout
        loss = walk_loss(z, temperature=temperature, dropout=dropout, generator=self.generator(progress), valid=valid)
        first = z[:, 0].detach()  # (B, N, D)
        ids = batch.ids.masked_fill(~valid, -1)[:, None].expand(first.shape[:2])
        start = batch.start["walk"][:, None].expand(ids.shape)
        return Step(
            loss,
            logs={"returned": walk_accuracy(z, temperature=temperature, valid=valid)},
            embeddings={"video": Embedded(first, ids, torch.zeros_like(ids), start).rows()},
        )
