"""The configuration of a run: four fixed sections as dataclasses, and `method`, whose options belong to the method
itself.

A run is one YAML file that holds only what differs from the defaults below, plus overrides `section.key=value`:

    load("configs/toy/avid.yaml", ["optim.lr=1e-3", "method.num_negatives=256"])

What lives here: the sections, reading, merging and the errors about wrong keys. What does not: the options of a method
(they stand beside the method's class and are merged with `merge_options`).
"""

import dataclasses
import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A configuration that cannot be used: the message names the key, the value and what is expected."""


@dataclass
class PolicyConfig:
    """What training does with clips that lack something: error = it refuses to start, skip = they are left out, mask =
    they are trained on, and what is missing is marked. The cases are those of avssl/data/policy.py."""

    unreadable: str = "skip"  # error | skip: a file that cannot be read
    quarantined: str = "skip"  # error | skip: a file that brought a worker down
    no_video: str = "skip"  # sound only
    no_audio: str = "mask"  # no sound track
    silent: str = "mask"  # a sound track of digital silence
    short: str = "mask"  # shorter than the run's clips
    late_start: str = "mask"  # the picture starts later than the sound
    rotated: str = "mask"  # turned by metadata; frames are read upright
    unequal_length: str = "mask"  # sound and picture
    # known after python tools/check.py --fix-manifest only
    cut_off: str = "mask"  # ends earlier than its header says
    damaged: str = "mask"  # does not decode everywhere
    variable_rate: str = "mask"
    duplicate: str = "skip"  # holds what an earlier row holds


@dataclass
class DataConfig:
    """Which clips, which seconds of them, and how each view is drawn. Defaults: the AVID recipe (Kinetics-400)."""

    manifest: str = MISSING  # parquet written by datasets/*.py; its rows are the instances
    root: str | None = None  # folder of the clips; null = the one recorded in the manifest
    split: str | None = "train"  # rows to train on; null = every row
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    clips_per_video: int = 10  # clips drawn from each video per epoch
    batch_size: int = 256  # clips per optimiser step over all ranks and accumulated parts
    num_workers: int = 2  # decoding processes per rank; 0 = decode in the main process
    worker_timeout_seconds: float = 120.0  # a worker silent for longer stops the run with an error
    max_pixels: int = 2**25  # of one stored picture (8K); a file that asks for more is refused by name
    max_seconds: float = 360_000.0  # that a file claims to last; likewise
    decoder: str = "pyav"  # pyav | decord | torchcodec: decodes the pictures; the others have to be installed
    cache_gigabytes: float = 0.0  # decoded clips that each worker keeps in memory: for sets that fit whole; 0 = none
    # video view
    num_frames: int = 8
    fps: float = 16.0
    size: int = 224  # side of the square crop in pixels
    min_crop_area: float = 0.08  # random resized crop: smallest share of the picture; 1 = whole picture
    max_crop_area: float = 1.0  # largest share of the picture
    crop_aspect: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # smallest and largest width over height
    flip: float = 0.5  # probability of a horizontal flip
    jitter: list[float] = field(default_factory=lambda: [0.4, 0.4, 0.4, 0.2])  # brightness, contrast, saturation, hue
    jitter_probability: float = 1.0  # of a clip: its colours are jittered
    grey: float = 0.0  # probability of losing the colours
    # two more probabilities, of the first clip of a video, the second, ...: the last one holds for all further clips
    blur: list[float] = field(default_factory=lambda: [0.0])  # of a Gaussian of 0.1 to 2 pixels x size / 224
    solarize: list[float] = field(default_factory=lambda: [0.0])  # of inverting what is brighter than 0.5
    # colours in [0, 1] are standardised with these, ImageNet's
    pixel_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    pixel_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    # views of patches
    patch_size: int = 64  # side in pixels of a tracked patch, or of a cell of the walk's grid
    patch_grid: int = 7  # cells per side of that grid; they overlap
    # audio view
    audio_seconds: float = 2.0
    sample_rate: int = 24000
    max_offset_seconds: float = 0.5  # how far the sound window may start before or end after the picture's
    volume_jitter: float = 0.1  # gain drawn from 1 +- this
    spectrogram: str = "avid"  # avid | log_mel
    n_fft: int = 512  # avid: half the window in samples; log_mel: the window in samples
    num_mels: int = 64  # log_mel only
    hop_seconds: float = 0.01


@dataclass
class ModelConfig:
    """The two towers. `depth` and `width` are for the AVID trunks; names stand in avssl.models.ENCODERS."""

    video: str = "r2plus1d_avid"
    audio: str = "conv2d_avid"
    video_depth: int | None = None  # null = the encoder's own: 18 of r2plus1d_avid, which also has 10
    video_width: float = 1.0  # multiplies every channel count
    audio_depth: int | None = None  # null = the encoder's own
    audio_width: float = 1.0
    video_weights: str | None = None  # file to start the encoder from; null = random weights
    audio_weights: str | None = None
    init: str | None = None  # checkpoint of an earlier run: weights, and state of the method where it fits


@dataclass
class OptimConfig:
    """Optimiser and schedule. Defaults: AVID on Kinetics-400 (Adam with coupled L2, constant rate)."""

    name: str = "adam"  # adam (coupled L2) | adamw (decoupled) | sgd | lars (layer-wise rates, for very large batches)
    lr: float = 2e-4
    weight_decay: float = 1e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9  # sgd and lars only
    schedule: str = "multistep"  # multistep | cosine
    milestones: list[int] = field(default_factory=list)  # multistep: epochs at which the rate is multiplied by gamma
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    epochs: int = 30
    accumulate: int = 1  # parts that a batch is split into
    clip_norm: float | None = None  # largest gradient norm; null = no clipping


@dataclass
class RunConfig:
    """Where the run lives and how it is executed."""

    dir: str = MISSING
    seed: int = 0
    resume: str = "auto"  # auto = continue from dir/last.pt when it exists | never
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "float32"  # float32 | bfloat16 (autocast)
    channels_last: bool = True
    compile: bool = False  # torch.compile the encoders: minutes at the start; tools/benchmarks/step.py says if it pays
    sync_batchnorm: bool = False  # needs a GPU; AVID keeps BatchNorm per rank
    num_threads: int | None = None  # torch threads of the main process on CPU; null = the cores that the workers leave
    log_every: int = 20  # steps between reports
    checkpoint_every: int = 500  # steps between checkpoints, besides the one at the end of every epoch
    max_steps: int | None = None  # stop early, as if interrupted: a later call resumes


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: dict[str, Any] = field(default_factory=lambda: {"name": "avid"})
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


NOTHING_LEFT = ("unreadable", "quarantined")  # cases in which no part of a clip can be trained on
CHOICES = {
    **{
        f"data.policy.{case.name}": ("error", "skip") if case.name in NOTHING_LEFT else ("error", "skip", "mask")
        for case in dataclasses.fields(PolicyConfig)
    },
    "data.decoder": ("pyav", "decord", "torchcodec"),
    "data.spectrogram": ("avid", "log_mel"),
    "optim.name": ("adam", "adamw", "sgd", "lars"),
    "optim.schedule": ("multistep", "cosine"),
    "run.resume": ("auto", "never"),
    "run.device": ("auto", "cpu", "cuda"),
    "run.precision": ("float32", "bfloat16"),
}
LEAST = {
    "data.clips_per_video": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.num_frames": 1,
    "data.fps": 0.01,
    "data.size": 1,
    "data.patch_size": 1,
    "data.patch_grid": 2,
    "data.max_pixels": 1,
    "optim.epochs": 1,
    "optim.accumulate": 1,
    "run.log_every": 1,
    "run.checkpoint_every": 1,
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file and apply `section.key=value` overrides, which win.

    Args:
        path: the YAML file.
        overrides: such as `["optim.lr=1e-3"]`; values are read as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown (with the near matches), a value has the wrong
            type or is not one of the choices, or a required key is not set.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist: give the path of a YAML file, such as configs/toy/avid.yaml")
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        given = OmegaConf.load(path)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config {path} cannot be read: {_yaml_problem(error, has_lines=True)}") from error
    if not OmegaConf.is_dict(given):
        raise ConfigError(f"config {path} must be a mapping of sections such as `run: {{dir: runs/x}}`, not a list")
    for override in overrides:
        try:
            given.merge_with_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            problem = _yaml_problem(error, has_lines=False)
            raise ConfigError(f"override {override!r} cannot be read: {problem}") from error
    return from_dict(OmegaConf.to_container(given), source=str(path))


def loads(text: str, *, source: str = "checkpoint") -> Config:
    """Read a configuration from YAML text, such as the one a checkpoint carries. Raises ConfigError as `load` does."""
    return from_dict(OmegaConf.to_container(OmegaConf.create(text)), source=source)


def from_dict(given: Mapping[str, Any], *, source: str) -> Config:
    """Merge plain dictionaries into the fixed sections. Raises ConfigError as `load` does."""
    method = given.get("method", {})
    if not isinstance(method, Mapping) or not isinstance(method.get("name", "avid"), str):
        raise ConfigError(f"method={method} in {source}: expected a mapping with a name, such as {{name: avid}}")
    config = merge_options(Config, given, where=source)
    for key, choices in CHOICES.items():
        value = operator.attrgetter(key)(config)
        if value not in choices:
            raise ConfigError(f"{key}={value} in {source}: expected one of {', '.join(choices)}")
    for key, least in LEAST.items():
        value = operator.attrgetter(key)(config)
        if value < least:
            raise ConfigError(f"{key}={value} in {source}: expected at least {least}")
    return config


def without_weights(config: Config) -> Config:
    """The same configuration for towers whose weights come from a checkpoint: the files that they started from need not
    exist any more."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, video_weights=None, audio_weights=None))


