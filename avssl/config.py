"""The configuration of a run: fixed sections, and `method`, whose options belong to the method itself.

A run is one YAML file that holds only what differs from the defaults below, plus overrides `section.key=value`:

    load("configs/toy/avid.yaml", ["optim.lr=1e-3", "method.num_negatives=256"])

Every scalar of the YAML is text until its field reads it, so that `run.dir=2026_11_29` and `data.split=01` stay words.
"""

import difflib
import functools
import os.path
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from avssl.files import did_you_mean, shipped


class ConfigError(ValueError):
    """A configuration that cannot be used: the message names the key, the value and what is expected."""


class Options(BaseModel):
    """Base of all sections and of the options of every method.

    Unknown keys, infinities, NaN and booleans in the place of numbers are refused, and text is read as the type of its
    field (1e3 is a whole number too). Choices and bounds stand at the fields, as `Literal` and `Field`.

    Raises:
        ConfigError: at construction, for anything that does not fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConfigError(_problem(type(self), given, error, where=type(self).__name__)) from None

    __init__.__pydantic_base_init__ = True  # sections within do without it, so that their errors keep the whole key

    @field_validator("*", mode="before")
    @classmethod
    def _read_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[info.field_name].default
        if isinstance(default, dict) and isinstance(value, Mapping):
            value = {**default, **value}  # only what differs from the default needs to be said
        return _with_numbers(value, _field_types(cls, info.field_name))

    def replace(self, **changes: Any) -> Self:
        """A copy with other values. Raises ConfigError as construction does."""
        return merge_options(type(self), dict(self) | changes, where=type(self).__name__)


T = TypeVar("T", bound=Options)
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # of every option that is a path: ~ is the home folder
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Area = Annotated[float, Field(gt=0, le=1)]
Policy = Literal["error", "skip", "mask"]
PolicyOfLost = Literal["error", "skip"]  # no part of such a clip can be trained on


class PolicyConfig(Options):
    """What training does with clips that lack something: error = it refuses to start, skip = they are left out, mask =
    they are trained on, and what is missing is marked. The cases are those of avssl/data/policy.py."""

    unreadable: PolicyOfLost = "skip"  # a file that cannot be read
    quarantined: PolicyOfLost = "skip"  # a file that brought a worker down
    no_video: Policy = "skip"  # sound only
    no_audio: Policy = "mask"  # no sound track
    silent: Policy = "mask"  # a sound track of digital silence
    short: Policy = "mask"  # shorter than the run's clips
    late_start: Policy = "mask"  # the video starts later than the audio
    rotated: Policy = "mask"  # turned by metadata; frames are read upright
    unequal_length: Policy = "mask"  # video and audio
    # known after avssl check --fix-manifest only
    cut_off: Policy = "mask"  # ends earlier than its header says
    damaged: Policy = "mask"  # does not decode everywhere
    jumps: Policy = "mask"  # several files joined into one
    holes: Policy = "mask"  # pauses of the whole file; clips are drawn beside them
    variable_rate: Policy = "mask"
    further_tracks: Policy = "mask"  # of video or audio, which are not read
    duplicate: Policy = "skip"  # holds what an earlier row holds


class DataConfig(Options):
    """Which clips, which seconds of them, and how each view is drawn. Defaults: the AVID recipe (Kinetics-400)."""

    manifest: PathText  # parquet of avssl scan or datasets; its rows are the instances
    root: PathText | None = None  # folder of the clips; null = the one recorded in the manifest
    split: str | None = "auto"  # rows to train on; null = every row; auto = train, or every row where none has a split
    policy: PolicyConfig = PolicyConfig()
    clips_per_video: Count = 10  # clips drawn from each video per epoch
    batch_size: Count = 256  # clips per optimizer step over all ranks and accumulated parts
    num_workers: int = Field(2, ge=0)  # decoding processes per rank; 0 = decode in the main process
    worker_timeout_seconds: Positive = 120.0  # a worker silent for longer stops the run with an error
    max_pixels: Count = 2**25  # of one stored frame (8K); a file that asks for more is refused by name
    max_seconds: Positive = 360_000.0  # that a file claims to last; likewise
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"  # of the frames; the others have to be installed
    cache_gigabytes: NotNegative = 0.0  # decoded clips that each worker keeps in memory: for sets that fit whole
    # video view
    num_frames: Count = 8
    fps: float = Field(16.0, ge=0.01)
    size: Count = 224  # side of the square crop in pixels
    min_crop_area: Area = 0.08  # random resized crop: smallest fraction of the frame; 1 = whole frame
    max_crop_area: Area = 1.0  # largest fraction of the frame
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # smallest and largest width over height
    center_crop: Area = 0.875  # evaluation: side of the centered square over the short side of the frame
    flip: Probability = 0.5  # of a horizontal flip
    # strengths of brightness, contrast, saturation, hue
    jitter: tuple[NotNegative, NotNegative, NotNegative, Annotated[float, Field(ge=0, le=0.5)]] = (0.4, 0.4, 0.4, 0.2)
    jitter_probability: Probability = 1.0  # of a clip: its colors are jittered
    gray: Probability = 0.0  # of losing the colors
    blur: Probability = 0.0  # of a Gaussian of 0.1 to 2 pixels x size / 224
    solarize: Probability = 0.0  # of inverting what is brighter than 0.5
    # colors in [0, 1] are standardized with these, ImageNet's
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    pixel_std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    # views of patches
    patch_size: Count = 64  # side in pixels of a tracked patch, or of a cell of the walk's grid
    patch_grid: int = Field(7, ge=2)  # cells per side of that grid; they overlap
    # audio view
    audio_seconds: Positive = 2.0
    sample_rate: Count = 24000
    max_offset_seconds: NotNegative = 0.5  # how far the sound window may start before or end after the video's
    volume_jitter: Share = 0.1  # gain drawn from 1 +- this
    background: Share = 0.0  # largest share of another sound of the batch in the power of a clip's; 0.4 in BYOL-A
    time_mask: Share = 0.0  # largest width of each of two masks over steps, as a share of the window (SpecAugment)
    band_mask: Share = 0.0  # likewise over the spectrogram's bands
    spectrogram: Literal["avid", "log_mel", "none"] = "avid"  # none: the samples, for encoders that take (B, 1, n)
    n_fft: Count = 512  # avid: half the window in samples; log_mel: the window in samples
    num_mels: Count = 64  # log_mel only
    hop_seconds: Positive = 0.01

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        if self.max_crop_area < self.min_crop_area:
            raise ValueError(
                f"data.max_crop_area={self.max_crop_area} must be in [data.min_crop_area, 1] = [{self.min_crop_area}, "
                "1]: 1 is usual"
            )
        if self.crop_aspect[0] > self.crop_aspect[1]:
            raise ValueError(
                f"data.crop_aspect={list(self.crop_aspect)} must be the smallest and the largest width over height: "
                "[0.75, 1.333] is usual, [1, 1] takes squares"
            )
        return self

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        if self.spectrogram == "none" and (self.time_mask or self.band_mask):
            raise ValueError("data.time_mask and data.band_mask hide stripes of a spectrogram: 0 with spectrogram=none")
        return self


class ModelConfig(Options):
    """The two encoders. `depth` and `width` are for the AVID trunks; names stand in avssl.models.ENCODERS."""

    video: str = "r2plus1d_avid"
    audio: str = "conv2d_avid"
    video_depth: Count | None = None  # null = the encoder's own: 18 of r2plus1d_avid, which also has 10
    video_width: Positive = 1.0  # multiplies every channel count
    audio_depth: Count | None = None  # null = the encoder's own
    audio_width: Positive = 1.0
    video_weights: PathText | None = None  # file to start the encoder from; null = random weights
    audio_weights: PathText | None = None
    init: PathText | None = None  # checkpoint of an earlier run: weights, and state of the method where it fits


class OptimConfig(Options):
    """Optimizer and schedule. Defaults: AVID on Kinetics-400 (Adam with coupled L2, constant rate)."""

    name: Literal["adam", "adamw", "sgd", "lars", "larc"] = "adam"  # adam couples L2, adamw decouples it
    lr: NotNegative = 2e-4
    lr_per_256: NotNegative | None = None  # instead of lr: for a batch of 256 clips, scaled with data.batch_size
    final_lr: NotNegative = 0.0  # cosine: where the rate ends
    weight_decay: NotNegative = 1e-5
    decay_norm_and_bias: bool = True  # false: parameters of one axis have no weight decay
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9  # sgd, lars and larc only
    nesterov: bool = False  # sgd only
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[
        Annotated[int, Field(ge=0)], ...
    ] = ()  # multistep: epochs at which the rate is multiplied by gamma
    gamma: NotNegative = 0.1
    warmup_epochs: NotNegative = 0.0
    epochs: Count = 30
    accumulate: Count = 1  # parts in which a batch passes the encoders, twice each: the same step in less memory
    clip_norm: Positive | None = None  # largest gradient norm; null = no clipping

    @model_validator(mode="after")
    def _check_nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("optim.nesterov=true needs optim.momentum above 0, such as 0.9")
        return self


class RunConfig(Options):
    """Where the run lives and how it is executed."""

    dir: PathText
    seed: int = Field(0, ge=0, lt=2**63)
    resume: Literal["auto", "never"] = "auto"  # auto = continue from dir/last.pt when it exists
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # bfloat16 by autocast | auto: the run's own when resumed, else bfloat16 where the device has kernels for it
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    channels_last: bool = True
    compile: bool = False  # torch.compile the encoders: minutes at the start; tools/benchmarks/step.py says if it pays
    sync_batchnorm: bool = False  # needs a GPU; AVID keeps BatchNorm per rank
    num_threads: Count | None = (
        None  # torch threads of the main process on CPU; null = the cores that the workers leave
    )
    log_every: Count = 20  # steps between reports
    checkpoint_every: Count = 500  # steps between checkpoints, besides the one at the end of every epoch
    probe_clips: int = Field(0, ge=0)  # labeled clips of split val that neighbors name after each epoch; 0 = none
    # besides log.jsonl; wandb and mlflow have to be installed
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    max_steps: Count | None = None  # stop there, on every call: raise it to go on


class Config(Options):
    data: DataConfig
    model: ModelConfig = ModelConfig()
    method: dict[str, Any] = {"name": "avid"}  # name and options as text, which the method's own Options read
    optim: OptimConfig = OptimConfig()
    run: RunConfig

    @field_validator("method")
    @classmethod
    def _as_text(cls, method: dict[str, Any]) -> dict[str, Any]:
        try:
            return yaml.load(yaml.safe_dump({"name": "avid", **method}, sort_keys=False), _TextLoader)
        except yaml.YAMLError:
            raise ValueError(f"method={method}: expected text, numbers, lists and mappings only") from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file and apply `section.key=value` overrides, which win.

    Args:
        path: the YAML file, or the name of one that comes with avssl, such as toy/avid.
        overrides: such as `["optim.lr=1e-3"]`; values are read as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown (with the near matches), a value has the wrong
            type or is not one of the choices, or a required key is not set.
    """
    path = find_config(path)
    source = f"{path} or the overrides" if overrides else str(path)
    return from_dict(with_overrides(read_sections(path), overrides), source=source)


