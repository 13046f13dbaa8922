"""The words of the package: what flows between its parts. Frozen dataclasses that check their shapes.

Letters, here and everywhere: B batch per rank, W ranks, T frames, H x W pixels, F mel bins, S spectrogram steps,
D embedding, Q queries, M columns, N instances, P positives per row, K negatives per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from avssl import distributed

MODALITIES = ("video", "audio")
SMALL_BYTES = 65536  # tensors up to here go from process to process by value


@dataclass(frozen=True)
class SameRows:
    """Which rows (N,) of this run's manifest are which rows (M,) of another run's."""

    there: Tensor  # (N,) int64, row of the other manifest; -1 = it has none
    here: Tensor  # (M,) int64, row of this one; -1 = it has none, or this run does not train on it

    @classmethod
    def of_keys(cls, ours: Tensor, theirs: Tensor, *, valid: Tensor) -> SameRows:
        """By keys (N,), (M,) that are unique in each manifest; valid: (N,) bool, rows that this run trains on."""
        order = theirs.argsort()
        place = order[torch.searchsorted(theirs[order], ours).clamp(max=len(theirs) - 1)]
        there = place.masked_fill(theirs[place] != ours, -1)
        here = torch.full_like(theirs, -1)
        kept = ((there >= 0) & valid).nonzero().squeeze(1)
        here[there[kept]] = kept
        return cls(there, here)


@dataclass(frozen=True)
class Sample:
    """One clip as a worker process hands it over: numpy only, uint8 frames and raw samples."""

    id: int  # row of the manifest
    video: dict[str, np.ndarray]  # {view: (T, H, W, 3) uint8}
    audio: dict[str, np.ndarray]  # {view: (samples,) float32 in [-1, 1]}
    start: dict[str, float]  # {view: seconds on the container's clock of what was really read}
    has_audio: bool
    has_video: bool
    params: dict[str, dict[str, np.ndarray]]  # {view: {augmentation parameter: value}}
    padded: dict[str, bool]  # {view: the clip was shorter than asked: frames looped, sound padded with zeros}
    target: dict[str, int | np.ndarray] = field(default_factory=dict)
    error: str | None = None  # why the file could not be read; everything else is then empty, with id -1


@dataclass(frozen=True)
class Batch:
    """A batch on this rank. Video is (B, T, H, W, 3) uint8 and audio (B, samples) as loaded; `transforms.views.apply`
    turns them into (B, 3, T, H, W) and (B, 1, S, F) float32."""

    video: dict[str, Tensor]
    audio: dict[str, Tensor]
    ids: Tensor  # (B,) int64, rows of the manifest
    start: dict[str, Tensor]  # {view: (B,) float64 seconds}
    has_audio: Tensor  # (B,) bool; the sound of the other rows is zeros
    has_video: Tensor  # (B,) bool; the frames of the other rows are zeros
    params: dict[str, dict[str, Tensor]]  # {view: {parameter: (B, ...)}}, always on the CPU
    padded: dict[str, Tensor]  # {view: (B,) bool}
    target: dict[str, Tensor] = field(default_factory=dict)
    errors: tuple[str, ...] = ()  # one line for each file that could not be read; its row has id -1

    def __post_init__(self) -> None:
        size = self.ids.shape[0]
        groups = [self.video, self.audio, self.start, self.padded, self.target, *self.params.values()]
        flags = [("has_audio", self.has_audio), ("has_video", self.has_video)]
        for name, value in [*flags, *(entry for group in groups for entry in group.items())]:
            if value.shape[:1] != (size,):
                raise ValueError(f"batch entry {name} has shape {tuple(value.shape)}, expected {size} rows as in ids")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __reduce__(self) -> tuple:
        """From a worker process small tensors travel by value: a piece of shared memory for each would take longer than
        to load the clips."""

        def by_value(value: Tensor) -> Tensor | np.ndarray:
            is_plain = value.device.type == "cpu" and value.dtype != torch.bfloat16  # NumPy knows no bfloat16
            return value.numpy() if is_plain and value.nbytes <= SMALL_BYTES else value

        small = self.map(by_value)
        return _received, ({entry.name: getattr(small, entry.name) for entry in fields(self)},)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor passed through `function`."""

        def each(group: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: function(value) for name, value in group.items()}

        return Batch(
            video=each(self.video),
            audio=each(self.audio),
            ids=function(self.ids),
            start=each(self.start),
            has_audio=function(self.has_audio),
            has_video=function(self.has_video),
            params={view: each(group) for view, group in self.params.items()},
            padded=each(self.padded),
            target=each(self.target),
            errors=self.errors,
        )

    def to(self, device: torch.device) -> Batch:
        """All but the parameters on `device`: which clips share an operation decides shapes, so the host must know."""
        return replace(self.map(lambda value: value.to(device, non_blocking=True)), params=self.params)

    def pin_memory(self) -> Batch:
        return self.map(lambda value: value.pin_memory())


