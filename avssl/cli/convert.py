"""Convert a run or a published checkpoint to a folder of weights that `avssl.load` reads.

    avssl convert runs/mine/avid --to weights/mine
    avssl convert checkpoint.pth.tar --to weights/avid
    avssl convert torchvision:r2plus1d_18 --to weights/r2plus1d_18 --onnx
    avssl convert runs/mine/avid --to weights/mine --push me/my-encoders

Published: AVID-CMA, GDT, SeLaVi, XDC, SlowFast's Slow R50 (self-supervised too), torchvision, pytorchvideo. The layout
is recognized; an unknown one, or an entry that does not fit, is an error (docs/weights.md). Nothing is downloaded:
torchvision:NAME is read from torchvision's cache.
Exit code: 0 done, 1 an ONNX file differs from torch (none is kept), 2 wrong call.
"""

import argparse
from os.path import expanduser
from pathlib import Path
from typing import Any

from avssl.cli.common import add_json, new_parser, run
from avssl.files import print_result
from avssl.training.checkpoint import LAST
from avssl.weights.export import export
from avssl.weights.hub import push_to_hub
from avssl.weights.load import load
from avssl.weights.onnx import OnnxError, export_onnx
from avssl.weights.published import convert


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("source", type=expanduser, help="folder of a run, file of a checkpoint, or torchvision:NAME")
    parser.add_argument("--to", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--encoder", help="video encoder of a published checkpoint (default: the one that fits)")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read an old pickle, which RUNS WHATEVER CODE IS IN THE FILE"
    )
    parser.add_argument("--onnx", action="store_true", help="write the encoders as ONNX too, checked against torch")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload the folder to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="with --push: only for those whom you let in")
    add_json(parser)
    return run(_convert, parser.parse_args(arguments), failures=(OnnxError,))


def _convert(given: argparse.Namespace) -> int:
    result = _export(given)
    if given.onnx:
        result["onnx"] = export_onnx(load(given.to), given.to)
    if given.push:
        result["pushed"] = push_to_hub(given.to, given.push, private=given.private)
    print_result(result, _format_result(result), to=given.json)
    return 0


def _export(given: argparse.Namespace) -> dict[str, Any]:
    """Write the folder and describe it."""
    path = Path(given.source)
    if path.is_dir() or path.name == LAST:
        if given.encoder or given.trust_pickle:
            raise ValueError(f"{path} is a run: --encoder and --trust-pickle are for published checkpoints")
        pretrained, source = load(path), {}
        export(pretrained, given.to)
    else:
        pretrained, found = convert(given.source, encoder=given.encoder, trust_pickle=given.trust_pickle)
        source = {"layout": found.layout, **vars(found.report), "memory": pretrained.facts["memory"]}
        export(pretrained, given.to, memory=found.memory)
    encoders = {modality: getattr(pretrained.model, modality) for modality in pretrained.encoders}
    return {"to": str(given.to), "encoders": encoders, "weights_hash": pretrained.weights_hash, **source}


def _format_result(result: dict[str, Any]) -> str:
    encoders = " and ".join(f"{name} ({modality})" for modality, name in result["encoders"].items())
    lines = [f"{encoders} -> {result['to']}"]
    if "layout" in result:
        lines.append(
            f"{result['layout']}: {len(result['matched'])} entries matched, {len(result['missing'])} missing, "
            f"{len(result['unexpected'])} unexpected, {len(result['left_out'])} known ones left out"
        )
        lines += [f"every name begins with {result['prefix']}, which is left out"] if result["prefix"] else []
        prefixes = sorted({name.split(".")[0] for name in result["left_out"]})
        lines += [f"left out: {', '.join(prefixes)}"] if prefixes else []
        lines += [f"memory.safetensors: {', '.join(result['memory'])}"] if result["memory"] else []
    lines += [
        f"{modality}.onnx differs from torch by {difference:.1e} of the largest output"
        for modality, difference in result.get("onnx", {}).items()
    ]
    lines += [f"uploaded: {result['pushed']}"] if "pushed" in result else []
    return "\n".join(lines)
