"""Views as values: what a method wants of a clip, said in one tuple. Nothing about a view is encoded in its name.

views = two_views(first={"blur": 1.0}, second={"blur": 0.1})
views = multi_crop(2, 4, small={"size": 96, "max_crop_area": 0.14})
views = (View("video"), View("audio", recipe="audio"), View("later", when=Within(1.0)))
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, ValidationInfo, create_model
from torch import Tensor

from avssl.config import DataConfig, Options, hint, merge_options
from avssl.structs import Batch
from avssl.transforms.pretext import Rotation, Tiles
from avssl.transforms.recipes import Audio, Clip, Differences, Patch, Plan, Recipe, Video, Walk, Window

RECIPES: dict[str, Recipe] = {
    "video": Video(),
    "audio": Audio(),
    "differences": Differences(),
    "patch": Patch(),
    "walk": Walk(),
    "rotation": Rotation(),
    "tiles": Tiles(),
}
CHANGEABLE = {  # what a view may change of the data section; the rest holds for a sample as a whole
    *("num_frames", "fps", "size", "min_crop_area", "max_crop_area", "crop_aspect", "flip"),
    *("jitter", "jitter_probability", "gray", "blur", "solarize", "patch_size", "patch_grid"),
    *("audio_seconds", "volume_jitter", "background", "time_mask", "band_mask"),
    *("spectrogram", "n_fft", "num_mels", "hop_seconds"),
}


ViewChanges = create_model(
    "ViewChanges",
    __base__=Options,
    **{name: (field.annotation, field) for name, field in DataConfig.model_fields.items() if name in CHANGEABLE},
)


def _read_changes(changes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    return merge_options(ViewChanges, changes, where=info.field_name).model_dump(exclude_unset=True)


Changes = Annotated[dict[str, Any], AfterValidator(_read_changes)]  # an option: what views change of the data section


@dataclass(frozen=True)
class First:
    """In the sample's own window, which frames and sound share; views of other lengths start with it."""


@dataclass(frozen=True)
class Same:
    """Where another view is, which stands before this one."""

    view: str


@dataclass(frozen=True)
class Uniform:
    """Anywhere in the track, by itself. The interval between two clips is then linearly decreasing, with density
    2 / M (1 - interval / M) over the M seconds of possible starts: CVRL's law, and SlowFast's and VINCE's draws."""


@dataclass(frozen=True)
class Within:
    """At most so many seconds from the first window (TCN)."""

    seconds: float


@dataclass(frozen=True)
class Beyond:
    """At least so many seconds from the first window; anywhere where the track is too short for that (TCN)."""

    seconds: float


@dataclass(frozen=True)
class OtherHalf:
    """In the half of the track that the first window is not in; several such views are in temporal order (SeCo)."""


@dataclass(frozen=True)
class TrackFrame:
    """A frame of a tracked patch.

    Args:
        track: which of the sample's tracks, which are drawn without replacement.
        end: which of its two frames, the earlier one (0) or the later one (1).
        table: parquet file of avssl track.
        frames: ends = the first and the last frame of the track; any = any two.
    """

    track: int
    end: Literal[0, 1]
    table: str
    frames: Literal["ends", "any"] = "ends"


@dataclass(frozen=True)
class Spread:
    """Evaluation: the sample's own window, and of `num` crops spread over the long side of the picture this one."""

    crop: int
    num: int


When = First | Same | Uniform | Within | Beyond | OtherHalf | TrackFrame | Spread


@dataclass(frozen=True)
class View:
    """What a method wants of a clip, once.

    Args:
        name: key of the view in a batch.
        recipe: how it is made, a name of RECIPES, or a recipe of its own (hashable, as a frozen dataclass is).
        when: which seconds of the clip.
        changes: fields of the data section for this view alone; kept as a sorted tuple of pairs.
    """

    name: str
    recipe: str | Recipe = "video"
    when: When = First()
    changes: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", _frozen(dict(self.changes)))

    @property
    def made(self) -> Recipe:
        """The recipe itself.

        Raises:
            ValueError: there is none of this name.
        """
        if not isinstance(self.recipe, str):
            return self.recipe
        if self.recipe not in RECIPES:
            raise ValueError(
                f"view {self.name}: recipe {self.recipe} is unknown: {hint(self.recipe, RECIPES)} A recipe of your own "
                "needs a line in RECIPES"
            )
        return RECIPES[self.recipe]

    @property
    def modality(self) -> Literal["video", "audio"]:
        return self.made.modality

    @property
    def network(self) -> str:
        """Name of the network that sees it: of the modality's encoder, unless its recipe names another one."""
        return getattr(self.made, "network", self.modality)

    def settings(self, data: DataConfig) -> DataConfig:
        """The data section as this view has it.

        Raises:
            ValueError: a change is no field that a view may change, or its value is wrong.
        """
        return _settings(self, data)

    def applied(self, data: DataConfig) -> "View":
        """The same view without changes to what the data section says already. Raises ValueError as `settings`."""
        own = self.settings(data)
        changes = {name: value for name, value in self.changes if getattr(own, name) != getattr(data, name)}
        return replace(self, changes=changes)

    def seconds(self, data: DataConfig) -> float:
        """Length of its window."""
        return self.made.seconds(self.settings(data))


@functools.cache
def _settings(view: View, data: DataConfig) -> DataConfig:
    changes = dict(view.changes)
    for name in changes.keys() - CHANGEABLE:
        raise ValueError(f"view {view.name} cannot change data.{name}: {hint(name, sorted(CHANGEABLE))}")
    return data.replace(**changes) if changes else data


