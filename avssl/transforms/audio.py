"""Sound: gain and spectrograms of a whole batch of waveforms, on its device, never in less than float32.

What lives here: the log-spectrogram of AVID with the statistics of its published models, and a plain log-mel. What does
not: which of them a view uses (views.py).

Letters: B batch, n samples, S spectrogram steps, F frequency bins.
"""

import functools
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor

MIN_POWER = 1e-10  # floor of the logarithm: -100 dB, which digital silence becomes
CLIPS_AT_ONCE = 8  # clips transformed together; any number gives the same values
AVID_TOP_DB = 100.0  # nothing is further below the loudest bin of its clip than this
AVID_SAMPLE_RATE = 24000  # what the published statistics hold for
AVID_STATISTICS = Path(__file__).with_name("avid_spectrogram_stats.npz")  # n_fft{256,512}.{mean,std}, one per bin
# Typical mel power of sound in [-1, 1] (140 real clips at 24 kHz, n_fft 512: mean -17 dB, deviation 26 dB). Constants,
# not statistics of the clip: loudness is part of what is heard.
LOG_MEL_MEAN_DB = -20.0
LOG_MEL_STD_DB = 25.0


def avid_log_spectrogram(
    samples: Tensor, *, sample_rate: int, n_fft: int, hop_seconds: float, num_steps: int | None = None
) -> Tensor:
    """The log-spectrogram of AVID in dB: a window of twice `n_fft`, all bins but the lowest averaged in pairs.

    Args:
        samples: (B, n) waveforms in [-1, 1].
        sample_rate: Hz.
        n_fft: half the window in samples, even.
        hop_seconds: from one step to the next.
        num_steps: how many of the first steps are kept; None = as many as the sound lasts, round(seconds / hop).

    Returns:
        (B, 1, S, n_fft / 2 + 1) float32, in dB from -100 up, at most 100 dB below the loudest bin of the clip.

    Raises:
        ValueError: the samples have another shape, or are too few for one window or for `num_steps`.

    Source: LogSpectrogram of AVID-CMA with the reflect padding of the librosa of its time; equal to 1e-4 dB.
    """
    with torch.autocast(samples.device.type, enabled=False):
        power = _power_spectrogram(
            samples, sample_rate=sample_rate, window=2 * n_fft, hop_seconds=hop_seconds, num_steps=num_steps
        )  # (B, S, n_fft + 1)
        pairs = (power[..., 1::2] + power[..., 2::2]) / 2
        decibel = _decibel(torch.cat([power[..., :1], pairs], dim=-1))
        loudest = decibel.amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
        return torch.maximum(decibel, loudest - AVID_TOP_DB).unsqueeze(1)


def avid_normalize(decibel: Tensor, *, sample_rate: int, n_fft: int) -> Tensor:
    """Standardize each bin of `avid_log_spectrogram` with the statistics of AVID's published models.

    Args:
        decibel: (B, 1, S, F) in dB.
        sample_rate: Hz that `decibel` was computed at.
        n_fft: likewise.

    Returns:
        (B, 1, S, F) float32.

    Raises:
        ValueError: there are no statistics for this rate or size.
    """
    if sample_rate != AVID_SAMPLE_RATE or n_fft not in (256, 512):
        raise ValueError(
            f"sample_rate={sample_rate} with n_fft={n_fft}: AVID's statistics exist for {AVID_SAMPLE_RATE} Hz with "
            "n_fft 256 or 512 only; use these, or data.spectrogram=log_mel, which takes any"
        )
    mean, std = _avid_statistics(n_fft, decibel.device)
    return (decibel.float() - mean) / (std + 1e-5)  # 1e-5: as AVID does


