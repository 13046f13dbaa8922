"""The methods by name. A new one: its file, one line here, one config, one oracle test."""

import difflib

import torch
from torch import nn

from avssl.config import Config, ConfigError, merge_options
from avssl.methods.avid import AVID, AVIDOptions
from avssl.methods.avid_cma import AVIDCMA, AVIDCMAOptions
from avssl.methods.base import Method
from avssl.methods.infonce import InfoNCE, InfoNCEOptions
from avssl.models import build_encoder
from avssl.structs import Instances

METHODS: dict[str, tuple[type[Method], type]] = {  # name: class, options
    "avid": (AVID, AVIDOptions),
    "avid_cma": (AVIDCMA, AVIDCMAOptions),
    "infonce": (InfoNCE, InfoNCEOptions),
}


def build_method(config: Config, instances: Instances) -> Method:
    """Encoders and method of a configuration, with weights drawn from run.seed: the same on every rank.

    Raises:
        ConfigError: unknown method or encoder, an option that the method does not have, or a wrong value.
    """
    given = dict(config.method)
    name = given.pop("name")
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=3) or list(METHODS)
        raise ConfigError(f"method.name={name} is unknown: did you mean {' or '.join(near)}?")
    method_class, options_class = METHODS[name]
    options = merge_options(options_class, given, where=f"method {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        encoders = nn.ModuleDict({modality: build_encoder(modality, config.model) for modality in ("video", "audio")})
        return method_class(options, encoders, instances=instances, seed=config.run.seed)