def dumps(config: Config) -> str:
    """The whole configuration as YAML text, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _yaml_problem(error: Exception, *, has_lines: bool) -> str:
    """What is wrong, where, and the way out, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        expected = "a text file in UTF-8 with YAML" if has_lines else "section.key=value"
        return f"{str(error).splitlines()[0]}; expected {expected}"
    place = f" in line {error.problem_mark.line + 1}" if has_lines and error.problem_mark else ""
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in (error.problem or ""):
        return f"{error.problem}{place}: write plain values, tags are not executed"
    return f"{error.problem}{place}: mend the YAML there"


def merge_options(options: type, given: Mapping[str, Any], *, where: str) -> Any:
    """Fill a dataclass from a mapping, checking names and types (nested dataclasses too).

    Args:
        options: the dataclass type.
        given: what the user wrote.
        where: named in errors, such as the file or `method avid`.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or a required key that is not set.
    """
    _reject_unknown(options, given, where, prefix="")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(options), dict(given))
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise ConfigError(f"{', '.join(sorted(missing))} not set in {where}: give it in the file or as an override")
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:
        message = str(error).split("\n")[0]
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'a value'} in {where}: {message}") from error


def _reject_unknown(options: type, given: Mapping[str, Any], where: str, prefix: str) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the file'} in {where} must be a mapping of keys, not {given!r}")
    fields = {entry.name: entry for entry in dataclasses.fields(options)}
    for key, value in given.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), list(fields), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {prefix}{key} in {where}: {hint}")
        if dataclasses.is_dataclass(fields[key].type):
            _reject_unknown(fields[key].type, value, where, prefix=f"{prefix}{key}.")
