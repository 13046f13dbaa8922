"""PE-AV as transformers has it: a small random one, with the outputs of transformers itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import avssl
from avssl.data.manifest import Manifest
from avssl.weights.load import with_data

pytest.importorskip("timm", reason="the extra [transformers] is not installed")
transformers = pytest.importorskip(
    "transformers", minversion="5.24", reason="the extra [transformers] is not installed"
)

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights: frames of 32 pixels, a codec of 1,920 samples at 48 kHz."""
    folder = tmp_path_factory.mktemp("pe")
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"architecture": "test_vit", "num_classes": 20, "do_pooling": True, "global_pool": "map"}
    codec = {"downsampling_ratios": [2, 8, 10, 12], "encoder_hidden_size": 4, "codebook_dim": 8}
    config = transformers.PeAudioVideoConfig(
        text_config={"model_type": "modernbert", "vocab_size": 50, "pad_token_id": 0, **text},
        audio_video_config=SIZES
        | {
            "audio_config": {"model_type": "pe_audio_encoder", "dac_config": {"model_type": "dac", **codec}, **SIZES},
            "video_config": {
                "model_type": "pe_video_encoder",
                "vision_config": {**vision, "model_args": {"img_size": 32}},
                **SIZES,
            },
        },
    )
    torch.manual_seed(0)
    transformers.PeAudioVideoModel(config).save_pretrained(folder)
    pixels = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    processor = transformers.PeVideoVideoProcessor(do_resize=True, do_rescale=True, do_normalize=True, **pixels)
    processor.save_pretrained(folder)
    transformers.PeAudioFeatureExtractor(sampling_rate=48_000).save_pretrained(folder)
    return folder


def embeddings(folder: Path, *, frames: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
    """What transformers' own processors and model say of one clip, of unit length."""
    model = transformers.PeAudioVideoModel.from_pretrained(folder).eval()
    pixels = transformers.PeVideoVideoProcessor.from_pretrained(folder)(
        [torch.from_numpy(frames).movedim(-1, 1)], return_tensors="pt"
    )
    sound = transformers.PeAudioFeatureExtractor.from_pretrained(folder)(
        samples, sampling_rate=48_000, return_tensors="pt"
    )
    with torch.no_grad():
        found = model(
            pixel_values_videos=pixels["pixel_values_videos"],
            input_values=sound["input_values"],
            padding_mask=sound["padding_mask"],
        )
    found = {"video": found.video_embeds, "audio": found.audio_embeds}
    return {name: torch.nn.functional.normalize(value, dim=1).numpy() for name, value in found.items()}


def test_embeddings_are_those_of_transformers(folder: Path) -> None:
    rng = np.random.default_rng(0)
    model = with_data(avssl.load(folder, device="cpu"), audio_seconds=1.03, num_frames=4, fps=4 / 1.03)
    frames = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    samples = rng.uniform(-0.5, 0.5, round(1.03 * 48_000)).astype(np.float32)  # not a multiple of the codec's hop
    expected = embeddings(folder, frames=frames, samples=samples)
    video = model.encode_frames(frames, model.data.fps, num_clips=1)
    audio = model.encode_samples(samples, 48_000, num_clips=1)
    np.testing.assert_allclose(video.embedding["video"], expected["video"], atol=1e-5)
    np.testing.assert_allclose(audio.embedding["audio"], expected["audio"], atol=1e-5)
    assert abs(expected["video"] - expected["audio"]).max() > 0.01


def test_files_are_encoded_by_the_ordinary_call(folder: Path, clip_set: Manifest) -> None:
    model = avssl.load(folder, device="cpu")
    assert (model.data.size, model.data.sample_rate, model.data.num_frames) == (32, 48_000, 16)
    found = with_data(model, audio_seconds=1.0, fps=16.0).encode([clip_set.path(id) for id in (0, 1)], num_clips=1)
    assert found.embedding["video"].shape == (2, 24)
    np.testing.assert_allclose(np.linalg.norm(found.embedding["audio"][found.has_audio], axis=1), 1, atol=1e-5)


def test_weights_that_lack_an_entry_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.startswith("video_model.video_head"))
    save_file(
        {name: value for name, value in weights.items() if name != lost},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"video_head.*fetch it again"):
        avssl.load(tmp_path)


def test_a_folder_without_processors_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match="transformers cannot read it"):
        avssl.load(tmp_path)
