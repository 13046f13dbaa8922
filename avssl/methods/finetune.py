"""Fine-tuning: a linear classifier on one encoder, trained on labels together with the whole encoder.

With random weights to start from this is plain supervised training, the baseline of every fine-tuning.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Options, Share
from avssl.methods.base import Encode, Method
from avssl.models.heads import Classifier
from avssl.objectives.contrast import mean_over_rows
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import View


class FinetuneOptions(Options):
    modality: Literal["video", "audio"] = "video"  # the encoder that is tuned
    dropout: Share = 0.5  # of the encoder's output, before the classifier
    warmup_epochs: int = Field(5, ge=0)  # epochs that train the classifier alone


class Finetune(Method):
    """See the module. Clips that could not be read or lack the modality do not count. Where clips have several classes,
    each class is learned by itself (binary cross-entropy, mean over classes), and accuracy is that the highest is one.

    Source: AVID-CMA, eval-action-recg.py: dropout and one linear layer on the pooled output, cross-entropy; the first
    epochs train the classifier alone, at the same rate.
    Differs from AVID-CMA: meanwhile the encoder is in evaluation mode; there the statistics of its BatchNorm move.
    Behind the warm-up the optimizer goes on; there it starts anew, for the classifier too.
    """

    Options = FinetuneOptions
    modalities = ("video",)  # unless the options say audio
    supervised = True

    def __init__(self, options: FinetuneOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        if instances.target is None:
            raise ValueError("method.name=finetune learns labels, and is no part of other methods")
        self.views = (View(options.modality, recipe=options.modality),)
        self.find_unused_parameters = options.warmup_epochs > 0
        self.classifier = Classifier(
            encoders[options.modality].dim,
            instances.classes,
            modality=options.modality,
            multi_label=instances.target.ndim == 2,
        )
        self.register_buffer("labels", instances.target, persistent=False)  # (N,) or (N, L), the manifest's

    @classmethod
    def needs(cls, options: FinetuneOptions) -> tuple[str, ...]:
        return (options.modality,)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        modality, encoder = self.options.modality, self.encoders[self.options.modality]
        is_training, is_resting = encoder.training, progress.epoch < self.options.warmup_epochs
        encoder.train(is_training and not is_resting)
        x = encode(modality)  # (B, dim)
        encoder.train(is_training)
        x = x.detach() if is_resting else x
        embedded = self.embed(modality, x, batch)  # id -1 where there is nothing to look at
        label = self.labels[embedded.ids.clamp(min=0)]  # (B,), or (B, L) with -1 behind the last
        logits = self.classifier(self.drop(x, progress))  # (B, C)
        if self.classifier.multi_label:
            truth = torch.zeros(len(label), logits.shape[1] + 1, device=logits.device)
            truth = truth.scatter(1, label % truth.shape[1], 1.0)[:, :-1]  # -1 is the last column
            rows = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=1)
        else:
            rows = F.cross_entropy(logits, label.clamp(min=0), reduction="none")
        label = label.view(len(label), -1)
        counted = (embedded.ids >= 0) & (label[:, 0] >= 0)
        right = (logits.detach().argmax(dim=1, keepdim=True) == label).any(dim=1).float()
        return Step(
            mean_over_rows(rows, counted, logits),
            logs={"accuracy": (right * counted).sum() / counted.sum().clamp(min=1)},
            embeddings={modality: embedded.detach()},
        )

    def drop(self, x: Tensor, progress: Progress) -> Tensor:
        """Dropout of (B, dim) while training, by a mask that depends on the step alone and is that of one process."""
        share = self.options.dropout
        if not (self.training and share):
            return x
        kept = distributed.uniform_rows(*x.shape, generator=self.generator(progress), device=x.device) >= share
        return x * kept / (1 - share)
