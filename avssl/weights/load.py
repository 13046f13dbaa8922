"""Load trained encoders; everything that uses frozen features starts here.

    model = load("weights/avid")
    found = model.encode(["one.mp4", "two.mp4"])  # found.features["video"]: (2, dim)

Letters: B batch, n files, T frames, H x W pixels, n samples, S spectrogram steps, F frequency bins.
"""

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import avssl
from avssl import distributed
from avssl.config import Config, DataConfig, ModelConfig, loads, merge_options, without_weights
from avssl.files import digest
from avssl.methods import build_method, foreign_methods, method_options
from avssl.methods.base import Method
from avssl.models import build_encoder
from avssl.models.heads import Classifier, mlp
from avssl.models.importers import check_finite
from avssl.structs import MODALITIES, Instances
from avssl.training.checkpoint import DAMAGED, ENCODERS, LAST, damage_named, load_checkpoint, load_model
from avssl.training.setup import to_channels_last
from avssl.transforms.views import evaluate_view
from avssl.weights.encode import encode_array, encode_files
from avssl.weights.features import Extracted
from avssl.weights.hub import PREFIX, fetch
from avssl.weights.pe_av import read_pe_av

FORMAT = 2  # of config.json
CONFIG = "config.json"
PE_AV = "pe_audio_video"  # `model_type` in the config.json of such a folder
SECTIONS = ("data", "model", "heads", "classifier", "facts")  # of config.json


class WeightsError(ValueError):
    """A folder of weights that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Encoders with their heads, and how their clips are read."""

    path: Path  # of the weights file
    encoders: nn.ModuleDict  # {video, audio, or one of them: Encoder}: evaluation mode, on `device`
    heads: nn.ModuleDict  # {modality: projection head}, where there is one
    data: DataConfig
    model: ModelConfig
    device: torch.device
    weights_hash: str  # of all weights and buffers of encoders and heads
    classifier: Classifier | None = None  # trained on them, evaluation mode, on `device`
    facts: Mapping[str, Any] = field(default_factory=dict)  # where the weights come from, as JSON has them

    def encode(
        self, paths: str | Path | Sequence[str | Path], *, num_clips: int = 3, num_workers: int = 0, bar: bool = False
    ) -> Extracted:
        """Vectors of files, averaged over clips spread over each.

        Args:
            paths: (n,) of files with video, audio or both; or one path.
            num_clips: per file.
            num_workers: processes that decode.
            bar: show progress.

        Returns:
            `ids` are positions in `paths` of the files that could be read, `errors` says of the others why not;
            `features` {video, audio: (n, dim)}, `embedding` those of the heads, of unit length; zeros where
            `has_video` or `has_audio` is false.

        Raises:
            ValueError: a path is no file, no file could be read, or num_clips < 1.
        """
        return encode_files(self, paths, num_clips=num_clips, num_workers=num_workers, bar=bar)

    def encode_frames(self, frames: np.ndarray, fps: float, *, num_clips: int = 3) -> Extracted:
        """Vectors of frames (number, H, W, 3) uint8 RGB, at `fps` per second: one row, as `encode` gives it. They are
        scaled by torch instead of the decoder, so vectors differ a little from those of a file.

        Raises:
            ValueError: there is no video encoder, or the frames are something else.
        """
        return encode_array(self, "video", frames, rate=fps, num_clips=num_clips)

    def encode_samples(self, samples: np.ndarray, rate: int, *, num_clips: int = 3) -> Extracted:
        """Vectors of sound (number,) float32 in [-1, 1], mono, at `rate` samples per second: one row, as `encode` gives
        it.

        Raises:
            ValueError: there is no audio encoder, or the samples are something else.
        """
        return encode_array(self, "audio", samples, rate=rate, num_clips=num_clips)

    def transform(self, modality: Literal["video", "audio"], x: Tensor) -> Tensor:
        """Decoded clips -> input of the encoder, without augmentation; raises ValueError as `evaluate_view`.

        Args:
            x: frames (B, T, H, W, 3) uint8, or samples (B, n) float32 in [-1, 1] at data.sample_rate.

        Returns:
            (B, 3, T, size, size) or (B, 1, S, F), float32 on `device`.
        """
        return evaluate_view(modality, x.to(self.device), self.data)


@dataclass(frozen=True, kw_only=True)
class Run(Pretrained):
    """A training run: with its method and the method's state."""

    config: Config
    method: Method  # whose encoders and heads these are
    manifest_hash: str


PretrainedT = TypeVar("PretrainedT", bound=Pretrained)


