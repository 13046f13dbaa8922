"""Several methods on shared encoders in one run: one batch brings the union of their views, each view is encoded once,
and every part keeps its own heads, memory banks and queues.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from avssl.config import ConfigError, Options
from avssl.methods.base import Encode, Method, check_asked, statistics_of
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import Same, View


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Options in the errors of a part by their whole name: a method does not know that it is a part."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error).replace("method.", f"method.parts.{part}.")) from error


class JointOptions(Options):
    # {name of a method: its options, and `weight` (default 1)}; with `name: METHOD` inside, a part has its own name
    parts: dict[str, Any] = Field({})


class Joint(Method):
    """See the module. What a clip lacks leaves out the parts that need it: a silent clip trains the others.

    Views of the parts that are equal values are one view. Of two that share a name only, the later one stands in the
    batch as `part/name`; the part itself sees its own names.

    Args:
        parts: methods that were built around `encoders`.
        weights: of their losses, by the same names.
    """

    Options = JointOptions

    def __init__(
        self,
        options: JointOptions,
        encoders: nn.ModuleDict,
        *,
        instances: Instances,
        seed: int,
        parts: Mapping[str, Method],
        weights: Mapping[str, float],
    ) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        self.parts = nn.ModuleDict(parts)
        self.weights = dict(weights)
        self.find_unused_parameters = any(part.find_unused_parameters for part in parts.values())
        union: dict[str, View] = {}
        self.names: dict[str, dict[str, str]] = {}  # {part: {its name of a view: that in the batch}}
        self.own: dict[str, str] = {}  # {network of a part's own: the part}
        for name, part in parts.items():
            if getattr(part.options, "adversarial", 0):
                raise ValueError(f"method.parts.{name}.adversarial: for a method by itself, not a part")
            for own in part.own_encoders:
                if own in self.own:
                    raise ValueError(f"method.parts.{name} and {self.own[own]} both have a network {own}: at most one")
                self.own[own] = name
            self.names[name] = names = {}
            for view in part.views:
                when = Same(names[view.when.view]) if isinstance(view.when, Same) else view.when
                view = replace(view, when=when)
                same = (key for key in union if key.rpartition("/")[2] == view.name)
                equal = next((key for key in same if replace(union[key], name=view.name) == view), None)
                names[view.name] = key = equal or (f"{name}/{view.name}" if view.name in union else view.name)
                union[key] = replace(view, name=key)
        self.views = tuple(union.values())

    @property
    def networks(self) -> dict[str, nn.Module]:
        return super().networks | {own: self.parts[name].own_encoders[own] for own, name in self.own.items()}

    def head(self, modality: str) -> nn.Module | None:
        """That of the first part that has one."""
        return next((head for part in self.parts.values() if (head := part.head(modality)) is not None), None)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        total, logs, memo, embeddings = 0.0, {}, {}, {}
        for name, part in self.parts.items():
            names = self.names[name]
            own = PartEncode(encode, names, part.views)
            step = part.loss(own, _renamed(batch, names), progress)
            check_asked(part, own.asked)
            total = total + self.weights[name] * step.loss
            logs |= {f"{name}/loss": step.loss.detach()}
            logs |= {f"{name}/{key}": value for key, value in step.logs.items()}
            memo |= {f"{name}/{key}": value for key, value in step.memo.items()}
            embeddings |= {f"{name}/{key}": value for key, value in step.embeddings.items()}
        return Step(total, logs, memo, embeddings)

    def after_step(self, step: Step, progress: Progress) -> None:
        for name, part in self.parts.items():
            own = Step(step.loss, memo=_of_part(step.memo, name), embeddings=_of_part(step.embeddings, name))
            part.after_step(own, progress)

    def check_start(self) -> None:
        for name, part in self.parts.items():
            with naming(name):
                part.check_start()

    def settle(self) -> None:
        for part in self.parts.values():
            part.settle()

    def on_epoch(self, epoch: int) -> dict[str, float]:
        return {
            f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.on_epoch(epoch).items()
        }

    def agreement_sets(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": sets for name, part in self.parts.items() for key, sets in part.agreement_sets().items()
        }

    def lr_scales(self) -> dict[str, Any]:
        return {
            key if key.startswith("encoders.") else f"parts.{name}.{key}": scale
            for name, part in self.parts.items()
            for key, scale in part.lr_scales().items()
        }


class PartEncode:
    """The encoders as one part asks them, by its own names of the views."""

    def __init__(self, encode: Encode, names: Mapping[str, str], views: Sequence[View]) -> None:
        self._encode, self._names = encode, names
        self._views = {view.name: view for view in views}
        self.asked: set[str] = set()

    def __call__(self, view: str, *, stage: str | None = None, x: Tensor | None = None) -> Tensor:
        self.asked.add(view)
        return self._encode(self._names[view], stage=stage, x=x)

    def through(self, network: nn.Module, view: str) -> Tensor:
        self.asked.add(view)
        return self._encode.through(network, self._names[view])

    def statistics(self, network: nn.Module, views: Sequence[str]) -> AbstractContextManager[None]:
        """Of a network of the part's own, which sees the part's views alone."""
        return statistics_of(network, views, self._views)

    def together(self, views: tuple[str, ...]) -> tuple[Tensor, ...]:
        self.asked |= set(views)
        return self._encode.together([self._names[view] for view in views])


def _renamed(batch: Batch, names: Mapping[str, str]) -> Batch:
    """A batch with the views of one part, by the part's names."""

    def own(group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[key] for name, key in names.items() if key in group}

    return replace(
        batch,
        video=own(batch.video),
        audio=own(batch.audio),
        start=own(batch.start),
        params=own(batch.params),
        padded=own(batch.padded),
    )


def _of_part(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of one part, without its prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in entries.items() if key.startswith(f"{name}/")}
