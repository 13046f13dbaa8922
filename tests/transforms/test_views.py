"""The views as data and methods use them: drawn parameters, batches of them, and the whole of `apply`."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional

from avssl.config import DataConfig
from avssl.transforms.views import VIEWS

PICTURE = {"width": 160, "height": 120}


def some_batch(name: str, data: DataConfig, num_clips: int, *, train: bool = True) -> tuple[torch.Tensor, dict]:
    """Input and parameters, as a loader hands them over."""
    generator = torch.Generator().manual_seed(0)
    if VIEWS[name].modality == "video":
        x = torch.randint(0, 256, (num_clips, 3, 10, 12, 3), dtype=torch.uint8, generator=generator)
    else:
        x = 0.1 * torch.randn(num_clips, round(data.audio_seconds * data.sample_rate), generator=generator)
    rngs = [np.random.default_rng(i) if train else None for i in range(num_clips)]
    drawn = [VIEWS[name].draw(rng, data, **PICTURE) for rng in rngs]
    return x, default_collate([{key: torch.from_numpy(value) for key, value in clip.items()} for clip in drawn])


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("train", [True, False])
def test_a_batch_is_each_clip_alone(name, train):
    data = DataConfig(audio_seconds=0.2)
    x, params = some_batch(name, data, 9, train=train)
    before = x.clone()
    together = VIEWS[name].apply(x, params, data)
    alone = [VIEWS[name].apply(x[i : i + 1], {k: v[i : i + 1] for k, v in params.items()}, data) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", VIEWS)
def test_apply_gives_float32_even_under_autocast(name):
    data = DataConfig(audio_seconds=0.2)
    x, params = some_batch(name, data, 2)
    expected = VIEWS[name].apply(x, params, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = VIEWS[name].apply(x, params, data)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("name", VIEWS)
def test_the_same_generator_draws_the_same(name):
    def draw(seed: int | None) -> dict:
        rng = None if seed is None else np.random.default_rng(seed)
        return VIEWS[name].draw(rng, DataConfig(), **PICTURE)

    assert equal(draw(3), draw(3))
    assert not equal(draw(3), draw(4))
    assert equal(draw(None), draw(None))


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def test_video_is_flipped_jittered_and_normalised():
    data = DataConfig()
    x, params = some_batch("video", data, 8)
    assert 0 < params["flip"].sum() < 8
    applied = VIEWS["video"].apply(x, params, data)
    operations = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for i in range(8):
        frames = x[i].permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
        if params["flip"][i]:
            frames = functional.horizontal_flip(frames)
        for number in params["order"][i].tolist():
            frames = operations[number](frames, params["jitter"][i, number].item())
        frames = functional.normalize(frames, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(applied[i], frames.transpose(0, 1), rtol=0, atol=5e-5)


def test_the_evaluation_view_only_normalises():
    data = DataConfig(audio_seconds=0.2)
    x, params = some_batch("video", data, 1, train=False)
    expected = functional.normalize(
        x[0].permute(0, 3, 1, 2).float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(VIEWS["video"].apply(x, params, data)[0], expected.transpose(0, 1))
    assert some_batch("audio", data, 1, train=False)[1]["gain"].tolist() == [1.0]


@pytest.mark.parametrize("spectrogram, num_bins", [("avid", 257), ("log_mel", 64)])
def test_gain_and_shape_of_sound(spectrogram, num_bins):
    data = DataConfig(audio_seconds=0.5, spectrogram=spectrogram)
    x, params = some_batch("audio", data, 2)
    applied = VIEWS["audio"].apply(x, params, data)
    assert applied.shape == (2, 1, 50, num_bins)
    unit = {"gain": torch.ones(2)}
    torch.testing.assert_close(applied, VIEWS["audio"].apply(x * params["gain"].unsqueeze(1), unit, data))
    assert not torch.equal(applied, VIEWS["audio"].apply(x, unit, data))


def test_draws_follow_the_configuration():
    rng = np.random.default_rng(0)
    never = DataConfig(flip=0.0, jitter=[0, 0, 0, 0], volume_jitter=0.0, min_crop_area=1.0)
    for _ in range(20):
        drawn = VIEWS["video"].draw(rng, never, width=64, height=64)
        assert not drawn["flip"]
        assert drawn["jitter"].tolist() == [1, 1, 1, 0]
        assert drawn["crop"].tolist() == [0, 0, 1, 1]
        assert VIEWS["audio"].draw(rng, never, width=64, height=64)["gain"] == 1
    drawn = [VIEWS["video"].draw(rng, DataConfig(), **PICTURE) for _ in range(1200)]
    orders = Counter(tuple(one["order"].tolist()) for one in drawn)
    assert len(orders) == 24
    assert max(orders.values()) < 90  # 50 expected
    assert sum(int(one["flip"]) for one in drawn) == pytest.approx(600, abs=90)
    gains = [VIEWS["audio"].draw(rng, DataConfig(), **PICTURE)["gain"] for _ in range(500)]
    assert min(gains) == pytest.approx(0.9, abs=0.01)
    assert max(gains) == pytest.approx(1.1, abs=0.01)


def test_values_out_of_range_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"data\.volume_jitter"):
        VIEWS["audio"].draw(rng, DataConfig(volume_jitter=1.5), **PICTURE)
    with pytest.raises(ValueError, match=r"data\.min_crop_area"):
        VIEWS["video"].draw(rng, DataConfig(min_crop_area=0.0), **PICTURE)


@pytest.mark.parametrize(
    "change, message", [({"sample_rate": 16000}, "log_mel"), ({"spectrogram": "mfcc"}, "avid or log")]
)
def test_spectrograms_that_do_not_exist_are_refused(change, message):
    data = DataConfig(audio_seconds=0.2, **change)
    x, params = some_batch("audio", data, 1)
    with pytest.raises(ValueError, match=message):
        VIEWS["audio"].apply(x, params, data)
