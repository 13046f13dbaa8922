"""Spectrograms: against recorded numbers of AVID-CMA, against torchaudio, and what must hold for any batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from avssl.transforms import audio

RECORDED = Path(__file__).parents[1] / "fixtures" / "avid_spectrogram.npz"  # 16 of the 200 steps
AVID = {"sample_rate": 24000, "n_fft": 512, "hop_seconds": 0.01}
MEL = {"sample_rate": 16000, "n_fft": 512, "hop_seconds": 0.01, "num_mels": 40}


def chirps() -> torch.Tensor:
    """The audio that the recorded numbers were computed from: (1, 48000), computed in float64."""
    t = np.arange(48000) / 24000
    sound = (
        0.4 * np.sin(2 * np.pi * 440 * t)
        + 0.2 * np.sin(2 * np.pi * (500 + 2000 * t) * t)
        + 0.05 * np.sin(2 * np.pi * 7000 * t**2)
    )
    return torch.from_numpy(sound.astype(np.float32)).unsqueeze(0)


def noise(num_clips: int, num_samples: int) -> torch.Tensor:
    """Clips of very different loudness."""
    generator = torch.Generator().manual_seed(0)
    loudness = torch.logspace(-4, -1, num_clips).unsqueeze(1)
    return loudness * torch.randn(num_clips, num_samples, generator=generator)


@pytest.mark.parametrize("n_fft", [256, 512])
def test_avid_equals_the_recorded_numbers(n_fft):
    recorded = np.load(RECORDED)
    decibel = audio.avid_log_spectrogram(chirps(), sample_rate=24000, n_fft=n_fft, hop_seconds=0.01)
    normalized = audio.avid_normalize(decibel, sample_rate=24000, n_fft=n_fft)
    assert decibel.shape == normalized.shape == (1, 1, 200, n_fft // 2 + 1)
    steps = recorded["steps"]
    np.testing.assert_allclose(decibel[0, :, steps], recorded[f"n_fft{n_fft}.db"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(normalized[0, :, steps], recorded[f"n_fft{n_fft}.normalised"], rtol=0, atol=1e-4)


def test_log_mel_equals_torchaudio():
    samples = noise(3, 16000)
    power = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=40)(samples)
    decibel = torchaudio.transforms.AmplitudeToDB("power")(power)[..., :100].transpose(1, 2).unsqueeze(1)
    torch.testing.assert_close(audio.log_mel(samples, **MEL), (decibel + 20) / 25, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spectrogram, settings", [(audio.avid_log_spectrogram, AVID), (audio.log_mel, MEL)])
def test_a_batch_is_each_clip_alone(spectrogram, settings):
    samples = noise(2 * audio.CLIPS_AT_ONCE + 1, 4800)
    alone = torch.cat([spectrogram(clip.unsqueeze(0), **settings) for clip in samples])
    torch.testing.assert_close(spectrogram(samples, **settings), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spectrogram, settings", [(audio.avid_log_spectrogram, AVID), (audio.log_mel, MEL)])
def test_autocast_changes_nothing(spectrogram, settings):
    samples = noise(2, 4800)
    expected = spectrogram(samples, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = spectrogram(samples, **settings)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


def test_avid_keeps_100_decibel_below_the_loudest_bin_of_each_clip():
    tone = torch.sin(torch.arange(12000) * 0.1)
    samples = torch.stack([torch.cat([scale * tone, torch.zeros(12000)]) for scale in (1.0, 1e-3)])
    decibel = audio.avid_log_spectrogram(samples, **AVID)  # loudest: about 48 and -12 dB
    loudest, lowest = decibel.amax(dim=(1, 2, 3)), decibel.amin(dim=(1, 2, 3))
    assert lowest.tolist() == pytest.approx([loudest[0].item() - 100, -100], abs=1e-3)
    assert lowest[0] > -60


def test_digital_silence_is_finite():
    silence = torch.zeros(1, 48000)
    decibel = audio.avid_log_spectrogram(silence, **AVID)
    assert (decibel == -100).all()
    normalized = audio.avid_normalize(decibel, sample_rate=24000, n_fft=512)
    assert normalized.min().item() == pytest.approx(-5.56, abs=0.01)  # as AVID's own
    assert normalized.max().item() == pytest.approx(-2.47, abs=0.01)
    torch.testing.assert_close(audio.log_mel(silence, **MEL), torch.full((1, 1, 300, 40), -3.2))


def test_log_mel_hears_loudness():
    samples = noise(1, 16000) * 100
    louder = audio.log_mel(2 * samples, **MEL) - audio.log_mel(samples, **MEL)
    torch.testing.assert_close(louder, torch.full_like(louder, 20 * math.log10(2) / 25), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_steps, expected", [(None, 100), (30, 30), (101, 101)])
def test_number_of_steps(num_steps, expected):
    assert audio.log_mel(noise(1, 16000), **MEL, num_steps=num_steps).shape == (1, 1, expected, 40)


def test_constants_made_in_inference_mode_serve_training_afterwards():
    settings = {**MEL, "n_fft": 500, "num_mels": 17}  # used nowhere else: made here
    samples = noise(1, 8000)
    with torch.inference_mode():
        audio.log_mel(samples, **settings)
    samples.requires_grad_()
    audio.log_mel(samples, **settings).sum().backward()
    assert samples.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")  # torchaudio's, before our error
@pytest.mark.parametrize(
    "samples, change, message",
    [
        (torch.zeros(16000), {}, r"expected floats \(B, n\)"),
        (torch.zeros(1, 16000, dtype=torch.int16), {}, r"expected floats \(B, n\)"),
        (torch.zeros(1, 256), {}, "more than 256 samples"),
        (torch.zeros(1, 16000), {"num_steps": 102}, "num_steps=102"),
        (torch.zeros(1, 16000), {"hop_seconds": 1e-5}, "hop_seconds"),
        (torch.zeros(1, 16000), {"num_mels": 200}, "hold no frequency bin"),
    ],
)
def test_what_cannot_be_transformed_is_refused(samples, change, message):
    with pytest.raises(ValueError, match=message):
        audio.log_mel(samples, **{**MEL, **change})


@pytest.mark.parametrize("sample_rate, n_fft", [(16000, 512), (24000, 1024)])
def test_statistics_that_were_not_published_are_refused(sample_rate, n_fft):
    with pytest.raises(ValueError, match="log_mel"):
        audio.avid_normalize(torch.zeros(1, 1, 2, n_fft // 2 + 1), sample_rate=sample_rate, n_fft=n_fft)
