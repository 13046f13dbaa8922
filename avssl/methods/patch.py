"""Tracked-patch contrast: what a tracker followed through a clip is one thing, however it turned in between. Two frames
of a track are each other's positives, patches of other tracks are negatives.

Tracks are mined once, by tools/track.py; without any tracker, see walk.py.
"""

from typing import Literal

from torch import nn

from avssl.config import Count, PathText, Positive
from avssl.methods.base import Encode, HeadOptions, Method, build_heads, check_videos
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_crop, same_instance, same_view
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import TrackFrame, View


class PatchOptions(HeadOptions):
    tracks: PathText  # parquet file of tools/track.py, mined from data.manifest
    num_tracks: Count = 1  # of each clip, where it has as many
    frames: Literal["ends", "any"] = "ends"  # the first and the last frame of a track, or any two
    same_clip: Literal["negative", "ignore"] = "negative"  # what patches of other tracks of the same clip are
    temperature: Positive = 0.07


class Patch(Method):
    """See the module. Patches are clips of one frame to the video encoder, which is what transfers. A clip without a
    track is a masked row.

    Source: Wang & Gupta 2015 for the positives. Differs from Wang & Gupta: InfoNCE over all other tracks of the batch
    instead of a ranking loss over the hardest four.
    """

    Options = PatchOptions
    modalities = ("video",)

    def __init__(self, options: PatchOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_videos(instances)
        self.views = tuple(
            View(f"patch.{track}.{end}", recipe="patch", when=TrackFrame(track, end, options.tracks, options.frames))
            for track in range(options.num_tracks)
            for end in (0, 1)
        )
        self.heads = build_heads(encoders, options, self.modalities)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        patches = Embedded.interleave([self.embed_patch(view, encode, batch) for view in self.views])  # (B 2t, D)
        columns = in_batch(patches)  # (M, D)
        same_track = same_view(patches, columns)
        ignore = same_crop(patches, columns) | (columns.ids < 0)
        if self.options.same_clip == "ignore":
            ignore |= same_instance(patches, columns) & ~same_track
        loss = info_nce(similarity(patches, columns) / self.options.temperature, same_track, ignore=ignore)
        tracked = (batch.target["track"][:, : self.options.num_tracks] >= 0).float().mean()
        return Step(loss, logs={"frac_tracked": tracked}, embeddings={"video": patches.detach()})

    def embed_patch(self, view: View, encode: Encode, batch: Batch) -> Embedded:
        """Unit vectors of one view (B, D), whose `view` is the number of the track; without one, masked rows."""
        track = batch.target["track"][:, view.when.track]  # (B,)
        found = self.embed(view.name, self.heads["video"](encode(view.name)), batch)
        return Embedded(found.z, found.ids.masked_fill(track < 0, -1), track, found.start)
