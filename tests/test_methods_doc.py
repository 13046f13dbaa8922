"""The method that docs/methods.md shows is a file that trains, and computes what it says."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avssl.config import Config
from avssl.data.manifest import Manifest
from avssl.methods import METHODS, build_method, import_methods
from avssl.structs import Instances
from avssl.training.loop import train
from avssl.weights.load import load_run
from tests.support.contract import NUM, batch_of, progress
from tests.support.runs import TINY, config

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
OTHERS = [line for line in TINY if line.startswith("method.")]


def simsiam_source() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if "class SimSiam(Method)" in block]
    return found


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`method.name` of the page's file, saved where a user might keep it."""
    path = tmp_path / "simsiam.py"
    path.write_text(simsiam_source())
    modules = set(sys.modules)
    yield f"{path}:SimSiam"
    METHODS.pop(f"{path}:SimSiam", None)
    for module in set(sys.modules) - modules:
        if module.startswith("avssl_method_"):
            del sys.modules[module]


def configured(manifest: Manifest, folder: Path, name: str, *overrides: str) -> Config:
    given = config(manifest, folder, "method.hidden_dim=16", "method.embedding_dim=32", *overrides)
    own = {"name": name, "hidden_dim": 16, "embedding_dim": 32}  # without the options of AVID in TINY
    return given.replace(method=own)


def test_it_is_one_page() -> None:
    lines = [line for line in simsiam_source().splitlines() if line.strip()]
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 120


def test_it_trains_through_the_loop(clip_set: Manifest, tmp_path: Path, name: str) -> None:
    chosen = configured(clip_set, tmp_path / "run", name, "run.max_steps=2")
    import_methods(chosen)
    assert train(chosen) is False  # stopped after two steps, and saved
    reports = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [report["loss"] for report in reports if "loss" in report]
    assert len(losses) == 2
    assert all(-1 <= loss <= 1 for loss in losses)
    assert all("video_std" in report for report in reports if "loss" in report)
    run = load_run(tmp_path / "run")
    assert set(run.encoders) == set(run.heads) == {"video"}
    assert run.method.predictor(torch.zeros(2, 32)).shape == (2, 32)


def test_its_loss_is_that_of_the_paper(clip_set: Manifest, tmp_path: Path, name: str) -> None:
    """Eq. 1 and 2 and algorithm 1, in closed form, with the gradient stopped on one side."""
    chosen = configured(clip_set, tmp_path / "run", name)
    import_methods(chosen)
    every = torch.ones(NUM, dtype=torch.bool)
    method = build_method(chosen, Instances(every, every, every)).train()
    batch = batch_of(method, 0)
    step = method(batch, progress(0))
    step.loss.backward()
    found = {parameter: value.grad.clone() for parameter, value in method.named_parameters()}
    method.zero_grad()
    z1, z2 = (method.heads["video"](method.encoders["video"](batch.video[view])) for view in ("video", "video.1"))
    p1, p2 = method.predictor(z1), method.predictor(z2)
    unit = {"p1": p1, "p2": p2, "z1": z1.detach(), "z2": z2.detach()}
    unit = {key: F.normalize(value, dim=1) for key, value in unit.items()}
    loss = -((unit["p1"] * unit["z2"]).sum(dim=1).mean() + (unit["p2"] * unit["z1"]).sum(dim=1).mean()) / 2
    torch.testing.assert_close(step.loss, loss)
    loss.backward()
    for parameter, value in method.named_parameters():
        torch.testing.assert_close(found[parameter], value.grad, msg=parameter)
    assert method.lr_scales() == {"predictor.": "constant"}


def test_its_projector_is_the_published_one(clip_set: Manifest, tmp_path: Path, name: str) -> None:
    """No bias below a norm, the last norm without scale and shift, a predictor of 2048-512-2048 with a bias."""
    chosen = configured(clip_set, tmp_path / "run", name).replace(method={"name": name})
    import_methods(chosen)
    every = torch.ones(NUM, dtype=torch.bool)
    method = build_method(chosen, Instances(every, every, every))
    projector = [value.shape for _, value in method.heads["video"].named_parameters()]
    dim = method.encoders["video"].dim
    assert projector == [(2048, dim), (2048,), (2048,), (2048, 2048), (2048,), (2048,), (2048, 2048)]
    predictor = [value.shape for _, value in method.predictor.named_parameters()]
    assert predictor == [(512, 2048), (512,), (512,), (2048, 512), (2048,)]
