"""PE-AV, Meta's encoders of video and sound, in the layout of Hugging Face's transformers (extra [transformers]).

    model = avssl.load("pe-av-small")  # the folder of `hf download facebook/pe-av-small --local-dir pe-av-small`

What takes weights takes these: `avssl embed`, `search`, `mine`, `browse`, `evaluate`. Written for transformers 5.24.

Source: Vyas et al. 2025, arXiv:2512.19687; its text encoder and its encoder of both together are left out.
Differs from its processor in transformers: the center square of a frame is taken, not all of it squeezed into a square.

Letters: B clips, T frames, H x W pixels, n samples.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.config import DataConfig, ModelConfig
from avssl.files import first_line
from avssl.models.heads import Encoder
from avssl.weights.load import PE_AV, Pretrained, WeightsError, pretrained_of


class PeVideo(Encoder):
    """Frames, each through a ViT, then a transformer over time.

    Args:
        encoder: PeVideoEncoder of transformers.
        size: side of its frames in pixels.
    """

    def __init__(self, encoder: nn.Module, size: int) -> None:
        dims, layout = {"pool": encoder.config.hidden_size}, f"(B, 3, T, {size}, {size})"
        super().__init__(modality="video", feature_dims=dims, layout=layout, in_channels=3, min_size=(1, size, size))
        self.encoder = encoder

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        frames = x.transpose(1, 2).contiguous()  # (B, T, 3, H, W)
        return {"pool": self.encoder(pixel_values_videos=frames).pooler_output}


class PeAudio(Encoder):
    """Samples through the encoder of a codec, then a transformer over time.

    Args:
        encoder: PeAudioEncoder of transformers.
    """

    def __init__(self, encoder: nn.Module) -> None:
        dims, hop = {"pool": encoder.config.hidden_size}, encoder.config.dac_config.hop_length
        super().__init__(modality="audio", feature_dims=dims, layout="(B, 1, n)", in_channels=1, min_size=(hop,))
        self.encoder, self.hop = encoder, hop

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        samples = F.pad(x, (0, -x.shape[-1] % self.hop), mode="reflect")  # as its feature extractor does
        return {"pool": self.encoder(input_values=samples).pooler_output}


def load_pe_av(
    folder: str | Path, *, seconds: float = 8.0, num_frames: int = 16, device: str | torch.device | None = None
) -> Pretrained:
    """The encoders of picture and sound with the heads into their common space.

    Args:
        folder: config.json, weights and processors as transformers writes them.
        seconds: length of a clip.
        num_frames: of a clip, evenly spread; 16 of the models whose name says so.
        device: None = a GPU if available.

    Raises:
        WeightsError: the extra is not installed, or transformers cannot read the folder.
    """
    try:
        import timm  # noqa: F401  # which transformers builds the ViT of
        from transformers import PeAudioFeatureExtractor, PeAudioVideoModel, PeVideoVideoProcessor
    except ImportError as error:
        raise WeightsError(f"{folder} needs transformers and timm: pip install 'avssl[transformers]'") from error
    try:
        pixels = PeVideoVideoProcessor.from_pretrained(folder, local_files_only=True)
        sound = PeAudioFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model, loading = PeAudioVideoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise WeightsError(f"{folder}: transformers cannot read it: {first_line(error)}") from error
    _check_complete(folder, loading)
    size = pixels.size["height"]
    encoders = {
        "video": PeVideo(model.video_model.video_encoder, size),
        "audio": PeAudio(model.audio_model.audio_encoder),
    }
    heads = {"video": model.video_model.video_head, "audio": model.audio_model.audio_head}
    data = DataConfig(
        manifest="",
        num_frames=num_frames,
        fps=num_frames / seconds,
        size=size,
        center_crop=1.0,
        pixel_mean=tuple(pixels.image_mean),
        pixel_std=tuple(pixels.image_std),
        audio_seconds=seconds,
        sample_rate=sound.sampling_rate,
        spectrogram="none",
    )
    return pretrained_of(
        nn.ModuleDict(encoders),
        nn.ModuleDict(heads),
        path=Path(folder) / "model.safetensors",
        data=data,
        model=ModelConfig(video=PE_AV, audio=PE_AV),
        device=device,
        facts={"kind": "transformers", "model_type": PE_AV},
    )


def _check_complete(folder: str | Path, loading: dict[str, Any]) -> None:
    """Raise WeightsError for weights that transformers would fill with random numbers."""
    lacking = sorted([*loading["missing_keys"], *(str(name) for name, *_ in loading["mismatched_keys"])])
    if lacking:
        raise WeightsError(f"{folder} lacks or has in another shape {lacking[0]} ({len(lacking)} such): fetch it again")