def load(path: str | Path, *, device: str | torch.device | None = None) -> Pretrained:
    """Load a run, or weights that `export` wrote.

    Args:
        path: folder of a run or of exported weights, the encoders.safetensors in it, or a checkpoint of a run;
            hf:ORG/NAME, exported weights on the Hugging Face hub (`avssl.weights.hub`); or a folder of PE-AV as
            transformers has it (`avssl.weights.pe_av`).
        device: such as "cpu" or "cuda:1"; None = a GPU if available. No process group is joined.

    Raises:
        CheckpointError: there is neither, or the run's checkpoint is damaged.
        WeightsError: the exported weights are damaged, of a later version, or not of avssl.
        HubError: they cannot be fetched.
    """
    path = fetch(str(path)) if str(path).startswith(PREFIX) else Path(path)
    folder = path.parent if path.name == ENCODERS else path
    if (folder / CONFIG).is_file():
        config = _read_config(folder / CONFIG)
        return (_load_pe_av if config.get("model_type") == PE_AV else _load_export)(folder, config, device)
    path = _checkpoint_of(folder)
    state = load_checkpoint(path)
    config = loads(state["config"], source=str(path))
    if not foreign_methods(config):
        return load_run(path, device=device)
    # a user's own method: a file named in a checkpoint is never imported, and not needed here
    model = without_weights(config).model
    weights = state["model"]
    modalities = [m for m in MODALITIES if any(name.startswith(f"encoders.{m}.") for name in weights)]
    with damage_named(path):
        encoders = nn.ModuleDict({modality: build_encoder(modality, model) for modality in modalities})
        heads = nn.ModuleDict({modality: mlp(**head["arguments"]) for modality, head in state["heads"].items()})
        for module, prefix in [
            (encoders, "encoders."),
            *((heads[m], head["prefix"]) for m, head in state["heads"].items()),
        ]:
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        facts = _facts(config, state)
    return pretrained_of(encoders, heads, path=path, data=config.data, model=config.model, device=device, facts=facts)


def _checkpoint_of(path: Path) -> Path:
    return path / LAST if path.is_dir() or not path.suffix else path


def load_run(path: str | Path, *, device: str | torch.device | None = None, trained: bool = True) -> Run:
    """Load a run's last checkpoint.

    Args:
        path: folder of the run, or a checkpoint.
        device: None = a GPU if available.
        trained: False = the weights that the run started from, as a baseline.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
    """
    path = _checkpoint_of(Path(path))
    state = load_checkpoint(path)
    config = loads(state["config"], source=str(path))
    with damage_named(path):
        everything = torch.ones_like(state["instances"]["valid"])
        instances = Instances(**state["instances"] | dict.fromkeys(("valid", "has_audio", "has_video"), everything))
        method = build_method(without_weights(config) if trained else config, instances)
        if trained:
            load_model(method, state, path=path)
    run = run_of(method, config, path=path, manifest_hash=state["manifest_hash"], device=device)
    return dataclasses.replace(run, facts=_facts(config, state)) if trained else run


def run_of(
    method: Method, config: Config, *, path: Path, manifest_hash: str = "", device: str | torch.device | None = None
) -> Run:
    """A method in its current state as a Run."""
    device = distributed.choose_device() if device is None else torch.device(device)
    to_channels_last(method, enabled=config.run.channels_last)
    method = method.to(device).eval()
    heads = {modality: method.head(modality) for modality in method.encoders}
    heads = nn.ModuleDict({modality: head for modality, head in heads.items() if head is not None})
    classifier = getattr(method, "classifier", None)
    return Run(
        path=path,
        encoders=method.encoders,
        heads=heads,
        data=config.data,
        model=config.model,
        device=device,
        weights_hash=_hash(method.encoders, heads),
        classifier=classifier if isinstance(classifier, Classifier) else None,
        config=config,
        method=method,
        manifest_hash=manifest_hash,
    )


