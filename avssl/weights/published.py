"""Load published checkpoints into our encoders and heads, checked entry by entry."""

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avssl.config import DataConfig, ModelConfig
from avssl.files import digest
from avssl.models import ENCODERS, build_encoder
from avssl.models.heads import Encoder, mlp
from avssl.models.importers import check_finite, plain_names, read_checkpoint
from avssl.weights.layouts import CLIPS, LAYOUTS, EncoderLayout, Layout
from avssl.weights.load import Pretrained, pretrained_of

BY_NAME = "torchvision:"
MAX_NAMED = 3  # entries named in an error


@dataclass(frozen=True)
class Report:
    """What happened to the entries of a file, by their names there."""

    matched: list[str]
    missing: list[str]  # our names
    unexpected: list[str]
    left_out: list[str]  # known, but outside of our encoders and heads
    prefix: str = ""  # of all names of the file, beside those of its layout


@dataclass(frozen=True)
class Imported:
    """Encoders with the weights of a published checkpoint."""

    layout: str  # key of LAYOUTS
    model: ModelConfig
    data: dict[str, Any]  # options of DataConfig that differ from the defaults
    encoders: nn.ModuleDict
    heads: nn.ModuleDict
    memory: dict[str, Tensor]  # see `read_memory`
    report: Report


def convert(source: str, *, encoder: str | None = None, trust_pickle: bool = False) -> tuple[Pretrained, Imported]:
    """Read a published checkpoint: the model to export, and the report.

    Args:
        source: a file, or torchvision:NAME for weights that torchvision has downloaded.
        encoder: for video; None = the one that fits.
        trust_pickle: as for `read_checkpoint`: runs whatever code the file holds.

    Raises:
        ValueError: the file cannot be read, has no known layout, or does not fit.
    """
    if source.startswith(BY_NAME):
        if encoder:
            raise ValueError(f"{source} says which encoder it is: leave --encoder out")
        path, encoder = _downloaded(source.removeprefix(BY_NAME))
    else:
        path = Path(source)
    weights, extras = read_checkpoint(path, named=str(path), trust_pickle=trust_pickle)
    found = import_published(weights, path=str(path), encoder=encoder, extras=extras)
    facts = LAYOUTS[found.layout]
    pretrained = pretrained_of(
        found.encoders,
        found.heads,
        path=path,
        data=DataConfig(manifest="", **found.data),
        model=found.model,
        facts={
            "kind": "published",
            "layout": found.layout,
            "title": facts.title,
            "file": path.name,
            "sha256": digest(path.read_bytes(), algorithm="sha256"),
            "paper": facts.paper,
            "license": facts.license,
            "matched": len(found.report.matched),
            "left_out": found.report.left_out,
            "memory": {name: list(value.shape) for name, value in found.memory.items()},
        },
    )
    return pretrained, found


def import_published(
    weights: Mapping[str, Tensor], *, path: str, encoder: str | None = None, extras: Mapping[str, Any] | None = None
) -> Imported:
    """Fill our encoders with the entries of a published checkpoint, all of them and no others.

    Args:
        weights: by name; `module.`, `_orig_mod.` and one prefix of all names are ignored.
        path: for error messages.
        encoder: for video; None = the one that fits.
        extras: other contents of the file.

    Raises:
        ValueError: no layout or several encoders fit, or entries are missing, unknown, of another shape or with NaN.
    """
    given, prefix = plain_names(weights), ""
    try:
        layout = recognize(given, path=path)
    except ValueError:
        levels = itertools.takewhile(
            lambda level: len(set(level)) == 1, zip(*(name.split(".") for name in given), strict=False)
        )
        prefix = "".join(f"{level[0]}." for level in levels)
        given = {name.removeprefix(prefix): value for name, value in given.items()}
        layout = recognize(given, path=path)
    facts = LAYOUTS[layout]
    chosen, own, left = _sort(given, facts, encoder=encoder, path=path)
    model = ModelConfig(**chosen)
    encoders = nn.ModuleDict({modality: build_encoder(modality, model) for modality in chosen})
    heads = nn.ModuleDict(
        {each.modality: mlp([encoders[each.modality].dim, 512, 512, 128]) for each in facts.encoders if each.head}
    )
    parts = {**encoders, **{f"heads.{modality}": head for modality, head in heads.items()}}
    report, wrong = Report([], [], [], sorted(left), prefix), []
    for part, module in parts.items():
        _fill(module, part, own[part], given, report, wrong)
    used = {name for names in own.values() for name in names.values()}
    check_finite({name: given[name] for name in sorted(used)}, named=path)
    report.unexpected.extend(sorted(given.keys() - used - left))
    _refuse(report, wrong, path=path, layout=layout, encoders=chosen)
    return Imported(
        layout=layout,
        model=model,
        data=CLIPS.get(chosen["video"], {}) | facts.data,
        encoders=encoders,
        heads=heads,
        memory=read_memory(extras or {}) if layout == "avid_cma" else {},
        report=report,
    )


def recognize(names: Iterable[str], *, path: str) -> str:
    """Key of the layout with these entry names. Raises ValueError, listing the known ones."""
    names = set(names)
    for key, layout in LAYOUTS.items():
        if all(_prefix(each, layout, names) is not None for each in layout.encoders):
            return key
    known = "; ".join(f"{key} ({layout.title})" for key, layout in LAYOUTS.items())
    some = ", ".join(sorted(names)[:MAX_NAMED])
    raise ValueError(f"{path} has entries such as {some}, which are of no known layout: known are {known}")