def _frozen(value: Any) -> Any:
    """Tuples for dicts and lists, all the way down: what can be hashed."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, _frozen(each)) for name, each in value.items()))
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value


def clips(
    num: int, *, when: When | Sequence[When] = Uniform(), changes: Mapping[str, Any] | tuple = ()
) -> tuple[View, ...]:
    """A first clip, and num - 1 further ones of the same video: views video, video.1, video.2, ...

    Args:
        when: of the further clips, of all or of each.
        changes: of the further clips.
    """
    whens = list(when) if isinstance(when, Sequence) else [when] * (num - 1)
    further = (View(f"video.{i}", when=each, changes=changes) for i, each in enumerate(whens, 1))
    return (View("video"), *further)


def two_views(
    first: Mapping[str, Any] | tuple = (),
    second: Mapping[str, Any] | tuple = (),
    *,
    when: When | None = None,
    modality: Literal["video", "audio"] = "video",
) -> tuple[View, View]:
    """Two augmentations: views video and video.1, or audio and audio.1, of the same seconds unless `when` says
    otherwise."""
    other = View(f"{modality}.1", recipe=modality, when=when or Same(modality), changes=second)
    return View(modality, recipe=modality, changes=first), other


def multi_crop(
    num_large: int, num_small: int, *, small: Mapping[str, Any], when: When | None = None
) -> tuple[View, ...]:
    """SwAV's crops: large ones video, video.1, ..., then small.0, small.1, ... with changes; all of the same seconds
    unless `when` says otherwise of those behind the first.
    """
    when = when or Same("video")
    large = [View(f"video.{i}", when=when) for i in range(1, num_large)]
    return (View("video"), *large, *(View(f"small.{i}", when=when, changes=small) for i in range(num_small)))


def check_views(views: Sequence[View], data: DataConfig, *, evaluation: bool = False) -> None:
    """Raise ValueError for views that cannot be planned, before any worker starts."""
    rng = None if evaluation else np.random.default_rng(0)
    names: set[str] = set()
    tracked = {view.name for view in views if isinstance(view.when, TrackFrame)}
    tables = {(view.when.table, view.when.frames) for view in views if isinstance(view.when, TrackFrame)}
    if len(tables) > 1:
        raise ValueError(f"one sample shows the tracks of one table, taken in one way, but its views name {tables}")
    for view in views:
        if view.name in names:
            raise ValueError(f"two views have the name {view.name}: each needs its own")
        if isinstance(view.when, Same) and view.when.view not in names:
            raise ValueError(f"view {view.name} lies where view {view.when.view} does, which must stand before it")
        if isinstance(view.when, Same) and view.when.view in tracked:
            raise ValueError(f"view {view.name} lies where view {view.when.view} does, which is a tracked patch")
        if evaluation and not isinstance(view.when, First | Spread | Same):
            raise ValueError(f"view {view.name} is drawn at random ({view.when}), which an evaluation view may not be")
        names.add(view.name)
        if not _plan(view, data, rng).windows:
            raise ValueError(f"view {view.name}: recipe {view.recipe} plans no window, so its pixels would be black")


def _plan(view: View, data: DataConfig, rng: np.random.Generator | None) -> Plan:
    """That of a clip which lacks what the view shows."""
    own = view.settings(data)
    return view.made.plan(rng, own, Clip(own.size, own.size, video=None, audio=None), Window(0.0, present=False))


def make_example(view: View, data: DataConfig) -> Tensor:
    """A view of one clip without content, as its encoder takes it. Raises ValueError where it cannot be made."""
    plan = _plan(view, data, np.random.default_rng(0))
    dtype = torch.uint8 if view.modality == "video" else torch.float32
    params = {name: torch.as_tensor(value)[None] for name, value in plan.params.items()}
    x = view.made.apply(torch.zeros((1, *plan.shape), dtype=dtype), params, view.settings(data))
    axes = 4 if view.modality == "video" else 2 if view.settings(data).spectrogram == "none" else 3
    return x.flatten(0, -1 - axes)


def apply_views(batch: Batch, views: Sequence[View], data: DataConfig) -> Batch:
    """The batch as the encoders take it: every view's recipe applied on the batch's device.

    Returns:
        video {view: (B, 3, T, H, W)} and audio {view: (B, 1, S, F)}, float32.
    """

    def applied(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            view.name: view.made.apply(group[view.name], batch.params[view.name], view.settings(data))
            for view in views
            if view.name in group
        }

    return replace(batch, video=applied(batch.video), audio=applied(batch.audio))


def evaluate_view(name: Literal["video", "audio"], x: Tensor, data: DataConfig) -> Tensor:
    """What evaluation makes of decoded clips: the center crop, and no augmentation.

    Args:
        x: whole frames (B, T, H, W, 3) uint8 of any size, or sound (B, n) float32 in [-1, 1] at data.sample_rate, of
            at least data.audio_seconds; what is longer is left out.

    Returns:
        (B, 3, T, size, size) or (B, 1, S, F), float32.

    Raises:
        ValueError: `x` has another shape or type, or too few samples.
    """
    width, height = (x.shape[-2], x.shape[-3]) if name == "video" and x.dim() == 5 else (data.size, data.size)
    drawn = RECIPES[name].plan(None, data, Clip(width, height, None, None), Window(0.0)).params
    if name == "video" and x.dim() == 5:
        from torchvision.transforms.v2.functional import resize  # takes 2 seconds, and training does without

        top, left, rows, columns = (
            round(part * side) for part, side in zip(drawn["crop"], (height, width, height, width), strict=True)
        )
        frames = x[:, :, top : top + rows, left : left + columns].movedim(-1, 2)  # (B, T, 3, h, w)
        x = resize(frames, [data.size, data.size], antialias=True).movedim(2, -1)
    params = {key: torch.from_numpy(np.stack([value] * len(x))) for key, value in drawn.items()}
    return RECIPES[name].apply(x, params, data)