def find_config(path: str | Path) -> Path:
    """The file at a path, or that of a name such as toy/avid: in the wheel, or beside the package in a checkout."""
    path, name = Path(path), Path(str(path).removeprefix("configs/"))
    name = name if name.suffix else name.with_suffix(".yaml")
    known = (path, shipped("configs") / name)
    return next((file for file in known if file.is_file() and not name.is_absolute()), path)


def loads(text: str, *, source: str = "checkpoint") -> Config:
    """Read a configuration from YAML text, such as the one a checkpoint carries. Raises ConfigError as `load` does."""
    return from_dict(_sections(text, source), source=source)


def from_dict(given: Mapping[str, Any], *, source: str) -> Config:
    """Merge plain dictionaries into the fixed sections. Raises ConfigError as `load` does."""
    method = given.get("method", {})
    if not isinstance(method, Mapping) or not isinstance(method.get("name", "avid"), str):
        raise ConfigError(f"method={shown(method)} in {source}: expected a mapping with a name, such as {{name: avid}}")
    return merge_options(Config, {"data": {}, "run": {}, **given}, where=source)


def dumps(config: Config) -> str:
    """The whole configuration as YAML text, defaults included; `loads` reads it back equal."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def without_weights(config: Config) -> Config:
    """The same configuration for encoders whose weights come from a checkpoint: the files that they started from need
    not exist any more."""
    return config.replace(model=config.model.replace(video_weights=None, audio_weights=None))


def merge_options(options: type[T], given: Mapping[str, Any], *, where: str) -> T:
    """Fill options from a mapping, checking names, types, choices and bounds (sections within too).

    Args:
        options: the type.
        given: what the user wrote.
        where: named in errors, such as the file or `method avid`.

    Raises:
        ConfigError: an unknown key, a value that does not fit, or a required key that is not set.
    """
    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(_problem(options, given, error, where=where)) from None


def read_sections(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, every scalar as text, over those of the file that its key `base` names: a path from
    the file's own folder. Options of another method than the base's replace the base's. Raises ConfigError as `load`
    does, and where files are the base of one another."""
    path, chain, seen = Path(path), [], set()
    while True:
        sections = _sections(_read_text(path), f"config {path}")
        base = sections.pop("base", None)
        chain.append(sections)
        seen.add(path.resolve())
        if base is None:
            break
        if not isinstance(base, str) or (path.parent / base).resolve() in seen:
            raise ConfigError(f"base={shown(base)} in config {path}: expected the path of another YAML file")
        path = path.parent / base
    found = chain.pop()
    for sections in reversed(chain):
        found = merge(_without_other_method(found, sections), sections)
    return found


