"""Published checkpoints: how each family names its entries, which encoders they fit, and which clips they expect.

What lives here: these facts, and the comparison with our encoders, entry by entry. What does not: reading a file
(importers.py), writing what was found (avssl/pretrained.py).
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avssl.config import ModelConfig
from avssl.models import ENCODERS, build_encoder
from avssl.models.heads import Encoder, ProjectionHead


@dataclass(frozen=True)
class Tower:
    """Where the entries of one encoder stand in a checkpoint."""

    modality: str
    prefixes: tuple[str, ...]  # one of these stands before the names
    encoders: tuple[str, ...]  # keys of ENCODERS: it is one of these
    head: str = ""  # what stands before the names of its projection head, where that is like ours


@dataclass(frozen=True)
class Layout:
    """How a family of checkpoints names its entries."""

    title: str
    towers: tuple[Tower, ...]
    others: tuple[str, ...] = ()  # how the names of known entries that are no part of our encoders begin
    rename: Callable[[str], str] = str  # its name of an entry, without prefix -> ours
    data: Mapping[str, Any] = field(default_factory=dict)  # of DataConfig, where it differs from CLIPS
    paper: str = "the paper of the file's model"
    licence: str = "the licence of the file's source holds"


SLOWFAST_LAYERS = {"conv": "conv", "bn": "norm", "branch1": "branch1_conv", "branch1_bn": "branch1_norm"} | {
    f"branch2.{layer}{theirs}": f"branch2.{ours}_{layer}"
    for layer in "abc"
    for theirs, ours in (("", "conv"), ("_bn", "norm"))
}
CAFFE2_ENTRIES = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


def from_slowfast(name: str) -> str:
    """SlowFast's name of an entry of a Slow network -> pytorchvideo's: s2.pathway0_res0.branch2.a_bn.bias ->
    blocks.1.res_blocks.0.branch2.norm_a.bias. Other names stay.

    Source: SlowFast, models/stem_helper.py and resnet_helper.py; pytorchvideo, models/resnet.py.
    """
    found = re.fullmatch(r"s([1-5])\.pathway0_(?:stem|res(\d+))\.(.+)\.(\w+)", name)
    if found is None or found[3] not in SLOWFAST_LAYERS:
        return name
    block = "" if found[2] is None else f"res_blocks.{found[2]}."
    return f"blocks.{int(found[1]) - 1}.{block}{SLOWFAST_LAYERS[found[3]]}.{found[4]}"


def from_caffe2(name: str) -> str:
    """The name of a blob of a Slow network in Caffe2 -> pytorchvideo's: res2_0_branch2a_bn_b ->
    blocks.1.res_blocks.0.branch2.norm_a.bias. Other names stay.

    Source: SlowFast, utils/c2_model_loading.py.
    """
    found = re.fullmatch(r"(?:res_)?conv1(_bn)?_(w|s|b|rm|riv)", name)
    if found is not None:
        return from_slowfast(f"s1.pathway0_stem.{'bn' if found[1] else 'conv'}.{CAFFE2_ENTRIES[found[2]]}")
    found = re.fullmatch(r"res([2-5])_(\d+)_branch(1|2[abc])(_bn)?_(w|s|b|rm|riv)", name)
    if found is None:
        return name
    layer = f"{'.'.join(found[3]).replace('1', 'branch1').replace('2', 'branch2')}{found[4] or ''}"
    return from_slowfast(f"s{found[1]}.pathway0_res{found[2]}.{layer}.{CAFFE2_ENTRIES[found[5]]}")


KINETICS = {"pixel_mean": [0.43216, 0.394666, 0.37645], "pixel_std": [0.22803, 0.22145, 0.216989]}  # torchvision's
GREY = {"pixel_mean": [0.45, 0.45, 0.45], "pixel_std": [0.225, 0.225, 0.225]}  # of SlowFast, pytorchvideo, SeLaVi
CLIPS: dict[str, dict[str, Any]] = {  # encoder: what its published weights were made for; AVID's are the defaults
    **{name: {"num_frames": 16, "fps": 15.0, "size": 112} | KINETICS for name in ("r2plus1d_18", "r3d_18", "mc3_18")},
    "s3d": {"num_frames": 128, "fps": 15.0} | KINETICS,
    "mvit_v2_s": {"num_frames": 16, "fps": 7.5} | GREY,
    "swin3d_t": {"num_frames": 32, "fps": 15.0},
    "x3d_xs": {"num_frames": 4, "fps": 2.5, "size": 160} | GREY,
    "x3d_s": {"num_frames": 13, "fps": 5.0, "size": 160} | GREY,
    "x3d_m": {"num_frames": 16, "fps": 6.0} | GREY,
    "slow_r50": {"num_frames": 8, "fps": 3.75} | GREY,
    "csn_r101": {"num_frames": 32, "fps": 15.0} | GREY,
    "r2plus1d_50": {"num_frames": 16, "fps": 7.5} | GREY,
}
SSL = (  # beside the trunk in SlowFast's self-supervised models
    *("head.", "backbone.head.", "backbone_hist.", "queue_x", "ptr", "iter", "memory.", "knn_mem."),
    *("swav_prototypes", "queue_swav"),
)
SLOWFAST_PAPER = (
    "Feichtenhofer et al., SlowFast Networks for Video Recognition, ICCV 2019; the self-supervised ones: Feichtenhofer "
    "et al., A Large-Scale Study on Unsupervised Spatiotemporal Representation Learning, CVPR 2021"
)
LAYOUTS = {  # a file is of the first one that fits; pytorchvideo's names are what SlowFast's are turned into
    "avid_cma": Layout(
        "AVID and AVID-CMA: both towers, both heads, memories",
        (
            Tower("video", ("video_model.",), ("r2plus1d_avid",), head="video_proj."),
            Tower("audio", ("audio_model.",), ("conv2d_avid",), head="audio_proj."),
        ),
        paper="Morgado, Vasconcelos, Misra, Audio-Visual Instance Discrimination with Cross-Modal Agreement, CVPR 2021",
        licence="CC BY-NC 4.0 (github.com/facebookresearch/AVID-CMA): not for commercial use",
    ),
    "gdt": Layout(
        "GDT, STiCA and SeLaVi: the video tower",
        (Tower("video", ("video_network.base.",), ("r2plus1d_18",)),),
        # their audio tower is a ResNet-9 over 257 log filterbanks, which no view here makes; their heads are not ours
        others=("audio_network.", "text_network.", "video_pooling.", "mlp_v", "mlp_a", "mlp_t"),
        data={"num_frames": 30, "fps": 30.0} | GREY,
        paper="SeLaVi: Asano et al., Labelling Unlabelled Videos from Scratch with Multi-Modal Self-Supervision, "
        "NeurIPS 2020; GDT: Patrick et al., Multi-Modal Self-Supervision from Generalized Data Transformations, "
        "ICCV 2021",
        licence="see LICENSE in github.com/facebookresearch/selavi and github.com/facebookresearch/GDT",
    ),
    "torchvision": Layout(
        "torchvision's video networks, and XDC's R(2+1)D-18",
        (Tower("video", ("",), ("r2plus1d_18", "r3d_18", "mc3_18", "s3d", "mvit_v2_s", "swin3d_t")),),
        paper="XDC: Alwassel et al., Self-Supervised Learning by Cross-Modal Audio-Video Clustering, NeurIPS 2020; "
        "torchvision names the paper of each of its networks",
        licence="XDC: MIT; torchvision: BSD 3-Clause for the code, weights may have terms of their own",
    ),
    "pytorchvideo": Layout(
        "pytorchvideo's networks, bare or as the backbone of its BYOL and MemoryBank",
        (
            Tower(
                "video",
                ("", "backbone.", "backbone.0."),
                ("x3d_xs", "x3d_s", "x3d_m", "slow_r50", "csn_r101", "r2plus1d_50"),
            ),
        ),
        others=("backbone.1.", "backbone_mmt.", "predictor.", "mlp.", "memory"),
        paper="pytorchvideo names the paper of each of its networks",
        licence="Apache 2.0 for the code of github.com/facebookresearch/pytorchvideo, which names none for the weights",
    ),
    "slowfast": Layout(
        "SlowFast: Slow R50, supervised or self-supervised (MoCo, BYOL, SimCLR, SwAV over time)",
        (Tower("video", ("", "backbone."), ("slow_r50",)),),
        others=SSL,
        rename=from_slowfast,
        paper=SLOWFAST_PAPER,
        licence="Apache 2.0 for the code of github.com/facebookresearch/SlowFast, which names none for the weights",
    ),
    "caffe2": Layout(
        "SlowFast's Slow R50 from Caffe2 (.pkl)",
        (Tower("video", ("",), ("slow_r50",)),),
        others=("pred_", "lr", "model_iter"),
        rename=from_caffe2,
        paper=SLOWFAST_PAPER,
        licence="Apache 2.0 for the code of github.com/facebookresearch/SlowFast, which names none for the weights",
    ),
}
MAX_NAMED = 3  # entries named in an error


@dataclass(frozen=True)
class Report:
    """What became of the entries of a file, by the names that they have there."""

    matched: list[str]
    missing: list[str]  # names of our encoders that the file has not
    unexpected: list[str]
    left_out: list[str]  # known, but no part of our encoders and heads


@dataclass(frozen=True)
class Imported:
    """The towers of a published checkpoint with its weights."""

    layout: str  # key of LAYOUTS
    model: ModelConfig
    data: dict[str, Any]  # of DataConfig, where it differs from the defaults: the clips that it was made for
    encoders: nn.ModuleDict
    heads: nn.ModuleDict
    memory: dict[str, Tensor]  # see `read_memory`
    report: Report


def import_published(
    weights: Mapping[str, Tensor],
    *,
    path: str,
    layout: str | None = None,
    encoder: str | None = None,
    extras: Mapping[str, Any] | None = None,
) -> Imported:
    """Fill our encoders with the entries of a published checkpoint: each of them, and no other.

    Args:
        weights: by name, without wrapper; a leading `module.` is passed over.
        path: named in errors.
        layout: key of LAYOUTS; None = the one that fits.
        encoder: of the video tower; None = the one that fits.
        extras: what lay beside the weights in the file.

    Raises:
        ValueError: no layout or more than one encoder fits, or entries are missing, unknown or of another shape.
    """
    given = {name.removeprefix("module."): value for name, value in weights.items()}
    layout = layout or recognise(given, path=path)
    facts = LAYOUTS[layout]
    chosen, own, left = _sort(given, facts, encoder=encoder, path=path)
    model = ModelConfig(**chosen)
    encoders = nn.ModuleDict({modality: build_encoder(modality, model) for modality in chosen})
    heads = nn.ModuleDict(
        {tower.modality: ProjectionHead(encoders[tower.modality].dim) for tower in facts.towers if tower.head}
    )
    parts = {**encoders, **{f"heads.{modality}": head for modality, head in heads.items()}}
    report, wrong = Report([], [], [], sorted(left)), []
    for part, module in parts.items():
        _fill(module, part, own[part], given, report, wrong)
    used = {name for names in own.values() for name in names.values()}
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


def recognise(names: Iterable[str], *, path: str) -> str:
    """The layout that entries of these names are of. Raises ValueError where there is none, with the known ones."""
    names = set(names)
    for key, layout in LAYOUTS.items():
        if all(_prefix(tower, layout, names) is not None for tower in layout.towers):
            return key
    known = "; ".join(f"{key} ({layout.title})" for key, layout in LAYOUTS.items())
    some = ", ".join(sorted(names)[:MAX_NAMED])
    raise ValueError(f"{path} has entries such as {some}, which are of no known layout: known are {known}")


def read_memory(extras: Mapping[str, Any]) -> dict[str, Tensor]:
    """The memories of an AVID-CMA checkpoint, under the names that AVID's buffers have here: banks.{video,audio}.z
    (N, D) in the order of its own list of files, which it does not hold, and log_z () where it is set.

    Source: AVID-CMA, criterions/avid.py (view1_mem, view2_mem, avg_exp_score: -1 until it is set).
    """
    criterion = extras.get("train_criterion")
    criterion = criterion if isinstance(criterion, dict) else {}
    memory = {}
    for name, value in criterion.items():
        for ending, ours in (("view1_mem", "banks.video.z"), ("view2_mem", "banks.audio.z")):
            if name.endswith(ending):
                memory[ours] = value
    scores = [value.float().mean() for name, value in criterion.items() if name.endswith("avg_exp_score")]
    if scores and torch.stack(scores).mean() > 0:
        memory["log_z"] = torch.stack(scores).mean().log()
    return memory


def _sort(
    given: Mapping[str, Tensor], facts: Layout, *, encoder: str | None, path: str
) -> tuple[dict[str, str], dict[str, dict[str, str]], set[str]]:
    """Which encoder each tower is of, {encoder or head: {our name: name in the file}}, and what is left out."""
    left = {name for name in given if name.startswith(facts.others) or name.endswith("_momentum")}
    chosen: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    for tower in facts.towers:
        names = _renamed(_prefix(tower, facts, given) or tower.prefixes[0], facts, given.keys() - left)
        chosen[tower.modality] = name = _best(tower, names, given, wanted=encoder, path=path)
        classifier = _skeleton(name).classifier
        left |= {names.pop(ours) for ours in list(names) if classifier and ours.startswith(classifier)}
        own[tower.modality] = names
        if tower.head:
            own[f"heads.{tower.modality}"] = _renamed(tower.head, facts, given.keys() - left)
    return chosen, own, left


def _fill(
    module: nn.Module,
    part: str,
    names: Mapping[str, str],
    given: Mapping[str, Tensor],
    report: Report,
    wrong: list[str],
) -> None:
    """Load what fits into an encoder or a head, and write down what does not."""
    state = module.state_dict()
    report.unexpected.extend(names[name] for name in names if name not in state)
    for name, value in state.items():
        theirs = given.get(names.get(name, ""))
        if theirs is not None and theirs.shape == value.shape:
            report.matched.append(names[name])
            state[name] = theirs
        elif theirs is not None:
            wrong.append(f"{names[name]} is {tuple(theirs.shape)}, here {tuple(value.shape)}")
        elif not name.endswith("num_batches_tracked"):  # a count that nothing here reads, and Caffe2 has not
            report.missing.append(f"{part}.{name}")
    module.load_state_dict(state)


@functools.cache
def _skeleton(encoder: str) -> Encoder:
    """One of ENCODERS without memory behind its entries."""
    with torch.device("meta"):
        return ENCODERS[encoder]()


def _shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    """Shapes of an encoder's entries, by name and in order."""
    return {name: tuple(value.shape) for name, value in _skeleton(encoder).state_dict().items()}


