"""Several methods on shared encoders in one run: one batch brings the union of their views, each view is encoded once,
and every part keeps its own heads, memories and queues.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from avssl.config import Options
from avssl.methods.base import Method
from avssl.structs import Batch, Progress, Step


class JointOptions(Options):
    # {name of a method: its options, and `weight` (default 1)}; with `name: METHOD` inside, a part has its own name
    parts: dict[str, Any] = Field(default_factory=dict)


class Joint(Method):
    """See the module. What a clip lacks leaves out the parts that need it: a silent clip trains the others.

    Args:
        parts: methods that were built around `encoders`.
        weights: of their losses, by the same names.
    """

    def __init__(
        self, parts: Mapping[str, Method], weights: Mapping[str, float], encoders: nn.ModuleDict, *, seed: int
    ) -> None:
        super().__init__(encoders, seed=seed)
        self.parts = nn.ModuleDict(parts)
        self.weights = dict(weights)
        self.views = tuple(dict.fromkeys(view for part in parts.values() for view in part.views))
        self.clips = _agreed(parts, "clips")
        self.patches = _agreed(parts, "patches")

    @property
    def encoded(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(view for part in self.parts.values() for view in part.encoded))

    def encode_keys(self, batch: Batch) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            for key, value in part.encode_keys(batch).items()
        }

    def head(self, modality: str) -> nn.Module:
        """That of the first part that has one."""
        return next(part.heads[modality] for part in self.parts.values() if modality in part.heads)

    def loss(self, features: dict[str, Tensor], batch: Batch, progress: Progress) -> Step:
        total, logs, memo = 0.0, {}, {}
        for name, part in self.parts.items():
            step = part.loss(features | _of_part(features, name), batch, progress)
            total = total + self.weights[name] * step.loss
            logs |= {f"{name}/loss": step.loss.detach()}
            logs |= {f"{name}/{key}": value for key, value in step.logs.items()}
            memo |= {f"{name}/{key}": value for key, value in step.memo.items()}
        return Step(total, logs, memo)

    def after_step(self, step: Step) -> None:
        for name, part in self.parts.items():
            part.after_step(Step(step.loss, memo=_of_part(step.memo, name)))

    def on_epoch(self, epoch: int) -> dict[str, float]:
        return {
            f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.on_epoch(epoch).items()
        }

    def agreement_sets(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": sets for name, part in self.parts.items() for key, sets in part.agreement_sets().items()
        }


def _of_part(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of one part, without its prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in entries.items() if key.startswith(f"{name}/")}


def _agreed(parts: Mapping[str, Method], what: str) -> Any:
    """What the parts ask of a sample: one answer, as their views share names.

    Raises:
        ValueError: two parts ask for different things.
    """
    default = getattr(Method, what)
    asking = {name: getattr(part, what) for name, part in parts.items() if getattr(part, what) != default}
    if len(set(asking.values())) > 1:
        wishes = " and ".join(f"part {name} wants {wish}" for name, wish in asking.items())
        raise ValueError(
            f"one sample serves all parts of method joint, but {wishes}: give them the same options for these, or "
            "train them apart"
        )
    return next(iter(asking.values()), default)