def untrained(pretrained: Pretrained, *, seed: int = 0) -> Pretrained:
    """The same encoders and heads with random weights, as a baseline."""
    model = without_files(pretrained.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = nn.ModuleDict({modality: build_encoder(modality, model) for modality in pretrained.encoders})
        heads = copy.deepcopy(pretrained.heads).cpu()
        for module in heads.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return pretrained_of(
        encoders, heads, path=pretrained.path, data=pretrained.data, model=model, device=pretrained.device
    )


def pretrained_of(
    encoders: nn.ModuleDict,
    heads: nn.ModuleDict,
    *,
    path: Path,
    data: DataConfig,
    model: ModelConfig,
    device: str | torch.device | None = None,
    classifier: Classifier | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Encoders and heads on `device` in evaluation mode, with the hash of their weights."""
    device = distributed.choose_device() if device is None else torch.device(device)
    to_channels_last(encoders)
    encoders, heads = encoders.to(device).eval(), heads.to(device).eval()
    return Pretrained(
        path=path,
        encoders=encoders,
        heads=heads,
        data=data,
        model=model,
        device=device,
        weights_hash=_hash(encoders, heads),
        classifier=None if classifier is None else classifier.to(device).eval(),
        facts=facts or {},
    )


def _hash(encoders: nn.ModuleDict, heads: nn.ModuleDict) -> str:
    return distributed.digest(nn.ModuleDict({"encoders": encoders, "heads": heads}).state_dict())


def with_data(pretrained: PretrainedT, **changes: int | float | str) -> PretrainedT:
    """The same model with other values in its data section, such as num_workers."""
    return dataclasses.replace(pretrained, data=pretrained.data.replace(**changes))


def _load_export(folder: Path, config: Mapping[str, Any], device: str | torch.device | None) -> Pretrained:
    path = folder / ENCODERS
    _check_config(folder / CONFIG, config)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): it belongs beside {folder / CONFIG}") from error
    if digest(content, algorithm="sha256") != config["sha256"]:
        raise WeightsError(f"{path} is damaged, or not the one that {CONFIG} beside it was written for: export again")
    try:
        state = safetensors.torch.load(content)
        data = merge_options(DataConfig, config["data"] | {"manifest": ""}, where=str(folder / CONFIG))
        model = without_files(merge_options(ModelConfig, config["model"], where=str(folder / CONFIG)))
        modalities = [m for m in MODALITIES if any(name.startswith(f"{m}.") for name in state)]

        def built() -> tuple[nn.ModuleDict, nn.ModuleDict, Classifier | None]:
            encoders = nn.ModuleDict({modality: build_encoder(modality, model) for modality in modalities})
            heads = nn.ModuleDict({modality: mlp(**arguments) for modality, arguments in config["heads"].items()})
            return encoders, heads, None if config["classifier"] is None else Classifier(**config["classifier"])

        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # sizes that are wrong take no memory
            parts_of(*built()).load_state_dict(state)
        encoders, heads, classifier = built()
        parts_of(encoders, heads, classifier).load_state_dict(state)
        check_finite(state, named=str(path))
    except (*DAMAGED, SafetensorError) as error:
        why = " ".join(str(error).split()[:40])
        raise WeightsError(
            f"{CONFIG} and {ENCODERS} in {folder} do not belong together ({why}): export again"
        ) from error
    about = {"path": path, "data": data, "model": model, "facts": config["facts"]}
    return pretrained_of(encoders, heads, device=device, classifier=classifier, **about)


def _load_pe_av(folder: Path, config: Mapping[str, Any], device: str | torch.device | None) -> Pretrained:
    try:
        encoders, heads, data = read_pe_av(folder)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    about = {"data": data, "model": ModelConfig(video=PE_AV, audio=PE_AV)}
    facts = {"kind": "transformers", "model_type": PE_AV}
    return pretrained_of(encoders, heads, path=folder / "model.safetensors", device=device, facts=facts, **about)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read ({error}): export again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is no mapping of keys: export again")
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    if not isinstance(config.get("format"), int) or "avssl" not in config:
        raise WeightsError(f"{path} is not of avssl: give a folder that avssl convert wrote")
    if config["format"] > FORMAT:
        raise WeightsError(
            f"{path} was written by avssl {config['avssl']}, in format {config['format']}; this is avssl "
            f"{avssl.__version__}, which reads up to {FORMAT}: update it"
        )
    if config["format"] < FORMAT:
        raise WeightsError(
            f"{path} is of format {config['format']}, which avssl {config['avssl']} reads: export it again"
        )
    lacking = {"sha256", *SECTIONS} - config.keys()
    if lacking:
        raise WeightsError(f"{path} lacks {', '.join(sorted(lacking))}: export again")
    wrong = [name for name in SECTIONS if not isinstance(config[name] or {}, dict)]
    if wrong:
        raise WeightsError(f"{path}: {wrong[0]} is no mapping of keys: export again")


def parts_of(encoders: nn.ModuleDict, heads: nn.ModuleDict, classifier: Classifier | None) -> nn.ModuleDict:
    """Module of all entries of a weights file: video.*, audio.*, heads.* and classifier.*"""
    parts = {**encoders, "heads": heads}
    return nn.ModuleDict(parts if classifier is None else parts | {"classifier": classifier})


def without_files(model: ModelConfig) -> ModelConfig:
    return model.replace(video_weights=None, audio_weights=None, init=None)


def _facts(config: Config, state: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a run for the model card; file names without folders."""
    known = not foreign_methods(config)
    files = (config.model.video_weights, config.model.audio_weights, config.model.init)
    return {
        "kind": "run",
        "method": _without_tracks(method_options(config, only_given=True) if known else config.method),
        "steps": int(state["step"]),
        "seed": config.run.seed,
        "precision": config.run.precision,
        "optim": config.optim.model_dump(mode="json"),
        "manifest_hash": state["manifest_hash"],
        "split": config.data.split,
        "num_clips": int(state["instances"]["valid"].sum()),
        "starts_from": [Path(name).name for name in files if name],
    }


def _local(value: Any) -> Any:
    """A file's name without its folder."""
    return value.rpartition("/")[2] if isinstance(value, str) else value


def _without_tracks(options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options, including those of its parts, without the path of its tracks."""
    return {
        name: _without_tracks(value) if isinstance(value, Mapping) else _local(value)
        for name, value in options.items()
        if name != "tracks"
    }
