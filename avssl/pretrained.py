"""Trained towers, ready to be asked: everything that looks at frozen features starts here.

What lives here: reading a run. What does not: what is asked of it (evaluate/, retrieval/).
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from avssl import distributed
from avssl.checkpoint import LAST, load_checkpoint, load_model
from avssl.config import Config, DataConfig, ModelConfig, loads, without_weights
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.models import build_encoder
from avssl.models.heads import Classifier
from avssl.structs import Instances
from avssl.train import to_channels_last


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Encoders with their heads, and how the clips that they look at are read."""

    path: Path  # of the file that the weights come from
    encoders: nn.ModuleDict  # {video, audio, or one of them: Encoder}: evaluation mode, on `device`
    heads: nn.ModuleDict  # {modality: what makes an embedding of the encoder's output}, where there is one
    data: DataConfig
    model: ModelConfig
    device: torch.device
    weights_hash: str  # of all weights and buffers of encoders and heads
    classifier: Classifier | None = None  # learned on them, evaluation mode, on `device`


@dataclass(frozen=True, kw_only=True)
class Run(Pretrained):
    """The same, of a training run: with its method, and whatever that remembers."""

    config: Config
    method: Method  # whose encoders and heads these are
    manifest_hash: str


Towers = TypeVar("Towers", bound=Pretrained)


def load_run(path: str | Path, *, device: torch.device | None = None, trained: bool = True) -> Run:
    """Read a run's last checkpoint.

    Args:
        path: folder of the run, or a checkpoint.
        device: None = a GPU where there is one.
        trained: False = the same towers with the weights that the run started from: the baseline of random weights.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
    """
    path = Path(path)
    path = path / LAST if path.is_dir() or not path.suffix else path
    state = load_checkpoint(path)
    config = loads(state["config"], source=str(path))
    everything = torch.ones_like(state["instances"]["valid"])
    method = build_method(
        without_weights(config) if trained else config,
        Instances(everything, has_audio=everything, has_video=everything),
    )
    if trained:
        load_model(method, state, path=path)
    return run_of(method, config, path=path, manifest_hash=state["manifest_hash"], device=device)


def run_of(
    method: Method, config: Config, *, path: Path, manifest_hash: str = "", device: torch.device | None = None
) -> Run:
    """A method as it stands, ready to be asked."""
    device = device or distributed.init("auto")
    to_channels_last(method, enabled=config.run.channels_last)
    method = method.to(device).eval()
    heads = nn.ModuleDict({modality: method.head(modality) for modality in method.encoders})
    return Run(
        path=path,
        encoders=method.encoders,
        heads=heads,
        data=config.data,
        model=config.model,
        device=device,
        weights_hash=_hash(method.encoders, heads),
        config=config,
        method=method,
        manifest_hash=manifest_hash,
    )


def untrained(towers: Pretrained, *, seed: int = 0) -> Pretrained:
    """The same towers and heads with random weights: the baseline that asks what training has brought."""
    model = dataclasses.replace(towers.model, video_weights=None, audio_weights=None, init=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = nn.ModuleDict({modality: build_encoder(modality, model) for modality in towers.encoders})
        heads = copy.deepcopy(towers.heads).cpu()
        for module in heads.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    to_channels_last(encoders)
    encoders, heads = encoders.to(towers.device).eval(), heads.to(towers.device).eval()
    return Pretrained(
        path=towers.path,
        encoders=encoders,
        heads=heads,
        data=towers.data,
        model=model,
        device=towers.device,
        weights_hash=_hash(encoders, heads),
    )


def _hash(encoders: nn.ModuleDict, heads: nn.ModuleDict) -> str:
    return distributed.digest(nn.ModuleDict({"encoders": encoders, "heads": heads}).state_dict())


def with_data(towers: Towers, **changes: int | float | str) -> Towers:
    """The same towers with other values in their data section, such as num_workers."""
    return dataclasses.replace(towers, data=dataclasses.replace(towers.data, **changes))