def _read_text(path: Path) -> str:
    if not path.is_file():
        home = shipped("configs")
        names = [each.relative_to(home).with_suffix("").as_posix() for each in home.rglob("*.yaml")]
        near = difflib.get_close_matches(str(path), names, n=1)
        hint = f"did you mean {near[0]}? " if near else did_you_mean(path)
        raise ConfigError(
            f"config {path} does not exist: {hint}give the path of a YAML file, or a name such as toy/avid"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}; expected a text file in UTF-8 with YAML") from error


def _without_other_method(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` without its method, where `above` has one of another name."""
    names = [each["method"].get("name") if isinstance(each.get("method"), Mapping) else None for each in (below, above)]
    is_other = names[1] is not None and names[0] != names[1]
    return {key: value for key, value in below.items() if key != "method" or not is_other}


def with_overrides(sections: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sections with `section.key=value` applied, and `section={key: value}`, which replaces the section. Raises
    ConfigError where one cannot be read."""
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.split(".")
        if not (equals and all(names)):
            raise ConfigError(f"override {override!r} is not of the form section.key=value")
        is_word = "#" in text and text[:1] not in tuple("'\"[{")  # which YAML would cut off there
        value = text if is_word else _parse(text, f"override {override!r}", has_lines=False)
        for name in reversed(names):
            value = {name: value}
        if len(names) == 1:
            sections = {**sections, **value}
        else:
            sections = merge(sections, value)
    return dict(sections)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """`base` with the values of `changes`, mapping by mapping. Raises ConfigError for keys below a plain value."""
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and before is not None:
            if not isinstance(before, Mapping):
                raise ConfigError(
                    f"{prefix}{key}.{next(iter(value), '')}: {prefix}{key}={shown(before)} is no mapping of keys; set "
                    f"{prefix}{key} itself"
                )
            value = merge(before, value, prefix=f"{prefix}{key}.")
        merged[key] = value
    return merged


class _TextLoader(yaml.SafeLoader):
    """Every scalar is text, but for null, ~ and nothing at all; a key twice is an error."""

    yaml_implicit_resolvers: ClassVar = {
        first: [pair for pair in pairs if pair[0] == "tag:yaml.org,2002:null"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"found duplicate key {key.value}"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _sections(text: str, what: str) -> dict[str, Any]:
    sections = _parse(text, what, has_lines=True)
    if sections is None:
        return {}
    if not isinstance(sections, dict):
        raise ConfigError(f"{what} must be a mapping of sections such as `run: {{dir: runs/x}}`, not {shown(sections)}")
    return sections


def _parse(text: str, what: str, *, has_lines: bool) -> Any:
    try:
        return yaml.load(text, _TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be read: {_yaml_problem(error, has_lines=has_lines)}") from error


def _yaml_problem(error: Exception, *, has_lines: bool) -> str:
    """What is wrong, where, and the fix, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        expected = "a text file in UTF-8 with YAML" if has_lines else "section.key=value"
        return f"{str(error).splitlines()[0]}; expected {expected}"
    place = f" in line {error.problem_mark.line + 1}" if has_lines and error.problem_mark else ""
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in (error.problem or ""):
        return f"{error.problem}{place}: write plain values, tags are not executed"
    return f"{error.problem}{place}: fix the YAML there"


@functools.cache
def _field_types(section: type[Options], name: str) -> set[Any]:
    return _leaf_types(section.model_fields[name].annotation)


def _leaf_types(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    match get_origin(annotation), get_args(annotation):
        case (origin, _) if origin is Literal:
            return {str}
        case (origin, inner) if origin is Annotated:
            return _leaf_types(inner[0])
        case (None, _):
            return {annotation}
        case (_, inner):
            return set().union(*map(_leaf_types, inner))


def _with_numbers(value: Any, types: set[Any]) -> Any:
    """Whole numbers written as 1e3 as such, and booleans in the place of numbers as text, which is none."""
    if isinstance(value, list | tuple):
        return [_with_numbers(each, types) for each in value]
    if isinstance(value, bool) and types & {int, float} and bool not in types:
        return shown(value)
    if isinstance(value, str) and int in types:
        try:
            return int(float(value)) if not value.strip("+-").isdigit() and float(value).is_integer() else value
        except ValueError:
            return value
    return value


def _problem(options: type[Options], given: Mapping[str, Any], error: ValidationError, *, where: str) -> str:
    """The first thing that is wrong, in one sentence: key, value, source, what is expected."""
    errors = error.errors(include_url=False)
    wrong = [each for each in errors if each["type"] != "missing" or isinstance(each["loc"][-1], int)]
    if not wrong:
        missing = sorted(".".join(map(str, each["loc"])) for each in errors)
        return f"{', '.join(missing)} not set in {where}: give it in the file or as an override"
    unknown = [each for each in wrong if each["type"] in ("extra_forbidden", "invalid_key")]
    first = (unknown or wrong)[0]
    if first["type"] == "value_error":  # a check across fields, which says it all
        return f"{where}: {first['ctx']['error']}"
    key, value, section = "", given, options
    for name in first["loc"]:
        key, value, field = f"{key}.{name}".lstrip("."), value.get(name), section.model_fields.get(name)
        if field is None:
            return f"unknown key {key} in {where}: {_hint_of_key(str(name), section, options)}"
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Options)):
            break
        section = field.annotation
    else:
        return f"{key} in {where} must be a mapping of keys, not {shown(value)}"
    is_number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
    expected = expected_of(field.annotation, field.metadata) + (f", such as {field.default}" if is_number else "")
    if first["type"] == "finite_number":
        expected = expected.replace("number", "finite number")
    return f"{key}={shown(value)} in {where}: expected {expected}"


def hint(name: str, known: Collection[str], what: str = "known") -> str:
    """What somebody may have meant who wrote a name that is not known: the near ones, or else all of them."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"{what}: {', '.join(known)}"


def _hint_of_key(name: str, section: type[Options], options: type[Options]) -> str:
    keys = _keys(options)
    elsewhere = difflib.get_close_matches(name, keys, cutoff=0.75 if section is Config else 1.0)
    near = [] if name in keys else difflib.get_close_matches(name, section.model_fields)
    near = near or [keys[each] for each in elsewhere[:1]]
    if near:
        return f"did you mean {' or '.join(near)}?"
    of_method = f"; an option of the method is method.{name}" if section is Config else ""
    return f"known keys: {', '.join(section.model_fields)}{of_method}"


def _keys(section: type[Options], prefix: str = "") -> dict[str, str]:
    """{name: whole key} of a section and of those within."""
    found = {name: f"{prefix}{name}" for name in section.model_fields}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            found = _keys(field.annotation, f"{prefix}{name}.") | found
    return found


def expected_of(annotation: Any, limits: Sequence[Any] = ()) -> str:
    """What an annotation admits, for a person."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected_of(inner[0], [limit for each in inner[1:] for limit in getattr(each, "metadata", ())])
    if origin in (Union, UnionType):
        return f"{expected_of(next(each for each in inner if each is not NoneType), limits)} or null"
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        parts = [expected_of(each) for each in inner if each is not Ellipsis]
        count = len(inner) if Ellipsis not in inner else "one or more" if limits else "any length"
        return f"a list of {count}" + (f", each {parts[0]}" if len(set(parts)) == 1 else f": {', '.join(parts)}")
    if annotation not in (int, float):
        return {bool: "true or false", str: "text"}.get(annotation, "a mapping of keys")
    bound = {
        name: getattr(limit, name) for limit in limits for name in ("gt", "ge", "lt", "le") if hasattr(limit, name)
    }
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most"}
    noun = "a whole number" if annotation is int else "a number"
    if bound.keys() == {"ge", "le"}:
        return f"{noun} from {bound['ge']} to {bound['le']}"
    return f"{noun} {' and '.join(f'{words[name]} {value}' for name, value in bound.items())}".strip()


def shown(value: Any) -> str:
    """A value as YAML has it, in one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(map(shown, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{key}: {shown(each)}' for key, each in value.items())}}}"
    return str(value)
