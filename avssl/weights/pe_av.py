"""PE-AV, Meta's encoders of video and sound, in the layout of Hugging Face's transformers (extra [transformers]).

    model = avssl.load("pe-av-small")  # the folder of `hf download facebook/pe-av-small --local-dir pe-av-small`

What takes weights takes these, such as `avssl embed` and `avssl evaluate`. Written for transformers 5.24.

Source: Vyas et al. 2025, arXiv:2512.19687; its text encoder and its encoder of both together are left out.
Differs from its processor in transformers: the center square of a frame is taken, not all of it squeezed into a square.

Letters: B clips, T frames, H x W pixels, n samples.
"""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from avssl.config import DataConfig
from avssl.files import first_line
from avssl.models.heads import Encoder

SECONDS, NUM_FRAMES = 8.0, 16  # of a clip; the paper's models with a fixed number of frames take so many


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


def read_pe_av(folder: str | Path) -> tuple[nn.ModuleDict, nn.ModuleDict, DataConfig]:
    """The encoders of picture and sound, the heads into their common space, and how clips are read: 16 frames over 8 s,
    which `with_data` changes.

    Args:
        folder: config.json, weights and processors as transformers writes them.

    Raises:
        ValueError: the extra is not installed, or transformers cannot read the folder.
    """
    try:
        import timm  # noqa: F401  # which transformers builds the ViT of
        from transformers import PeAudioFeatureExtractor, PeAudioVideoModel, PeVideoVideoProcessor
    except ImportError as error:
        raise ValueError(f"{folder} needs transformers and timm: pip install 'avssl[transformers]'") from error
    try:
        pixels = PeVideoVideoProcessor.from_pretrained(folder, local_files_only=True)
        sound = PeAudioFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model, loading = PeAudioVideoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: transformers cannot read it: {first_line(error)}") from error
    _check_complete(folder, loading)
    size = pixels.size["height"]
    video, audio = model.video_model, model.audio_model
    encoders = {"video": PeVideo(video.video_encoder, size), "audio": PeAudio(audio.audio_encoder)}
    heads = {"video": video.video_head, "audio": audio.audio_head}
    data = DataConfig(
        manifest="",
        num_frames=NUM_FRAMES,
        fps=NUM_FRAMES / SECONDS,
        size=size,
        center_crop=1.0,
        pixel_mean=tuple(pixels.image_mean),
        pixel_std=tuple(pixels.image_std),
        audio_seconds=SECONDS,
        sample_rate=sound.sampling_rate,
        spectrogram="none",
    )
    return nn.ModuleDict(encoders), nn.ModuleDict(heads), data


def _check_complete(folder: str | Path, loading: dict[str, Any]) -> None:
    """Raise ValueError for weights that transformers would fill with random numbers."""
    lacking = sorted([*loading["missing_keys"], *(str(name) for name, *_ in loading["mismatched_keys"])])
    if lacking:
        raise ValueError(f"{folder} lacks or has in another shape {lacking[0]} ({len(lacking)} such): fetch it again")
