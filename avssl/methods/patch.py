"""Tracked-patch contrast: what a tracker followed through a clip is one thing, however it turned in between. Two frames
of a track are each other's positives, patches of other tracks are negatives.

Tracks are mined once, by tools/track.py; without any tracker, see walk.py.
"""

from typing import Literal

from torch import Tensor, nn

from avssl.config import Count, Positive
from avssl.data.sampling import Patches
from avssl.methods.base import HeadOptions, Method, build_heads
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_crop, same_instance, same_view
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import numbered


class PatchOptions(HeadOptions):
    tracks: str  # parquet file of tools/track.py, mined from data.manifest
    num_tracks: Count = 1  # of each clip, where it has as many
    frames: Literal["ends", "any"] = "ends"  # the first and the last frame of a track, or any two
    same_clip: Literal["negative", "ignore"] = "negative"  # what patches of other tracks of the same clip are
    temperature: Positive = 0.07


class Patch(Method):
    """See the module. Patches are clips of one frame to the video encoder, which is what transfers. A clip without a
    track is an empty place.

    Source: Wang & Gupta 2015 for the positives. Differs from Wang & Gupta: InfoNCE over all other tracks of the batch
    instead of a ranking loss over the hardest four.
    """

    modalities = ("video",)

    def __init__(self, options: PatchOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(encoders, seed=seed)
        self.check_pictures(instances)
        self.options = options
        self.views = tuple(numbered("patch", number) for number in range(2 * options.num_tracks))
        self.patches = Patches(options.tracks, options.num_tracks, options.frames)
        self.heads = build_heads(encoders, options, self.modalities)

    def loss(self, features: dict[str, Tensor], batch: Batch, progress: Progress) -> Step:
        raw = [self.heads["video"](features[view]) for view in self.views]
        patches = Embedded.interleave([self.embed_patch(i, each, batch) for i, each in enumerate(raw)])  # (B 2t, D)
        columns = in_batch(patches)  # (M, D)
        same_track = same_view(patches, columns)
        ignore = same_crop(patches, columns) | (columns.ids < 0)
        if self.options.same_clip == "ignore":
            ignore |= same_instance(patches, columns) & ~same_track
        loss = info_nce(similarity(patches, columns) / self.options.temperature, same_track, ignore=ignore)
        tracked = (batch.target["track"] >= 0).float().mean()
        return Step(loss, logs={"share_tracked": tracked}, memo={"video": patches.detach()})

    def embed_patch(self, number: int, raw: Tensor, batch: Batch) -> Embedded:
        """Unit vectors of one view (B, D), whose `view` is the number of the track; without one, empty places."""
        track = batch.target["track"][:, number // 2]  # (B,)
        found = self.embed(self.views[number], raw, batch)
        return Embedded(found.z, found.ids.masked_fill(track < 0, -1), track, found.start)
