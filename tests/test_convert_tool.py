"""tools/convert.py, called as a user calls it: a run, a published checkpoint, and ONNX files beside them."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import avssl
from avssl.data.manifest import Manifest
from avssl.training.checkpoint import ENCODERS
from avssl.training.loop import train
from avssl.weights import onnx
from avssl.weights.export import CARD
from avssl.weights.load import load
from tests.support.runs import config

pytestmark = pytest.mark.slow
Call = Callable[..., int]


@pytest.fixture(scope="module")
def call() -> Call:
    path = Path(__file__).parents[1] / "tools" / "convert.py"
    spec = importlib.util.spec_from_file_location("called_convert", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["convert.py", *map(str, arguments)])
            return tool.main()

    return call


def test_a_run_with_onnx(call: Call, clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    assert not train(config(clip_set, tmp_path / "run", "run.max_steps=1"))
    capsys.readouterr()
    assert call(tmp_path / "run", "--to", tmp_path / "w", "--onnx", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["encoders"] == {"video": "r2plus1d_avid", "audio": "conv2d_avid"}
    assert max(result["onnx"].values()) <= 1e-3
    model = avssl.load(tmp_path / "w")
    assert model.weights_hash == result["weights_hash"]
    clips = {
        "video": model.transform("video", torch.randint(0, 255, (5, 2, 40, 40, 3), dtype=torch.uint8)),
        "audio": model.transform("audio", torch.randn(1, 4000)),
    }
    for modality, x in clips.items():
        session = onnxruntime.InferenceSession(tmp_path / "w" / f"{modality}.onnx")
        with torch.no_grad():
            expected = model.encoders[modality](x).numpy()
        np.testing.assert_allclose(session.run(None, {"clips": x.numpy()})[0], expected, rtol=1e-3, atol=1e-5)


def test_an_onnx_file_that_differs_is_not_left(
    call: Call,
    clip_set: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(onnx, "_export", lambda encoder, clips, path: path.write_bytes(b"network") / 100)
    assert not train(config(clip_set, tmp_path / "run", "run.max_steps=1"))
    assert call(tmp_path / "run", "--to", tmp_path / "w", "--onnx") == 1
    assert "the video encoder differs by 7.0e-02 of its largest output in onnxruntime" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["README.md", "config.json", ENCODERS]


def test_torchvision_by_name(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert call("torchvision:mc3_18", "--to", tmp_path / "w") == 2
    error = capsys.readouterr().err
    assert "nothing is downloaded here, put https://download.pytorch.org/models/mc3_18-a90a0ba3.pth there" in error
    path = tmp_path / "torch" / "hub" / "checkpoints" / "mc3_18-a90a0ba3.pth"
    path.parent.mkdir(parents=True)
    original = torchvision.models.video.mc3_18(weights=None).eval()
    torch.save(original.state_dict(), path)
    assert call("torchvision:mc3_18", "--to", tmp_path / "w") == 0
    assert "torchvision: 120 entries matched, 0 missing, 0 unexpected, 2 known ones left out" in capsys.readouterr().out
    model = load(tmp_path / "w")
    assert (model.data.num_frames, model.data.size, model.facts["file"]) == (16, 112, path.name)
    assert "BSD 3-Clause" in (tmp_path / "w" / CARD).read_text()
    original.fc = torch.nn.Identity()
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encoders["video"](x.to(model.device)).cpu(), original(x))


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["none.pth"], "none.pth does not exist"),
        (["torchvision:s4d"], "torchvision:s4d: expected one of r2plus1d_18"),
        (["odd.pth"], "odd.pth has entries such as weight, which are of no known layout"),
        (["."], "last.pt does not exist"),
        ([".", "--trust-pickle"], ". is a run: --encoder and --trust-pickle are for published checkpoints"),
        (["torchvision:s3d", "--encoder", "r3d_18"], "torchvision:s3d says which encoder it is"),
    ],
)
def test_wrong_calls(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1)}, "odd.pth")
    assert call(*arguments, "--to", "w") == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w" / ENCODERS).exists()
