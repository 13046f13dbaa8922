"""The methods by name. How a new one is added: CONTRIBUTING.md.

A method of a user's own stands in a file of theirs and is named `path/to/my_method.py:MyMethod`.
"""

import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from avssl.config import Config, ConfigError, DataConfig, Options, hint, merge_options
from avssl.files import digest
from avssl.methods.avid import AVID
from avssl.methods.avid_cma import AVIDCMA
from avssl.methods.barlow import Barlow
from avssl.methods.base import Method
from avssl.methods.byol import BYOL
from avssl.methods.cpc import CPC
from avssl.methods.finetune import Finetune
from avssl.methods.infonce import InfoNCE
from avssl.methods.joint import Joint, naming
from avssl.methods.moco import MoCo
from avssl.methods.moco_v3 import MoCoV3
from avssl.methods.neighbour import Neighbour
from avssl.methods.npid import NPID
from avssl.methods.patch import Patch
from avssl.methods.pirl import PIRL
from avssl.methods.predict import Predict
from avssl.methods.pretext import Pretext
from avssl.methods.sigreg import SIGReg
from avssl.methods.simclr import SimCLR
from avssl.methods.simsiam import SimSiam
from avssl.methods.swav import SwAV
from avssl.methods.vicreg import VICReg
from avssl.methods.walk import Walk
from avssl.models import build_encoder
from avssl.structs import Instances

METHODS: dict[str, type[Method]] = {
    "avid": AVID,
    "avid_cma": AVIDCMA,
    "infonce": InfoNCE,
    "npid": NPID,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "simclr": SimCLR,
    "pirl": PIRL,
    "cpc": CPC,
    "neighbour": Neighbour,
    "patch": Patch,
    "walk": Walk,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow": Barlow,
    "vicreg": VICReg,
    "sigreg": SIGReg,
    "swav": SwAV,
    "predict": Predict,
    "pretext": Pretext,
    "joint": Joint,
    "finetune": Finetune,
}


def import_methods(config: Config) -> None:
    """Import the files that the user's own configuration names as `path/to/my_method.py:MyMethod`, parts of joint too.

    Never call it with the configuration of a checkpoint: a file runs when it is imported.

    Raises:
        ConfigError: a file cannot be imported, or holds no such method.
    """
    for name in foreign_methods(config):
        import_method(name)


def foreign_methods(config: Config) -> list[str]:
    """Files of a user's own that a configuration names as methods and that are not imported."""
    return [name for name in _own_methods(config) if name not in METHODS]


def own_files(config: Config) -> dict[str, str]:
    """{path/to/my_method.py:MyMethod: digest of the file} of the user's own methods, where the file is there."""
    files = {name: Path(name.rpartition(":")[0]).expanduser() for name in _own_methods(config)}
    return {name: digest(file.read_bytes()) for name, file in files.items() if file.is_file()}


def _own_methods(config: Config) -> list[str]:
    parts = config.method.get("parts")
    chosen = [config.method, *(parts.values() if isinstance(parts, Mapping) else [])]
    names = [str(each.get("name", "")) for each in chosen if isinstance(each, Mapping)]
    return [name for name in names if ".py:" in name]


def import_method(name: str) -> None:
    """Import `path/to/my_method.py:MyMethod` and add it to METHODS by this name.

    Raises:
        ConfigError: the file cannot be imported, or holds no such method.
    """
    path, _, attribute = name.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"method {name}: there is no file {path}")
    module_name = f"avssl_method_{digest(file.resolve(), num_bytes=6)}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's own file raises
            del sys.modules[module_name]
            raise ConfigError(f"method {name}: {path} cannot be imported ({type(error).__name__}: {error})") from error
    method = getattr(sys.modules[module_name], attribute, None)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"method {name}: {path} has no subclass of avssl.methods.base.Method named {attribute}")
    METHODS[name] = method


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
            {
                modality: build_encoder(modality, config.model)
                for modality in ("video", "audio")
                if modality in plan.modalities
            }
        )
        return plan.build(encoders, instances=instances, seed=config.run.seed, data=config.data)


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

    def build(self, encoders: nn.ModuleDict, *, instances: Instances, seed: int, data: DataConfig) -> Method:
        if not self.parts:
            method = self.method(self.options, encoders, instances=instances, seed=seed)
            method.views = tuple(view.applied(data) for view in method.views)
            return method
        parts = {}
        for number, (name, part) in enumerate(self.parts.items()):
            own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])  # parts draw independently
            with naming(name):
                parts[name] = part.build(encoders, instances=instances, seed=own, data=data)
        weights = {name: part.weight for name, part in self.parts.items()}
        return Joint(self.options, encoders, instances=instances, seed=seed, parts=parts, weights=weights)


def _read(given: Mapping[str, Any], *, where: str) -> _Plan:
    """Look a method up and merge its options, and those of its parts."""
    given = dict(given)
    name = given.pop("name")
    if isinstance(name, str) and ".py:" in name and name not in METHODS:
        raise ConfigError(
            f"{where}.name={name} names a file, which is not imported because a checkpoint says so: give --plugin "
            f"{name} if you trust it"
        )
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"{where}.name={name} is unknown: {hint(str(name), METHODS)}")
    method = METHODS[name]
    options = merge_options(method.Options, given, where=f"method {name}" if where == "method" else where)
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
