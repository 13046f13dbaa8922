"""Tracked-patch contrast: what a tracker followed through a clip is one thing, however it turned in between. Two frames
of a track are each other's positives, patches of other tracks are negatives.

Tracks are mined once, by avssl track; without any tracker, see walk.py.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from avssl.config import Count, PathText, Positive
from avssl.methods.base import Encode, HeadOptions, Method, build_heads, check_usable
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_crop, same_instance, same_view
from avssl.objectives.triplet import ranking
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import TrackFrame, View

MOST_TRACKS = 1 << 20  # of a clip


class PatchOptions(HeadOptions):
    tracks: PathText  # parquet file of avssl track, mined from data.manifest
    num_tracks: Count = 1  # of each clip, where it has as many
    frames: Literal["ends", "any"] = "ends"  # the first and the last frame of a track, or any two
    same_clip: Literal["negative", "ignore"] = "negative"  # what patches of other tracks of the same clip are
    contrast: Literal["info_nce", "ranking"] = "info_nce"
    temperature: Positive = 0.07
    num_negatives: Count = 4  # ranking: of each pair
    margin: Positive = 0.5  # ranking: of cosines
    hard_from_epoch: int = Field(0, ge=0)  # ranking: negatives drawn at random before, the hardest ones from then on


class Patch(Method):
    """See the module. Patches are clips of one frame to the video encoder, which is what transfers. A clip without a
    track is a masked row.

    Source: Wang & Gupta 2015. Differs from Wang & Gupta, unless contrast=ranking: InfoNCE over all other tracks of the
    batch instead of a ranking loss over the hardest four.
    """

    Options = PatchOptions
    modalities = ("video",)

    def __init__(self, options: PatchOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_usable(instances, "video")
        self.views = tuple(
            View(f"patch.{track}.{end}", recipe="patch", when=TrackFrame(track, end, options.tracks, options.frames))
            for track in range(options.num_tracks)
            for end in (0, 1)
        )
        self.heads = build_heads(encoders, options, self.modalities)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        patches = Embedded.interleave([self.embed_patch(view, encode, batch) for view in self.views])  # (B 2t, D)
        loss = self.rank(patches, progress) if self.options.contrast == "ranking" else self.contrast(patches)
        tracked = (batch.target["track"][:, : self.options.num_tracks] >= 0).float().mean()
        return Step(loss, logs={"frac_tracked": tracked}, embeddings={"video": patches.detach()})

    def contrast(self, patches: Embedded) -> Tensor:
        columns = in_batch(patches)  # (M, D)
        same_track = same_view(patches, columns)
        ignore = same_crop(patches, columns) | (columns.ids < 0)
        if self.options.same_clip == "ignore":
            ignore |= same_instance(patches, columns) & ~same_track
        return info_nce(similarity(patches, columns) / self.options.temperature, same_track, ignore=ignore)

    def rank(self, patches: Embedded, progress: Progress) -> Tensor:
        """Wang & Gupta's loss, of the pairs of all ranks; rows 2 i and 2 i + 1 are the two frames of a track."""
        every, options = in_batch(patches), self.options  # (M, D)
        clip = options.same_clip == "ignore"  # then other tracks of the same clip are no negatives
        labels = every.ids if clip else every.ids * MOST_TRACKS + every.view
        return ranking(
            every.z,
            labels.masked_fill(every.ids < 0, -1),
            num_negatives=options.num_negatives,
            margin=options.margin,
            hard=float(progress.epoch >= options.hard_from_epoch),
            generator=self.generator(progress),
        )

    def embed_patch(self, view: View, encode: Encode, batch: Batch) -> Embedded:
        """Unit vectors of one view (B, D), whose `view` is the number of the track; without one, masked rows."""
        track = batch.target["track"][:, view.when.track]  # (B,)
        found = self.embed(view.name, self.heads["video"](encode(view.name)), batch)
        return Embedded(found.z, found.ids.masked_fill(track < 0, -1), track, found.start)
