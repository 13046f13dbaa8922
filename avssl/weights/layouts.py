"""Published checkpoints: how each family names its entries, the encoders they fit, the clips they expect, paper and
license. To support another family, add an entry to LAYOUTS.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EncoderLayout:
    """How the entries of one encoder are named in a checkpoint."""

    modality: str
    prefixes: tuple[str, ...]  # one of these precedes the names
    architectures: tuple[str, ...]  # possible keys of ENCODERS
    head: str = ""  # prefix of its projection head, if compatible


@dataclass(frozen=True)
class Layout:
    """How a family of checkpoints names its entries."""

    title: str
    encoders: tuple[EncoderLayout, ...]
    paper: str
    license: str  # as the source states it
    others: tuple[str, ...] = ()  # prefixes of known entries outside of our encoders
    endings: tuple[str, ...] = ()  # and suffixes
    rename: Callable[[str], str] = str  # entry name without prefix -> ours
    data: Mapping[str, Any] = field(default_factory=dict)  # of DataConfig, where it differs from CLIPS


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
    branch, letter = found[3][0], found[3][1:]
    layer = f"branch{branch}{f'.{letter}' if letter else ''}{found[4] or ''}"
    return from_slowfast(f"s{found[1]}.pathway0_res{found[2]}.{layer}.{CAFFE2_ENTRIES[found[5]]}")


KINETICS = {"pixel_mean": [0.43216, 0.394666, 0.37645], "pixel_std": [0.22803, 0.22145, 0.216989]}  # torchvision's
GRAY = {"pixel_mean": [0.45, 0.45, 0.45], "pixel_std": [0.225, 0.225, 0.225]}  # of SlowFast, pytorchvideo, SeLaVi
# encoder: clips of its published weights, where DataConfig differs from AVID's defaults. Source: the
# documentation of torchvision's weights; frames x stride of SlowFast's and pytorchvideo's model zoos, at 30 a second.
CLIPS: dict[str, dict[str, Any]] = {
    **{name: {"num_frames": 16, "fps": 15.0, "size": 112} | KINETICS for name in ("r2plus1d_18", "r3d_18", "mc3_18")},
    "s3d": {"num_frames": 128, "fps": 15.0} | KINETICS,
    "mvit_v2_s": {"num_frames": 16, "fps": 7.5} | GRAY,
    "swin3d_t": {"num_frames": 32, "fps": 15.0},
    "x3d_xs": {"num_frames": 4, "fps": 2.5, "size": 160} | GRAY,
    "x3d_s": {"num_frames": 13, "fps": 5.0, "size": 160} | GRAY,
    "x3d_m": {"num_frames": 16, "fps": 6.0} | GRAY,
    "slow_r50": {"num_frames": 8, "fps": 3.75} | GRAY,
    "csn_r101": {"num_frames": 32, "fps": 15.0} | GRAY,
    "r2plus1d_50": {"num_frames": 16, "fps": 7.5} | GRAY,
}
SSL = (  # outside of the encoder in SlowFast's self-supervised models
    *("head.", "backbone.head.", "backbone_hist.", "queue_x", "ptr", "iter", "memory.", "knn_mem."),
    *("swav_prototypes", "queue_swav"),
)
SLOWFAST_PAPER = (
    "Feichtenhofer et al., SlowFast Networks for Video Recognition, ICCV 2019; the self-supervised ones: Feichtenhofer "
    "et al., A Large-Scale Study on Unsupervised Spatiotemporal Representation Learning, CVPR 2021"
)
LAYOUTS = {  # the first that fits; SlowFast's names are translated to pytorchvideo's
    "avid_cma": Layout(
        "AVID and AVID-CMA: both encoders, both heads, memory banks",
        (
            EncoderLayout("video", ("video_model.",), ("r2plus1d_avid",), head="video_proj."),
            EncoderLayout("audio", ("audio_model.",), ("conv2d_avid",), head="audio_proj."),
        ),
        paper="Morgado, Vasconcelos, Misra, Audio-Visual Instance Discrimination with Cross-Modal Agreement, CVPR 2021",
        license="CC BY-NC 4.0 (github.com/facebookresearch/AVID-CMA): not for commercial use",
    ),
    "gdt": Layout(
        "GDT, STiCA and SeLaVi: the video encoder",
        (EncoderLayout("video", ("video_network.base.",), ("r2plus1d_18",)),),
        # their audio encoder is a ResNet-9 over 257 log filterbanks, which no view here makes; their heads are not ours
        others=("audio_network.", "text_network.", "video_pooling.", "mlp_v", "mlp_a", "mlp_t"),
        data={"num_frames": 30, "fps": 30.0} | GRAY,
        paper="SeLaVi: Asano et al., Labelling Unlabeled Videos from Scratch with Multi-Modal Self-Supervision, "
        "NeurIPS 2020; GDT: Patrick et al., Multi-Modal Self-Supervision from Generalized Data Transformations, "
        "ICCV 2021",
        license="see LICENSE in github.com/facebookresearch/selavi and github.com/facebookresearch/GDT",
    ),
    "torchvision": Layout(
        "torchvision's video networks, and XDC's R(2+1)D-18",
        (EncoderLayout("video", ("",), ("r2plus1d_18", "r3d_18", "mc3_18", "s3d", "mvit_v2_s", "swin3d_t")),),
        paper="XDC: Alwassel et al., Self-Supervised Learning by Cross-Modal Audio-Video Clustering, NeurIPS 2020; "
        "torchvision names the paper of each of its networks",
        license="XDC: MIT; torchvision: BSD 3-Clause for the code, weights may have terms of their own",
    ),
    "pytorchvideo": Layout(
        "pytorchvideo's networks, bare or as the backbone of its BYOL and MemoryBank",
        (
            EncoderLayout(
                "video",
                ("", "backbone.", "backbone.0."),
                ("x3d_xs", "x3d_s", "x3d_m", "slow_r50", "csn_r101", "r2plus1d_50"),
            ),
        ),
        others=("backbone.1.", "backbone_mmt.", "predictor.", "mlp.", "memory"),
        paper="pytorchvideo names the paper of each of its networks",
        license="Apache 2.0 for the code of github.com/facebookresearch/pytorchvideo, which names none for the weights",
    ),
    "slowfast": Layout(
        "SlowFast: Slow R50, supervised or self-supervised (MoCo, BYOL, SimCLR, SwAV over time)",
        (EncoderLayout("video", ("", "backbone."), ("slow_r50",)),),
        others=SSL,
        rename=from_slowfast,
        paper=SLOWFAST_PAPER,
        license="Apache 2.0 for the code of github.com/facebookresearch/SlowFast, which names none for the weights",
    ),
    "caffe2": Layout(
        "SlowFast's Slow R50 from Caffe2 (.pkl)",
        (EncoderLayout("video", ("",), ("slow_r50",)),),
        others=("pred_", "lr", "model_iter"),
        endings=("_momentum",),
        rename=from_caffe2,
        paper=SLOWFAST_PAPER,
        license="Apache 2.0 for the code of github.com/facebookresearch/SlowFast, which names none for the weights",
    ),
}
