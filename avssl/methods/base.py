"""What every method has in common: views, encoders, and the three calls that the training loop makes.

A method writes `loss`; where state moves it also writes `after_step` and `on_epoch`.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl.config import Count, Options, Share
from avssl.models.heads import MLP, Encoder, mlp
from avssl.models.momentum import MomentumCopy, cosine_momentum
from avssl.objectives.negatives import Bank
from avssl.structs import Batch, Embedded, Instances, Progress, Step
from avssl.transforms.views import View

SHAPING = {"num_frames", "size", "audio_seconds", "hop_seconds", "spectrogram", "n_fft", "num_mels"}  # of an input


class HeadOptions(Options):
    """Options of every method that contrasts the outputs of projection heads."""

    embedding_dim: Count = 128
    hidden_dim: Count = 512
    head_batch_norm: bool = False  # normalize the heads' outputs over the batch: what keeps small sets from collapsing


class BankOptions(Options):
    """Options of every method whose negatives can come from memory banks."""

    bank_momentum: Share = 0.5  # weight of the old vector
    bank_dtype: Literal["float32", "float16"] = "float32"  # float16: half the memory, cosines to 1e-3
    shard_bank: bool = False  # each process holds a part of the vectors, and draws negatives from it alone
    hardest: float = Field(1.0, gt=0, le=1)  # share of a query's negatives that count, those most like it

    def build_bank(self, valid: Tensor, dim: int, *, view: int, generator: torch.Generator) -> Bank:
        how = {"dtype": getattr(torch, self.bank_dtype), "sharded": self.shard_bank}
        return Bank(valid, dim, view=view, generator=generator, **how)


def build_heads(encoders: nn.ModuleDict, options: HeadOptions, modalities: Sequence[str]) -> nn.ModuleDict:
    """One projection head of three layers for the encoder of each modality, by the same name."""
    hidden, norm = options.hidden_dim, "out" if options.head_batch_norm else "none"
    return nn.ModuleDict(
        {
            modality: mlp([encoders[modality].dim, hidden, hidden, options.embedding_dim], norm=norm)
            for modality in modalities
        }
    )


def encode_each(network: Encoder, x: Tensor, stage: str | None) -> Tensor:
    """An encoder's output, or its map of a stage, for every clip of x (..., 3, T, H, W), every spectrogram of x
    (..., 1, S, F) or sound of x (..., 1, n) -> (..., dim).
    """
    lead = x.shape[: -1 - len(network.min_size)] or x.shape[:1]
    flat = x.flatten(0, len(lead) - 1)
    out = network(flat) if stage is None else network.forward_features(flat)[stage]
    return out.unflatten(0, lead)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Encode:
    """The encoders on one batch, for one forward: `encode(view)` is made when first asked, and kept.

    Gradients are recorded whatever the caller's mode, so that methods in one run may share an output. Statistics of
    BatchNorm move with those views alone that the exported encoders will see (recipe, frames and size as configured),
    where there are any.

    Args:
        encoders: {name: network}, of all that views name.
        views: all that the batch holds.
        batch: as the encoders take it.
        num_parts: that the rows pass in. Of each part only the output is kept; its gradient is computed by a second
            pass, when the loss, which is of the whole batch, goes backward (GradCache, Gao et al. 2021).
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], views: Sequence[View], batch: Batch, *, num_parts: int = 1
    ) -> None:
        self._encoders, self._batch, self._num_parts = encoders, batch, num_parts
        self._views = {view.name: view for view in views}
        self._cached: dict[tuple[str, ...], tuple[Tensor, ...]] = {}
        self.asked: set[str] = set()

    def __call__(self, view: str, *, stage: str | None = None, x: Tensor | None = None) -> Tensor:
        """Encoder output of a view: (B, dim); of several clips in each row, (B, ..., dim).

        Args:
            view: its name.
            stage: a map of the encoder instead of its output; not kept.
            x: pixels or spectrograms instead of the batch's, in the same layout; not kept.
        """
        if stage is None and x is None:
            return self.together([view])[0]
        self.asked.add(view)
        return self._encoded([view], [self._input(view) if x is None else x], stage)[0]

    def together(self, views: Sequence[str]) -> tuple[Tensor, ...]:
        """Outputs of views; those of equal shape pass as one batch, for BatchNorm over all of them. Kept as a group."""
        group = tuple(views)
        self.asked |= set(group)
        if group not in self._cached:
            inputs, outputs = {view: self._input(view) for view in group}, {}
            for shape in dict.fromkeys(x.shape for x in inputs.values()):
                alike = {view: x for view, x in inputs.items() if x.shape == shape}
                outputs |= zip(alike, self._encoded(list(alike), list(alike.values())), strict=True)
            self._cached[group] = tuple(outputs[view] for view in group)
        return self._cached[group]

    @torch.no_grad()
    def through(self, network: nn.Module, view: str) -> Tensor:
        """A view's output of another network, such as a momentum copy: (B, ..., dim), without gradient; not kept."""
        self.asked.add(view)
        return self._pass(network, [view], [self._input(view)])[0]

    def _input(self, view: str) -> Tensor:
        if view not in self._views:
            raise ValueError(f"view {view} is asked for, but the method declares {', '.join(self._views)}")
        return getattr(self._batch, self._views[view].modality)[view]

    def _encoded(self, views: Sequence[str], inputs: Sequence[Tensor], stage: str | None = None) -> tuple[Tensor, ...]:
        encoder = self._encoders[self._views[views[0]].network]
        with torch.enable_grad(), self.statistics(encoder, views):
            return self._pass(encoder, views, inputs, stage)

    def _pass(
        self, network: nn.Module, views: Sequence[str], inputs: Sequence[Tensor], stage: str | None = None
    ) -> tuple[Tensor, ...]:
        """Outputs of inputs whose rows pass as one batch, or in parts with the same rows of each."""

        def contexts() -> tuple[contextlib.AbstractContextManager[None], ...]:
            return contextlib.nullcontext(), still_statistics(network)  # which the first pass has moved

        def passed(x: Tensor) -> Tensor:
            if self._num_parts == 1 or not torch.is_grad_enabled():
                return encode_each(network, x, stage)
            return checkpoint(encode_each, network, x, stage, use_reentrant=False, context_fn=contexts)

        parts = zip(*(x.chunk(self._num_parts) for x in inputs), strict=True)
        outputs = [passed(_cat(part)).chunk(len(inputs)) for part in parts]
        return tuple(_cat(rows) for rows in zip(*outputs, strict=True))

    def features(self) -> dict[str, Tensor]:
        """{modality: detached outputs (B, dim)} of the first view encoded so far that the exported encoder will see."""
        found: dict[str, Tensor] = {}
        for group, outputs in self._cached.items():
            for name, output in zip(group, outputs, strict=True):
                view = self._views[name]
                if _is_exported(view) and output.dim() == 2:
                    found.setdefault(view.modality, output.detach())
        return found

    def statistics(self, network: nn.Module, views: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        """Inside, running statistics of BatchNorm in `network` move only if one of these views may move them."""
        return statistics_of(network, views, self._views)


def statistics_of(
    network: nn.Module, views: Sequence[str], among: Mapping[str, View]
) -> contextlib.AbstractContextManager[None]:
    """As `Encode.statistics`, where the network sees the views `among` which these are."""
    exported = {name for name, view in among.items() if view.network == among[views[0]].network and _is_exported(view)}
    moves = bool(exported & set(views)) or not exported
    return contextlib.nullcontext() if moves else still_statistics(network)


def _is_exported(view: View) -> bool:
    """Whether the exported encoder will see clips like those of the view."""
    return view.recipe == view.modality and SHAPING.isdisjoint(name for name, _ in view.changes)


@contextlib.contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes over the batch as ever, but its running statistics stand still. They are passed on: what
    is kept for the gradient must be the same in both passes of a part.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    moving = [norm for norm in norms if norm.training and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in moving]
    for norm in moving:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(moving, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Method(nn.Module):
    """Base class.

    A class says which `modalities` it needs an encoder for (`needs`, where that depends on the options), and whether it
    is `supervised`. An object says what it wants of each sample, `views`, and whether parameters of it may go without a
    gradient on all ranks in the same steps (`find_unused_parameters`).

    Args:
        options: of the class's `Options`.
        encoders: {modality: ...}, each with `.dim`; what is exported after training.
        instances: the rows of the manifest.
        seed: of the run; keys everything that `loss` draws.
    """

    Options: ClassVar[type[Options]] = HeadOptions
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    supervised: ClassVar[bool] = False  # it is trained on the labeled clips, and their classes
    views: tuple[View, ...] = ()
    find_unused_parameters: bool = False

    def __init__(self, options: Any, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__()
        self.options = options
        self.instances = instances
        self.encoders = encoders
        self.banks = nn.ModuleDict()  # memory banks with a vector of every row, by modality
        self.own_encoders = nn.ModuleDict()  # of views whose recipes name a network that is no encoder; not exported
        self.heads = nn.ModuleDict()
        self.seed = seed
        self.target: MomentumCopy | None = None

    @classmethod
    def needs(cls, options: Any) -> tuple[str, ...]:
        """Modalities that a method with these options needs an encoder for."""
        return cls.modalities

    def head(self, modality: str) -> nn.Module | None:
        """The head whose output stands for a clip after training; None where there is none."""
        return dict(self.heads.items()).get(modality)

    def describe_heads(self) -> dict[str, dict[str, Any]]:
        """{modality: {prefix, arguments}} of the heads in the state_dict, so that they can be built without the method.
        Heads of a kind that `mlp` does not build are left out.
        """
        names = {id(module): f"{name}." for name, module in self.named_modules()}
        heads = {modality: self.head(modality) for modality in self.encoders}
        return {
            modality: {"prefix": names[id(head)], "arguments": head.arguments}
            for modality, head in heads.items()
            if isinstance(head, MLP)
        }

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        """The method's loss on this rank's rows: changes no buffer, and called twice it returns the same value."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def settle(self) -> None:
        """Finish what goes on beside the steps, so that buffers hold it: called by all ranks before a checkpoint."""

    def forward(self, batch: Batch, progress: Progress, *, num_parts: int = 1) -> Step:
        encode = Encode(self.networks, self.views, batch, num_parts=num_parts)
        step = self.loss(encode, batch, progress)
        check_asked(self, encode.asked)
        return replace(step, features=encode.features())

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The encoders, and those of the method's own."""
        return {**self.encoders, **self.own_encoders}

    def view(self, name: str) -> View:
        return next(view for view in self.views if view.name == name)

    def present(self, batch: Batch, modality: str) -> Tensor:
        """(B,) bool: rows that could be read and have the modality."""
        return (batch.ids >= 0) & (batch.has_audio if modality == "audio" else batch.has_video)

    def embed(self, view: str, raw: Tensor, batch: Batch) -> Embedded:
        """Unit vectors of one view out of a head's output (B, D); rows without its modality are masked (id -1)."""
        ids = batch.ids.masked_fill(~self.present(batch, self.view(view).modality), -1)
        number = [each.name for each in self.views].index(view)
        return Embedded(
            z=F.normalize(raw.float(), dim=1), ids=ids, view=torch.full_like(ids, number), start=batch.start[view]
        )

    def project(self, encode: Encode, view: str) -> Tensor:
        """The head's output for a view (B, D); running statistics of BatchNorm move as those of the encoder do."""
        head = self.heads[self.view(view).network]
        features = encode(view)
        with encode.statistics(head, [view]):
            return head(features)

    def follow(
        self, networks: Mapping[str, nn.Module], *, momentum: float, schedule: Literal["constant", "cosine"]
    ) -> None:
        """Keep a momentum copy of networks as `target`; it moves after every step.

        Args:
            networks: by name.
            momentum: weight of the old value, in [0, 1].
            schedule: cosine = it rises to 1 over the run.
        """
        self.target = MomentumCopy(networks)
        self._followed, self._momentum, self._schedule = dict(networks), momentum, schedule

    def follow_all(self, *, momentum: float, schedule: Literal["constant", "cosine"]) -> None:
        """`follow` every network that has a head, and its head as NAME_head."""
        networks = {name: self.networks[name] for name in self.heads}
        heads = {f"{name}_head": head for name, head in self.heads.items()}
        self.follow(networks | heads, momentum=momentum, schedule=schedule)

    def project_target(self, encode: Encode, view: str) -> Tensor:
        """As `project`, by a momentum copy of `follow_all`: (B, D), without gradient."""
        return self.target[f"{self.view(view).network}_head"](self.encode_target(encode, view))

    def encode_target(self, encode: Encode, view: str) -> Tensor:
        """Output of the momentum copy's encoder for a view: (B, ..., dim), without gradient."""
        return encode.through(self.target[self.view(view).network], view)

    def after_step(self, step: Step, progress: Progress) -> None:
        """Move state with what the step left in its memo; once per optimizer step."""
        if self.target is not None:
            done = progress.step / progress.num_steps
            momentum = cosine_momentum(self._momentum, done) if self._schedule == "cosine" else self._momentum
            self.target.ema_update(self._followed, momentum=momentum)

    def reset_target(self) -> None:
        """Make the momentum copy equal to the networks that it follows: their weights were replaced."""
        if self.target is not None:
            self.target.reset(self._followed)

    def check_start(self) -> None:
        """Raise ValueError where training cannot begin with the state that the method has now."""

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Called before the first step of every epoch; same result on every rank. Returns metrics for the log."""
        return {}

    def agreement_sets(self) -> dict[str, Tensor]:
        """Mined sets (N, k) of each row, -1 = empty, by what the names of their metrics from `on_epoch` begin with;
        none, unless the method mines. Asked by those who know labels, which a method does not.
        """
        return {}

    def lr_scales(self) -> dict[str, float | Literal["constant"]]:
        """{parameter prefix: factor of the learning rate, or "constant" = without the schedule}."""
        return {}

    def generator(self, progress: Progress) -> torch.Generator:
        """A CPU generator that depends on the seed and the step only: the same on every rank and at every call."""
        key = np.random.SeedSequence((self.seed, progress.step)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(key >> np.uint64(1)))


def check_asked(method: Method, asked: Collection[str]) -> None:
    """Raise RuntimeError unless a loss has encoded every view that its method declares: DDP waits for gradients."""
    forgotten = [view.name for view in method.views if view.name not in asked]
    if forgotten and not method.find_unused_parameters:
        raise RuntimeError(
            f"{type(method).__name__} declares the views {', '.join(forgotten)} and never encodes them: leave them out "
            "of `views`, or set find_unused_parameters"
        )


def check_pairs(instances: Instances) -> None:
    """Raise ValueError unless some clip has both video and audio."""
    if not instances.paired.any():
        raise ValueError(
            "no clip of this split has both video and audio, and the method learns from their pairing: check the "
            "manifest's summary (status, has_audio) and data.split, or learn within one modality with method.name=avid "
            "and method.within=1"
        )


def check_usable(instances: Instances, modality: Literal["video", "audio"], *, least: int = 2) -> None:
    """Raise ValueError unless enough clips have frames or sound: two, to be told apart from one another."""
    num_usable = int(instances.usable[modality].sum())
    if num_usable < least:
        raise ValueError(
            f"this split has {num_usable} usable clips with {modality}: train on at least {least} (the manifest's "
            f"columns split, status and has_{modality} say which are usable)"
        )