def _renamed(prefix: str, layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """{our name: name in the file} of what stands behind a prefix."""
    return {layout.rename(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)}


def _prefix(tower: Tower, layout: Layout, names: Iterable[str]) -> str | None:
    """The prefix behind which the first entry of one of the tower's encoders stands; None = behind none."""
    firsts = {next(iter(_shapes(encoder))) for encoder in tower.encoders}
    return next((prefix for prefix in tower.prefixes if firsts & _renamed(prefix, layout, names).keys()), None)


def _best(tower: Tower, names: Mapping[str, str], given: Mapping[str, Tensor], *, wanted: str | None, path: str) -> str:
    """The encoder of which most entries fit, by name and shape, or the wanted one of the video tower."""
    if wanted is not None and tower.modality == "video":
        if wanted not in tower.encoders:
            raise ValueError(f"{path} is not of {wanted}: encoders of its layout are {', '.join(tower.encoders)}")
        return wanted
    found = {name: tuple(given[theirs].shape) for name, theirs in names.items()}
    fitting = {name: len(_shapes(name).items() & found.items()) / len(_shapes(name)) for name in tower.encoders}
    best = [name for name in tower.encoders if fitting[name] == max(fitting.values())]
    if len(best) > 1:
        raise ValueError(f"{path} fits {', '.join(best)} alike: say with --encoder which of them it is")
    return best[0]


def _refuse(report: Report, wrong: list[str], *, path: str, layout: str, encoders: Mapping[str, str]) -> None:
    """Raise ValueError unless every entry found its place."""
    found = (("lacks", report.missing), ("has, and we have not,", report.unexpected), ("differs in shape:", wrong))
    problems = [
        f"{verb} {', '.join(names[:MAX_NAMED])} ({len(names)} such {'entry' if len(names) == 1 else 'entries'})"
        for verb, names in found
        if names
    ]
    if problems:
        raise ValueError(
            f"{path}, read as {layout} with {' and '.join(encoders.values())}, {'; '.join(problems)}: name another "
            "--layout or --encoder, or give the file of this network"
        )
