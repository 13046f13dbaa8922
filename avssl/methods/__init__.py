"""The methods by name. A new one: its file, one line here, one config, one oracle test."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from avssl.config import Config, ConfigError, Options, merge_options
from avssl.methods.avid import AVID, AVIDOptions
from avssl.methods.avid_cma import AVIDCMA, AVIDCMAOptions
from avssl.methods.base import Method
from avssl.methods.finetune import Finetune, FinetuneOptions
from avssl.methods.infonce import InfoNCE, InfoNCEOptions
from avssl.methods.joint import Joint, JointOptions
from avssl.methods.neighbour import Neighbour, NeighbourOptions
from avssl.methods.patch import Patch, PatchOptions
from avssl.methods.walk import Walk, WalkOptions
from avssl.models import build_encoder
from avssl.structs import Instances

METHODS: dict[str, tuple[type[Method], type[Options]]] = {  # name: class, options
    "avid": (AVID, AVIDOptions),
    "avid_cma": (AVIDCMA, AVIDCMAOptions),
    "infonce": (InfoNCE, InfoNCEOptions),
    "neighbour": (Neighbour, NeighbourOptions),
    "patch": (Patch, PatchOptions),
    "walk": (Walk, WalkOptions),
    "joint": (Joint, JointOptions),
    "finetune": (Finetune, FinetuneOptions),
}


def build_method(config: Config, instances: Instances) -> Method:
    """Encoders and method of a configuration, with weights drawn from run.seed: the same on every rank. A modality that
    the method does not look at has no encoder.

    Raises:
        ConfigError: unknown method or encoder, an option that the method does not have, or a wrong value.
    """
    plan = _read(config.method, where="method")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        encoders = nn.ModuleDict(
            {side: build_encoder(side, config.model) for side in ("video", "audio") if side in plan.modalities}
        )
        return plan.build(encoders, instances=instances, seed=config.run.seed)


def is_supervised(config: Config) -> bool:
    """Whether the method of a configuration learns labels. Raises ConfigError as `build_method` does."""
    return _read(config.method, where="method").method.supervised


def method_options(config: Config, *, only_given: bool = False) -> dict[str, Any]:
    """Name and options of a configuration's method, those of its parts too, as JSON has them. Raises ConfigError as
    `build_method` does.

    Args:
        only_given: without the defaults.
    """
    return _read(config.method, where="method").as_dict(only_given=only_given)


@dataclass(frozen=True)
class _Plan:
    """A method as configured, before its encoders exist."""

    name: str
    method: type[Method]
    options: Options
    parts: dict[str, "_Plan"]  # of joint
    weight: float = 1.0

    @property
    def modalities(self) -> set[str]:
        return set().union(*(part.modalities for part in self.parts.values())) or set(self.method.needs(self.options))

    def as_dict(self, *, only_given: bool) -> dict[str, Any]:
        parts = {
            name: part.as_dict(only_given=only_given) | {"weight": part.weight} for name, part in self.parts.items()
        }
        options = {"name": self.name} | self.options.model_dump(mode="json", exclude_unset=only_given)
        return options | {"parts": parts} if parts else options

    def build(self, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> Method:
        if not self.parts:
            return self.method(self.options, encoders, instances=instances, seed=seed)
        parts = {}
        for name, part in self.parts.items():
            try:
                parts[name] = part.build(encoders, instances=instances, seed=seed)
            except ValueError as error:  # a method does not know that it is a part
                raise ConfigError(str(error).replace("method.", f"method.parts.{name}.")) from error
        return Joint(parts, {name: part.weight for name, part in self.parts.items()}, encoders, seed=seed)


def _read(given: Mapping[str, Any], *, where: str) -> _Plan:
    """Look a method up and merge its options, and those of its parts."""
    given = dict(given)
    name = given.pop("name")
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=3) or list(METHODS)
        raise ConfigError(f"{where}.name={name} is unknown: did you mean {' or '.join(near)}?")
    method, options = METHODS[name]
    options = merge_options(options, given, where=f"method {name}" if where == "method" else where)
    parts = {}
    if method is Joint:
        if len(options.parts) < 2:
            raise ConfigError(f"{where}.parts names {len(options.parts)} methods: method joint needs two or more")
        for part, chosen in options.parts.items():
            own = f"{where}.parts.{part}"
            if not str(part).isidentifier():
                raise ConfigError(f"{own}: a part is named with letters, digits and _ only")
            if hasattr(nn.ModuleDict, str(part)):
                raise ConfigError(f"{own}: {part} is a word of PyTorch's: give the part another name")
            if not isinstance(chosen, Mapping) or chosen.get("name", part) == "joint":
                raise ConfigError(f"{own}={chosen}: expected the options of a method other than joint, such as {{}}")
            chosen = {"name": part} | chosen
            weight = chosen.pop("weight", 1.0)
            parts[part] = replace(_read(chosen, where=own), weight=_weight(weight, key=f"{own}.weight"))
    return _Plan(name, method, options, parts)


def _weight(given: Any, *, key: str) -> float:
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"{key}={given}: expected a positive number; leave the part out for 0")
    return weight