def _received(entries: dict[str, Any]) -> Batch:
    return Batch(**entries).map(torch.as_tensor)


@dataclass(frozen=True)
class Embedded:
    """Unit vectors that remember where they come from.

    Queries are (Q, D); shared columns (M, D); own columns per query (Q, M, D). `ids`, `view` and `start` have z's shape
    without its last axis. An id of -1 is a masked row: it matches nothing.
    """

    z: Tensor  # (..., D) unit length
    ids: Tensor  # (...) int64
    view: Tensor  # (...) int64: number among the method's views; of a tracked patch, the number of its track
    start: Tensor  # (...) float64 seconds

    FIELDS: ClassVar[tuple[str, ...]] = ("z", "ids", "view", "start")

    def __post_init__(self) -> None:
        for name in ("ids", "view", "start"):
            if getattr(self, name).shape != self.z.shape[:-1]:
                raise ValueError(
                    f"embedded {name} has shape {tuple(getattr(self, name).shape)}, expected {tuple(self.z.shape[:-1])}"
                )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Embedded:
        return Embedded(function(self.z), function(self.ids), function(self.view), function(self.start))

    def detach(self) -> Embedded:
        return replace(self, z=self.z.detach())

    def gather(self) -> Embedded:
        """The rows of all ranks, rank 0 first, gradient kept. Sizes must be equal: pad with id -1."""
        return self._map(distributed.gather)

    def take(self, num_columns: int) -> Embedded:
        """The first columns only (of shared or own columns alike)."""
        axis = self.ids.dim() - 1
        return self._map(lambda value: value.narrow(axis, 0, num_columns))

    @staticmethod
    def interleave(parts: Sequence[Embedded]) -> Embedded:
        """n parts of (B, D) -> (B n, D), the n of a row together: ranks then gather in the order of one process."""
        stacked = (torch.stack([getattr(part, name) for part in parts], dim=1) for name in Embedded.FIELDS)
        return Embedded(*stacked).rows()

    def rows(self) -> Embedded:
        """(A, B, D) -> (A B, D)."""
        return self._map(lambda value: value.flatten(0, 1))

    def own(self, num_rows: int) -> Embedded:
        """These (num_rows m, D), m for each row, as the own columns (num_rows, m, D) of each."""
        return self._map(lambda value: value.unflatten(0, (num_rows, -1)))

    def repeat(self, times: int) -> Embedded:
        """Each row so many times, one after the other."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    @staticmethod
    def cat(parts: Sequence[Embedded]) -> Embedded:
        """One after the other along the column axis."""
        axis = parts[0].ids.dim() - 1
        return Embedded(*(torch.cat([getattr(part, name) for part in parts], dim=axis) for name in Embedded.FIELDS))


@dataclass(frozen=True)
class Step:
    """What a method's loss returns, all but the loss detached: metrics for the log, what `after_step` is to store, and
    the embeddings that the collapse metrics are computed from. `Method.forward` adds the features."""

    loss: Tensor  # ()
    logs: dict[str, Tensor] = field(default_factory=dict)
    memo: dict[str, Embedded | Tensor] = field(default_factory=dict)
    embeddings: dict[str, Embedded] = field(default_factory=dict)  # {name: (n, D)}
    features: dict[str, Tensor] = field(default_factory=dict)  # {modality: encoder outputs (B, dim)}


@dataclass(frozen=True)
class Progress:
    """Where a run is. Everything drawn inside a loss is keyed by it, so that calling a loss twice gives the same
    value.
    """

    epoch: int
    step: int  # optimizer steps done in the whole run
    num_steps: int  # of the whole run


@dataclass(frozen=True)
class Instances:
    """The rows of the manifest as a method sees them: how many, which may be drawn and mined, and, for a supervised
    method, of which class."""

    valid: Tensor  # (N,) bool: split and status admit the row
    has_audio: Tensor  # (N,) bool
    has_video: Tensor  # (N,) bool
    target: Tensor | None = None  # (N,) int64, position in `classes`, -1 without a label; (N, L) of several labels
    classes: list[str] = field(default_factory=list)
    labels_hash: str = ""  # of the manifest that they are of

    @property
    def num(self) -> int:
        return self.valid.shape[0]

    @property
    def usable(self) -> dict[str, Tensor]:
        """{modality: (N,) bool}: admitted rows that have this side."""
        return {"video": self.valid & self.has_video, "audio": self.valid & self.has_audio}

    @property
    def paired(self) -> Tensor:
        """(N,) bool: admitted rows that have video and audio."""
        return self.valid & self.has_video & self.has_audio
