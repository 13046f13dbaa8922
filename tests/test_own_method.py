"""A method in a file of the user's own: trained alone and in joint, and used by every later tool without its class."""

import sys
from pathlib import Path

import pytest
import torch

from avssl.config import Config, ConfigError, from_dict, with_overrides
from avssl.data.manifest import Manifest
from avssl.methods import METHODS
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.weights.export import export
from avssl.weights.load import load, load_run
from tests.support.runs import SMALL, TINY, Call

pytestmark = pytest.mark.slow
SOURCE = '''
"""SimSiam, as a user writes it."""

from pathlib import Path

from torch import nn

from avssl.config import Count, Options
from avssl.methods.base import Method
from avssl.models.heads import mlp
from avssl.objectives.distillation import negative_cosine
from avssl.structs import Step
from avssl.transforms.views import two_views

with (Path(__file__).parent / "imported").open("a") as file:
    file.write("x")


class SimSiamOptions(Options):
    width: Count = 16


class SimSiam(Method):
    Options = SimSiamOptions
    modalities = ("video",)
    views = two_views()

    def __init__(self, options, encoders, *, instances, seed):
        super().__init__(options, encoders, instances=instances, seed=seed)
        dims = [encoders["video"].dim, options.width, options.width]
        self.heads = nn.ModuleDict({"video": mlp(dims, norm="all", affine_out=False)})
        self.predictor = mlp([options.width, 8, options.width], norm="hidden")

    def loss(self, encode, batch, progress):
        z1, z2 = (self.heads["video"](encode(view.name)) for view in self.views)
        present = self.present(batch, "video")
        one = negative_cosine(self.predictor(z1), z2, present=present)
        two = negative_cosine(self.predictor(z2), z1, present=present)
        return Step((one + two) / 2, embeddings={"video": self.embed("video", z1.detach(), batch)})

    def lr_scales(self):
        return {"predictor.": "constant"}
'''


def forget(own: str) -> None:
    """As in another process."""
    METHODS.pop(own)
    for name in [name for name in sys.modules if name.startswith("avssl_method_")]:
        del sys.modules[name]


def configured(manifest: Manifest, folder: Path, *overrides: str) -> Config:
    small = [line for line in TINY if not line.startswith("method.")]
    lines = [f"data.manifest={manifest.root / 'manifest.parquet'}", f"run.dir={folder}", *small, *overrides]
    return from_dict(with_overrides({}, lines), source="test")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("own") / "my_method.py"
    path.write_text(SOURCE)
    return f"{path}:SimSiam"


@pytest.fixture(scope="module")
def run(own: str, clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    assert train(configured(clip_set, folder, f"method.name={own}", "method.width=12", "optim.epochs=1"))
    forget(own)
    return folder


def imports_of(own: str) -> int:
    return len((Path(own.rpartition(":")[0]).parent / "imported").read_text())


def test_its_encoders_load_without_its_file(run: Path, own: str, clip_set: Manifest) -> None:
    before = imports_of(own)
    model = load(run)
    assert set(model.encoders) == {"video"}
    assert len(model.encode(clip_set.path(0), num_clips=2).features["video"]) == 1
    state = load_checkpoint(run)["model"]
    weights = {name: value for name, value in state.items() if name.startswith("heads.video.")}
    assert weights
    for name, value in weights.items():
        assert torch.equal(model.heads["video"].state_dict()[name.removeprefix("heads.video.")], value)
    with pytest.raises(ConfigError, match=r"names a file, which is not imported because a checkpoint says so"):
        load_run(run)
    assert imports_of(own) == before


def test_no_tool_imports_the_file_that_a_checkpoint_names(
    run: Path, own: str, clip_set: Manifest, call: Call, tmp_path: Path
) -> None:
    before, manifest = imports_of(own), clip_set.root / "manifest.parquet"
    for name, *arguments in (
        ("embed", run, manifest, "--out", tmp_path / "embeddings", "--workers", "0", "--num-clips", "1"),
        ("search", tmp_path / "embeddings", "--query", clip_set.column("path")[0], "--k", "2"),
        ("evaluate", run, "knn", "--dataset", manifest, *SMALL),
        ("convert", run, "--to", tmp_path / "weights"),
    ):
        done = call(f"tools/{name}.py", *arguments)
        assert done.code == 0, done.err
    assert imports_of(own) == before
    assert set(load(tmp_path / "weights").heads) == {"video"}


def test_a_joint_run_with_it_loads_and_exports_without_its_file(own: str, clip_set: Manifest, tmp_path: Path) -> None:
    parts = f"method.parts={{avid: {{num_negatives: 4, hidden_dim: 16}}, own: {{name: '{own}', width: 8}}}}"
    assert train(configured(clip_set, tmp_path / "joint", "method.name=joint", parts, "optim.epochs=1"))
    forget(own)
    before = imports_of(own)
    model = load(tmp_path / "joint")
    assert set(model.encoders) == set(model.heads) == {"video", "audio"}
    export(model, tmp_path / "weights", facts=model.facts)
    folder = str(Path(own).parent)
    assert not any(folder in path.read_text() for path in (tmp_path / "weights").glob("*.json"))
    assert folder not in (tmp_path / "weights" / "README.md").read_text()
    assert imports_of(own) == before


def test_the_report_asks_for_the_file(run: Path, own: str, call: Call, tmp_path: Path) -> None:
    call("tools/report.py", run).refused("give --plugin")
    assert call("tools/report.py", run, "--plugin", own, "--out", tmp_path / "page.html").code == 0
    forget(own)


@pytest.mark.parametrize(
    "name, message",
    [
        ("none.py:A", r"method none\.py:A: there is no file none\.py"),
        ("{path}:Nothing", "has no subclass of avssl.methods.base.Method named Nothing"),
        ("{path}:SimSiamOptions", "has no subclass of avssl.methods.base.Method named SimSiamOptions"),
    ],
)
def test_what_is_no_method_is_refused(name: str, message: str, own: str, clip_set: Manifest, tmp_path: Path) -> None:
    name = name.format(path=own.rpartition(":")[0])
    with pytest.raises(ConfigError, match=message):
        train(configured(clip_set, tmp_path, f"method.name={name}"))


def test_a_file_that_changed_is_told_when_its_run_goes_on(
    clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    name = f"{tmp_path}/mine.py:SimSiam"
    given = configured(clip_set, tmp_path / "run", f"method.name={name}", "run.max_steps=1")
    assert not train(given)
    assert not train(given.replace(run=given.run.replace(max_steps=2)))
    assert "has changed" not in capsys.readouterr().err
    forget(name)
    (tmp_path / "mine.py").write_text(SOURCE + "# another line\n")
    assert not train(given.replace(run=given.run.replace(max_steps=3)))
    assert f"note: {tmp_path}/mine.py has changed since the run was saved" in capsys.readouterr().err
    forget(name)