def read_memory(extras: Mapping[str, Any]) -> dict[str, Tensor]:
    """The memory banks of an AVID-CMA checkpoint under our names: banks.{video,audio}.z (N, D), in the order of its own
    file list (not in the checkpoint), and log_z () if set.

    Source: AVID-CMA, criterions/avid.py (view1_mem, view2_mem, avg_exp_score: -1 until it is set).
    """
    criterion = extras.get("train_criterion")
    entries = criterion.items() if isinstance(criterion, dict) else ()
    banks = {"view1_mem": "banks.video.z", "view2_mem": "banks.audio.z"}
    memory = {ours: value for name, value in entries for ending, ours in banks.items() if name.endswith(ending)}
    scores = [value.float().mean() for name, value in entries if name.endswith("avg_exp_score")]
    if scores and torch.stack(scores).mean() > 0:
        memory["log_z"] = torch.stack(scores).mean().log()
    return memory


def _downloaded(name: str) -> tuple[Path, str]:
    """File of torchvision's default weights for a network, and our name of it."""
    import torchvision  # takes 2 seconds

    from avssl.models.adapters import TORCHVISION

    if name not in TORCHVISION:
        raise ValueError(f"{BY_NAME}{name}: expected one of {', '.join(TORCHVISION)}")
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.exists():
        raise ValueError(f"{BY_NAME}{name} is not in {path.parent}: nothing is downloaded here, put {url} there")
    return path, name


def _sort(
    given: Mapping[str, Tensor], facts: Layout, *, encoder: str | None, path: str
) -> tuple[dict[str, str], dict[str, dict[str, str]], set[str]]:
    """{modality: encoder}, {encoder or head: {our name: name in the file}}, and the names left out."""
    left = {name for name in given if name.startswith(facts.others) or name.endswith(facts.endings)}
    chosen: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    for each in facts.encoders:
        names = _renamed(_prefix(each, facts, given), facts, given.keys() - left)
        chosen[each.modality] = name = _best(each, names, given, wanted=encoder, path=path)
        classifier = _skeleton(name).classifier
        left |= {names.pop(ours) for ours in list(names) if classifier and ours.startswith(classifier)}
        own[each.modality] = names
        if each.head:
            own[f"heads.{each.modality}"] = _renamed(each.head, facts, given.keys() - left)
    return chosen, own, left


def _fill(
    module: nn.Module,
    part: str,
    names: Mapping[str, str],
    given: Mapping[str, Tensor],
    report: Report,
    wrong: list[str],
) -> None:
    """Load what fits into an encoder or a head, and record what does not."""
    state = module.state_dict()
    report.unexpected.extend(names[name] for name in names if name not in state)
    for name, value in state.items():
        theirs = given.get(names.get(name, ""))
        if theirs is not None and theirs.shape == value.shape:
            report.matched.append(names[name])
            state[name] = theirs
        elif theirs is not None:
            wrong.append(f"{names[name]} is {tuple(theirs.shape)}, here {tuple(value.shape)}")
        elif not name.endswith("num_batches_tracked"):  # unused here, and absent in Caffe2
            report.missing.append(f"{part}.{name}")
    module.load_state_dict(state)


@functools.cache
def _skeleton(encoder: str) -> Encoder:
    """One of ENCODERS on the meta device."""
    with torch.device("meta"):
        return ENCODERS[encoder]()


def _shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    """Shapes of an encoder's entries, by name and in order."""
    return {name: tuple(value.shape) for name, value in _skeleton(encoder).state_dict().items()}


def _renamed(prefix: str, layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """{our name: name in the file} of the entries with a prefix."""
    return {layout.rename(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)}


def _prefix(each: EncoderLayout, layout: Layout, names: Iterable[str]) -> str | None:
    """The prefix with which the first entry of a possible architecture is found; None = none."""
    firsts = {next(iter(_shapes(encoder))) for encoder in each.architectures}
    return next((prefix for prefix in each.prefixes if firsts & _renamed(prefix, layout, names).keys()), None)


def _best(
    each: EncoderLayout, names: Mapping[str, str], given: Mapping[str, Tensor], *, wanted: str | None, path: str
) -> str:
    """The architecture with most entries that fit by name and shape, or the wanted one for video."""
    if wanted is not None and each.modality == "video":
        if wanted not in each.architectures:
            raise ValueError(f"{path} is not of {wanted}: encoders of its layout are {', '.join(each.architectures)}")
        return wanted
    found = {name: tuple(given[theirs].shape) for name, theirs in names.items()}
    fitting = {name: len(_shapes(name).items() & found.items()) / len(_shapes(name)) for name in each.architectures}
    best = [name for name in each.architectures if fitting[name] == max(fitting.values())]
    if len(best) > 1:
        raise ValueError(f"{path} fits {', '.join(best)} alike: say with --encoder which of them it is")
    return best[0]


def _refuse(report: Report, wrong: list[str], *, path: str, layout: str, encoders: Mapping[str, str]) -> None:
    """Raise ValueError unless every entry was matched."""
    found = (("lacks", report.missing), ("has, and we have not,", report.unexpected), ("differs in shape:", wrong))
    problems = [
        f"{verb} {', '.join(names[:MAX_NAMED])} ({len(names)} such {'entry' if len(names) == 1 else 'entries'})"
        for verb, names in found
        if names
    ]
    if problems:
        raise ValueError(
            f"{path}, read as {layout} with {' and '.join(encoders.values())}, {'; '.join(problems)}: give the "
            "file of this network, or name another one with --encoder"
        )
