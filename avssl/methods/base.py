"""What every method has in common: views, encoders, and the three calls that the training loop makes.

A method writes `loss`; where state moves it also writes `after_step` and `on_epoch`. It is pure otherwise: `loss`
changes no buffer, and called twice it returns the same value.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.config import Count, Options
from avssl.data.sampling import ONE_CLIP, Clips, Patches
from avssl.models.heads import ProjectionHead
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import view_of


class HeadOptions(Options):
    """Options of every method that contrasts the outputs of projection heads."""

    embedding_dim: Count = 128
    hidden_dim: Count = 512
    head_batch_norm: bool = False  # normalise the heads' outputs over the batch: what keeps small sets from collapsing


def build_heads(encoders: nn.ModuleDict, options: HeadOptions, modalities: Sequence[str]) -> nn.ModuleDict:
    """One projection head for the encoder of each modality, by the same name."""
    return nn.ModuleDict(
        {
            modality: ProjectionHead(
                encoders[modality].dim,
                hidden_dim=options.hidden_dim,
                out_dim=options.embedding_dim,
                batch_norm=options.head_batch_norm,
            )
            for modality in modalities
        }
    )


def encode_each(network: nn.Module, x: Tensor) -> Tensor:
    """A network's output for every clip of x (..., 3, T, H, W) or every spectrogram of x (B, 1, S, F) -> (..., dim)."""
    lead = x.shape[:-4] or x.shape[:1]
    return network(x.flatten(0, len(lead) - 1)).unflatten(0, lead)


class Method(nn.Module):
    """Base class.

    A class says which `modalities` it needs an encoder for (`needs`, where that depends on the options), and whether it
    is `supervised`. An object says what it wants of each sample: `views`, and with several clips or tracked patches of
    one video `clips` and `patches`; which `encoded` views go through the encoders: all, unless it says otherwise; and
    whether parameters of it may rest (`rests`): on all ranks they then get no gradient in the same steps, not a zero,
    at which Adam would count on.

    Args:
        encoders: {modality: ...}, each with `.dim`; what is exported after training.
        seed: of the run; keys everything that `loss` draws.
    """

    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    supervised: ClassVar[bool] = False  # it is trained on the labelled clips, and their classes
    views: tuple[str, ...] = ()
    clips: Clips = ONE_CLIP
    patches: Patches | None = None
    rests: bool = False

    def __init__(self, encoders: nn.ModuleDict, *, seed: int) -> None:
        super().__init__()
        self.encoders = encoders
        self.seed = seed

    @classmethod
    def needs(cls, options: Options) -> tuple[str, ...]:
        """Modalities that a method with these options needs an encoder for."""
        return cls.modalities

    @property
    def encoded(self) -> tuple[str, ...]:
        return self.views

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Trunk outputs {view: (B, ..., dim)}, each view once, and what the method encodes besides."""
        return self.encode_views(batch, self.encoded) | self.encode_keys(batch)

    def encode_views(self, batch: Batch, views: Sequence[str]) -> dict[str, Tensor]:
        """Trunk outputs {view: (B, ..., dim)}; of patches (B, T, N, 3, 1, P, P) one per patch."""
        features = {}
        for view in views:
            modality = view_of(view).modality
            features[view] = encode_each(self.encoders[modality], getattr(batch, modality)[view])
        return features

    def encode_keys(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a method's own networks, by names that are no views; none, unless it has a momentum copy."""
        return {}

    def head(self, modality: str) -> nn.Module | None:
        """The head whose output stands for a clip after training; None where there is none."""
        return self.heads[modality]

    def loss(self, features: dict[str, Tensor], batch: Batch, progress: Progress) -> Step:
        """The method's loss on this rank's rows; pure."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def forward(self, batch: Batch, progress: Progress) -> Step:
        return self.loss(self.encode(batch), batch, progress)

    def embed(self, view: str, raw: Tensor, batch: Batch) -> Embedded:
        """Unit vectors of one view out of a head's output (B, D); clips without that side become empty places."""
        present = batch.has_audio if view_of(view).modality == "audio" else batch.has_video
        ids = batch.ids.masked_fill(~present, -1)
        return Embedded(
            z=F.normalize(raw.float(), dim=1),
            ids=ids,
            view=torch.full_like(ids, self.views.index(view)),
            start=batch.start[view],
        )

    @staticmethod
    def check_pairs(instances: Instances) -> None:
        """Raise ValueError unless some clip has both picture and sound."""
        if not instances.paired.any():
            raise ValueError(
                "no clip of this split has both picture and sound, and the method learns from their pairing: check the "
                "manifest's summary (status, has_audio) and data.split, or learn within one side with method.name=avid "
                "and method.within=1"
            )

    @staticmethod
    def check_pictures(instances: Instances) -> None:
        """Raise ValueError unless at least two clips have pictures, to be told apart."""
        num_usable = int(instances.usable["video"].sum())
        if num_usable < 2:
            raise ValueError(
                f"this split has {num_usable} usable clips with pictures, and a video is told apart from others: train "
                "on at least 2 (the manifest's columns split, status and has_video say which are usable)"
            )

    def after_step(self, step: Step) -> None:
        """Move state with what the step left in its memo; once per optimiser step."""

    def restart_copy(self) -> None:
        """Make a momentum copy equal to the networks that it follows, where there is one: their weights were replaced
        by those of another run.
        """

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Called before the first step of every epoch; same result on every rank. Returns figures for the log."""
        return {}

    def agreement_sets(self) -> dict[str, Tensor]:
        """Mined sets (N, k) of each row, -1 = empty, by what the names of their figures from `on_epoch` begin with;
        none, unless the method mines. Asked by those who know labels, which a method does not.
        """
        return {}

    def generator(self, progress: Progress) -> torch.Generator:
        """A CPU generator that depends on the seed, the step and the part only: the same on every rank and at every
        call.
        """
        key = np.random.SeedSequence((self.seed, progress.step, progress.part)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(key >> np.uint64(1)))