def log_mel(
    samples: Tensor, *, sample_rate: int, n_fft: int, hop_seconds: float, num_mels: int, num_steps: int | None = None
) -> Tensor:
    """A plain log-mel spectrogram (HTK scale, 0 Hz to half the rate), scaled to about zero mean and unit spread.

    Args:
        samples: (B, n) waveforms in [-1, 1].
        sample_rate: Hz.
        n_fft: window in samples.
        hop_seconds: from one step to the next.
        num_mels: number of bands F.
        num_steps: how many of the first steps are kept; None = as many as the sound lasts, round(seconds / hop).

    Returns:
        (B, 1, S, num_mels) float32: (dB + 20) / 25, so digital silence is -3.2.

    Raises:
        ValueError: the samples have another shape, are too few for one window or for `num_steps`, or there are so many
            bands that some hold no frequency bin.

    Source: torchaudio.transforms.MelSpectrogram and AmplitudeToDB.
    """
    with torch.autocast(samples.device.type, enabled=False):
        power = _power_spectrogram(
            samples, sample_rate=sample_rate, window=n_fft, hop_seconds=hop_seconds, num_steps=num_steps
        )  # (B, S, n_fft / 2 + 1)
        decibel = _decibel(power @ _mel_bands(n_fft // 2 + 1, num_mels, sample_rate, samples.device))
        return ((decibel - LOG_MEL_MEAN_DB) / LOG_MEL_STD_DB).unsqueeze(1)


def mix_background(samples: Tensor, *, share: Tensor, place: Tensor) -> Tensor:
    """Each waveform (B, n) with another one of the batch below it; of a batch of one, as it is.

    Args:
        share: (B,) of the other's power in the sum of both; 0 = none of it.
        place: (B,) in [0, 1), which of the others it is.

    Source: Niizumi et al. 2021, "BYOL for Audio", mixes spectrograms so; this is the same for their expected powers.
    Differs from BYOL-A: the other sound is of the batch instead of a memory of earlier ones, so that nothing has to be
    saved; with several processes, of this process's part of it.
    """
    num = len(samples)
    if num < 2:
        return samples
    other = (torch.arange(num) + 1 + (place * (num - 1)).long().clamp(max=num - 2)) % num
    other, share = (each.to(samples.device, non_blocking=True) for each in (other, share.unsqueeze(1)))
    return (1 - share).sqrt() * samples + share.sqrt() * samples[other]


def mask_stripes(spectrogram: Tensor, masks: Tensor) -> Tensor:
    """Set stripes of a normalized spectrogram (B, 1, S, F) to its usual mean, 0.

    Args:
        masks: (B, 2, M, 2): M stripes over steps, then M over bands, each its start and width as shares of the axis.

    Source: Park et al. 2019, "SpecAugment", without time warping.
    """
    hidden = torch.zeros(spectrogram.shape, dtype=torch.bool, device=spectrogram.device)
    for axis, size in enumerate(spectrogram.shape[2:]):
        places = (torch.arange(size) + 0.5) / size
        start, width = masks[:, axis, :, :1], masks[:, axis, :, 1:]  # (B, M, 1)
        inside = ((places >= start) & (places < start + width)).any(dim=1)  # (B, size)
        inside = inside.to(spectrogram.device, non_blocking=True)
        hidden |= inside[:, None, :, None] if axis == 0 else inside[:, None, None, :]
    return spectrogram.masked_fill(hidden, 0)


def _power_spectrogram(
    samples: Tensor, *, sample_rate: int, window: int, hop_seconds: float, num_steps: int | None
) -> Tensor:
    """Squared magnitudes, step s centered on sample s * hop, borders reflected: (B, n) -> (B, S, window / 2 + 1)."""
    if samples.ndim != 2 or not samples.is_floating_point():
        raise ValueError(f"samples of shape {tuple(samples.shape)} and {samples.dtype}: expected floats (B, n)")
    num_samples = samples.shape[1]
    hop = round(hop_seconds * sample_rate)
    if hop < 1:
        raise ValueError(f"hop_seconds={hop_seconds} is not even a sample at {sample_rate} Hz: 0.01 is usual")
    if num_samples <= window // 2:
        raise ValueError(
            f"{num_samples} samples are too few for a window of {window} with reflected borders: "
            f"give more than {window // 2} samples (data.audio_seconds) or a smaller data.n_fft"
        )
    if num_steps is None:
        num_steps = round(num_samples / sample_rate / hop_seconds)
    if num_steps > 1 + num_samples // hop:
        raise ValueError(
            f"num_steps={num_steps} spectrogram steps of {hop} samples need at least {(num_steps - 1) * hop} samples, "
            f"and there are {num_samples}: give more sound or a longer data.hop_seconds"
        )
    # Float64 inside: at 100 dB below a tone, rounding in float32 moves a bin by up to 0.03 dB.
    # A few clips at a time stay in a processor's cache: 2-4 times faster than the whole batch in one piece.
    hann = _hann_window(window, samples.device)
    parts = []
    for part in samples.double().split(CLIPS_AT_ONCE if samples.device.type == "cpu" else len(samples) or 1):
        spectrum = torch.stft(
            part, window, hop, window=hann, center=True, pad_mode="reflect", return_complex=True
        )  # (n, window / 2 + 1, 1 + n // hop)
        # Not sum(dim=-1): over two neighbors in memory it takes 12 times as long, and longer than the transform.
        real, imaginary = torch.view_as_real(spectrum[..., :num_steps].transpose(1, 2)).square().unbind(-1)
        parts.append((real + imaginary).float())
    return torch.cat(parts)


def _decibel(power: Tensor) -> Tensor:
    return 10 * power.clamp(min=MIN_POWER).log10()


# Constants, built once per setting and device. inference_mode(False): made inside an evaluation, they must still serve
# training afterwards.


@functools.cache
@torch.inference_mode(False)
def _hann_window(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, dtype=torch.float64, device=device)  # (length,)


@functools.cache
@torch.inference_mode(False)
def _avid_statistics(n_fft: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with np.load(AVID_STATISTICS) as statistics:
        mean, std = (torch.from_numpy(statistics[f"n_fft{n_fft}.{name}"]) for name in ("mean", "std"))  # (F,)
    return mean.to(device), std.to(device)


@functools.cache
@torch.inference_mode(False)
def _mel_bands(num_bins: int, num_mels: int, sample_rate: int, device: torch.device) -> Tensor:
    bands = torchaudio.functional.melscale_fbanks(
        num_bins, f_min=0.0, f_max=sample_rate / 2, n_mels=num_mels, sample_rate=sample_rate
    )  # (num_bins, num_mels)
    num_empty = int((bands.amax(dim=0) == 0).sum())
    if num_empty:
        raise ValueError(
            f"num_mels={num_mels}: {num_empty} of these bands hold no frequency bin of a window of {2 * num_bins - 2} "
            f"samples at {sample_rate} Hz; lower data.num_mels or raise data.n_fft"
        )
    return bands.to(device)
