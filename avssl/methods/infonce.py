"""In-batch InfoNCE between picture and sound: a clip's picture has to pick its own sound among those of the batch, and
its sound its own picture. No memory, no constant: the plain contrast that AVID's memories are measured against.
"""

from torch import Tensor, nn

from avssl.config import Positive
from avssl.methods.base import HeadOptions, Method, build_heads
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step


class InfoNCEOptions(HeadOptions):
    temperature: Positive = 0.07


class InfoNCE(Method):
    """See the module. Another clip of the same video in the batch is a positive too. A missing sound is nobody's column
    and has no row, nor has its picture; the picture stays a column among those that other sounds choose from. A missing
    picture likewise.

    Source: van den Oord et al. 2018, eq. 4, in both directions; with one clip of each video the loss is the symmetric
    cross-entropy of CLIP (Radford et al. 2021, figure 3) at a fixed temperature.
    """

    views = ("video", "audio")

    def __init__(self, options: InfoNCEOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(encoders, seed=seed)
        self.check_pairs(instances)
        self.options = options
        self.heads = build_heads(encoders, options, self.modalities)

    def loss(self, features: dict[str, Tensor], batch: Batch, progress: Progress) -> Step:
        video = self.embed("video", self.heads["video"](features["video"]), batch)  # (B, D)
        audio = self.embed("audio", self.heads["audio"](features["audio"]), batch)  # (B, D)
        logs = {"v2a": self.contrast(video, in_batch(audio)), "a2v": self.contrast(audio, in_batch(video))}
        return Step(
            loss=(logs["v2a"] + logs["a2v"]) / 2,
            logs={name: value.detach() for name, value in logs.items()},
            memo={"video": video.detach(), "audio": audio.detach()},
        )

    def contrast(self, query: Embedded, columns: Embedded) -> Tensor:
        """One direction: queries (B, D) against columns (M, D) of the other side, gathered over ranks."""
        logits = similarity(query, columns) / self.options.temperature  # (B, M)
        empty = (columns.ids < 0).expand_as(logits)
        return info_nce(logits, same_instance(query, columns), ignore=empty)
