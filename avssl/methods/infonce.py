"""In-batch InfoNCE between video and audio: a clip's frames have to pick their own sound among those of the batch, and
its sound its own frames. No bank, no constant: the plain contrast that AVID's banks are measured against.
"""

from torch import Tensor, nn

from avssl.config import Positive
from avssl.methods.base import Encode, HeadOptions, Method, build_heads, check_pairs
from avssl.objectives.contrast import info_nce, similarity
from avssl.objectives.negatives import in_batch
from avssl.objectives.positives import same_instance
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import View


class InfoNCEOptions(HeadOptions):
    temperature: Positive = 0.07


class InfoNCE(Method):
    """See the module. Another clip of the same video in the batch is a positive too. A missing sound is nobody's column
    and has no row, nor have its frames; these stay columns among which other sounds choose. Missing frames likewise.

    Source: van den Oord et al. 2018, eq. 4, in both directions; with one clip of each video the loss is the symmetric
    cross-entropy of CLIP (Radford et al. 2021, figure 3) at a fixed temperature.
    """

    Options = InfoNCEOptions
    views = (View("video"), View("audio", recipe="audio"))

    def __init__(self, options: InfoNCEOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        check_pairs(instances)
        self.heads = build_heads(encoders, options, self.modalities)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        video = self.embed("video", self.project(encode, "video"), batch)  # (B, D)
        audio = self.embed("audio", self.project(encode, "audio"), batch)  # (B, D)
        return contrast_pairs(video, audio, temperature=self.options.temperature)


def contrast_pairs(video: Embedded, audio: Embedded, *, temperature: float) -> Step:
    """The loss of embeddings (B, D) of the clips of a batch against those of all ranks, both ways."""

    def direction(query: Embedded, columns: Embedded) -> Tensor:
        logits = similarity(query, columns) / temperature  # (B, M)
        empty = (columns.ids < 0).expand_as(logits)
        return info_nce(logits, same_instance(query, columns), ignore=empty)

    logs = {"v2a": direction(video, in_batch(audio)), "a2v": direction(audio, in_batch(video))}
    return Step(
        loss=(logs["v2a"] + logs["a2v"]) / 2,
        logs={name: value.detach() for name, value in logs.items()},
        embeddings={"video": video.detach(), "audio": audio.detach()},
    )
