"""The examples of CONTRIBUTING.md do what they say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.config import DataConfig, ModelConfig
from avssl.data.manifest import read_manifest
from avssl.models import ENCODERS, build_encoder
from avssl.objectives import positives
from avssl.structs import Embedded
from avssl.transforms import pretext
from avssl.transforms.recipes import Clip, Window
from tests.support.clips import make_clip

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def example(text: str, given: dict[str, object] | None = None) -> dict[str, object]:
    """What the example that holds this text defines, beside names that the file it goes into has."""
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if text in each]
    known = {"__name__": "example", **(given or {})}
    exec(block, known)
    return known


def test_the_data_set_is_listed(tmp_path: Path) -> None:
    for number in range(4):
        make_clip(tmp_path / "clips" / f"{number}.mp4", number % 2, number)
    lines = [f"{number}.mp4,{number % 2},{'train' if number < 2 else 'test'}" for number in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["file,class,split", *lines]))
    out = tmp_path / "manifest.parquet"
    assert example("run_recipe")["main"]([str(tmp_path), "--out", str(out)]) == 0
    manifest = read_manifest(out)
    assert manifest.column("label").tolist() == ["0", "1", "0", "1"]
    assert manifest.column("split").tolist() == ["train", "train", "test", "test"]


def test_the_encoder_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "tiny", example("class TinyVideo")["TinyVideo"])
    encoder = build_encoder("video", ModelConfig(video="tiny", video_width=0.5))
    maps = encoder.forward_features(torch.randn(2, 3, 2, 32, 32))
    assert {name: value.shape[1] for name, value in maps.items()} == encoder.feature_dims
    assert encoder(torch.randn(2, 3, 2, 32, 32)).shape == (2, encoder.dim)


def test_the_recipe_plays_backwards() -> None:
    recipe = example("class Direction", vars(pretext))["Direction"]()
    data, clip = DataConfig(manifest="", num_frames=4, size=32), Clip(64, 48, None, None)
    labels = [int(recipe.plan(np.random.default_rng(i), data, clip, Window(0.0)).params["label"]) for i in range(20)]
    assert set(labels) == {0, 1}
    plan = recipe.plan(None, data, clip, Window(0.0))
    params = {name: torch.from_numpy(np.stack([value] * 2)) for name, value in plan.params.items()}
    x = torch.randint(0, 256, (1, *plan.shape), dtype=torch.uint8).repeat(2, 1, 1, 1, 1)
    forwards, backwards = recipe.apply(x, params | {"label": torch.tensor([0, 1])}, data)
    assert torch.equal(backwards, forwards.flip(1))


def test_the_rule_marks_later_columns() -> None:
    later = example("def later", vars(positives))["later"]
    start = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    clips = Embedded(torch.eye(3), torch.tensor([4, 4, 5]), torch.zeros(3, dtype=torch.int64), start)
    assert later(clips, clips).tolist() == [[False, True, False], [False] * 3, [False] * 3]
