"""Export encoders as ONNX files, each verified against torch.

Needs the extra [onnx]: pip install 'avssl[onnx]'.
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from avssl.files import atomic_write
from avssl.weights.load import Pretrained

TOLERANCE = 1e-3  # largest difference from torch, relative to the largest output


class OnnxError(ValueError):
    """An encoder that cannot be exported, or whose ONNX features differ from torch's."""


def export_onnx(pretrained: Pretrained, folder: str | Path) -> dict[str, float]:
    """Write video.onnx and audio.onnx: input `clips` (B, ...) as from `Pretrained.transform`; output `features`.

    Returns:
        {modality: largest difference from torch on random clips, relative to the largest output}.

    Raises:
        OnnxError: torch cannot export an encoder, or onnxruntime differs by more than TOLERANCE; its file is removed.
        ValueError: the extra is not installed. WriteError: the folder cannot be written to.
    """
    folder, differences = Path(folder), {}
    for modality, encoder in pretrained.encoders.items():
        with atomic_write(folder / f"{modality}.onnx") as temporary:
            differences[modality] = difference = _export(encoder, _some_clips(pretrained, modality), temporary)
            if not difference <= TOLERANCE:
                raise OnnxError(
                    f"the {modality} encoder differs by {difference:.1e} of its largest output in onnxruntime, at most "
                    f"{TOLERANCE:g} is expected: no {modality}.onnx was written"
                )
    return differences


def _some_clips(pretrained: Pretrained, modality: str) -> torch.Tensor:
    """Two random clips as the encoder takes them."""
    data, generator = pretrained.data, torch.Generator().manual_seed(0)
    if modality == "video":
        shape = (2, data.num_frames, data.size, data.size, 3)
        x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        x = torch.rand(2, round(data.audio_seconds * data.sample_rate), generator=generator) - 0.5
    return pretrained.transform(modality, x)


def _export(encoder: nn.Module, clips: torch.Tensor, path: Path) -> float:
    """Write the file; returns the difference for another batch size than it was traced with."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  needed by torch's exporter
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'avssl[onnx]'") from error
    device = next(encoder.parameters()).device
    encoder, clips = encoder.cpu(), clips.cpu()
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder,
                (clips,),
                path,
                input_names=["clips"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("clips", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            x = clips[:1].flip(-1)
            expected = encoder(x).numpy()
    except torch.onnx.OnnxExporterError as error:
        why = " ".join(str(error).split()[:40])
        raise OnnxError(f"torch cannot export {type(encoder).__name__} ({why})") from error
    finally:
        encoder.to(device)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = session.run(["features"], {"clips": x.numpy()})[0]
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
