"""One optimizer step: nothing in it causes a host sync, the check of its metrics may look a step later, and
compiled encoders stay the same encoders.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl.config import Config
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.methods import build_method
from avssl.methods.base import Method
from avssl.structs import Batch, Progress
from avssl.training.optim import build_optimizer
from avssl.training.session import TrainingError
from avssl.training.setup import to_channels_last, usable_instances
from avssl.training.step import FiniteCheck, GradientNorms, train_step
from tests.support.runs import CMA, Waits, config


@pytest.mark.parametrize(
    "name, wait",
    [
        ("_local_scalar_dense", lambda x: x[0].item()),
        ("_local_scalar_dense", lambda x: bool(torch.isnan(x).any())),
        ("nonzero", lambda x: x.nonzero()),
        ("_unique2", lambda x: x.unique()),
        ("index", lambda x: x[x > 1]),
        ("index_put_", lambda x: x.clone().__setitem__(x > 1, torch.zeros(1))),
        ("equal", lambda x: torch.equal(x, x)),
    ],
)
def test_the_recorder_sees_what_waits(name: str, wait) -> None:
    with Waits() as waits:
        wait(torch.arange(3.0))
    assert name in waits.seen


def first_batch(manifest: Manifest, settings: Config, method: Method) -> Batch:
    rows = np.flatnonzero(manifest.valid("train"))[-4:]  # the last of them has no audio
    dataset = ClipDataset(manifest, settings.data, method.views)
    return collate([dataset[Key(epoch=0, id=int(row), clip=0)] for row in rows])


@pytest.mark.parametrize("optimizer", ["adam", "lars"])
@pytest.mark.parametrize("extra", [["method.within=1"], CMA], ids=["avid", "avid_cma"])
def test_a_step_never_makes_the_host_wait(clip_set: Manifest, tmp_path: Path, extra: list[str], optimizer: str) -> None:
    settings = config(clip_set, tmp_path, *extra, f"optim.name={optimizer}", "optim.clip_norm=1.0", "data.flip=1")
    method = build_method(settings, usable_instances(clip_set, settings)).train()
    optimizer = build_optimizer(method.named_parameters(), settings.optim)
    check = FiniteCheck(tmp_path, delayed=True)
    batch = first_batch(clip_set, settings, method)
    with Waits() as waits:  # the first step asks whether log_z is set
        train_step(method, optimizer, batch, settings, Progress(0, 0, 4))
    assert set(waits.seen) == {"_local_scalar_dense"}
    method.on_epoch(1)
    train_step(method, optimizer, batch, settings, Progress(1, 1, 4))  # the first step with new sets asks for them
    with Waits() as waits:
        done, norms = train_step(method, optimizer, batch.to(torch.device("cpu")), settings, Progress(1, 2, 4))
        check.add(2, done.loss, norms)
    assert waits.seen == []
    assert ("pos_v2v" in done.logs) == (extra == CMA)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "byol", "hidden_dim": 16},
        {"name": "pretext"},
        {"name": "swav", "hidden_dim": 16, "num_prototypes": 8, "queue_size": 8, "queue_from_epoch": 1},
        {"name": "infonce", "hidden_dim": 16},
        {"name": "npid", "modality": "both", "num_negatives": 4, "hardest": 0.5},
        {"name": "moco", "hidden_dim": 16, "queue_size": 8},
        {"name": "moco_v3", "hidden_dim": 16},
        {"name": "simclr", "hidden_dim": 16, "views": "video+audio"},
        {"name": "pirl", "transform": "rotation", "num_negatives": 4},
        {"name": "cpc", "num_blocks": 3, "num_ahead": 1, "num_negatives": 4},
        {"name": "pretext", "task": "order"},
        {"name": "pretext", "task": "speed", "modality": "audio"},
    ],
    ids=lambda method: " ".join(str(method[key]) for key in ("name", "task") if key in method),
)
def test_other_families_do_not_wait_either(clip_set: Manifest, tmp_path: Path, method: dict) -> None:
    settings = config(clip_set, tmp_path, "optim.clip_norm=1.0").replace(method=method)
    method = build_method(settings, usable_instances(clip_set, settings)).train()
    optimizer = build_optimizer(method.named_parameters(), settings.optim)
    batch = first_batch(clip_set, settings, method)
    for epoch in (0, 1):
        method.on_epoch(epoch)
        train_step(method, optimizer, batch, settings, Progress(epoch, epoch, 4))
    with Waits() as waits:
        train_step(method, optimizer, batch.to(torch.device("cpu")), settings, Progress(1, 2, 4))
    assert waits.seen == []


def test_what_the_host_remembers_comes_from_the_state(clip_set: Manifest, tmp_path: Path) -> None:
    """A loaded state decides, whatever the method did before."""
    settings = config(clip_set, tmp_path, *CMA)
    method, other = (build_method(settings, usable_instances(clip_set, settings)).train() for _ in range(2))
    fresh = {name: value.clone() for name, value in method.state_dict().items()}
    batch = first_batch(clip_set, settings, method)
    optimizer = build_optimizer(method.named_parameters(), settings.optim)
    train_step(method, optimizer, batch, settings, Progress(0, 0, 4))
    method.on_epoch(1)
    assert method.mined
    assert method.log_z_is_set
    other.load_state_dict(method.state_dict())
    assert other.mined
    assert other.log_z_is_set
    other.load_state_dict(fresh)
    assert not other.mined
    assert not other.log_z_is_set
    assert torch.equal(other.banks["audio"].valid_ids, method.banks["audio"].valid.nonzero().squeeze(1))


@pytest.mark.parametrize("delayed", [False, True])
def test_metrics_that_are_not_finite_stop_the_run(tmp_path: Path, delayed: bool) -> None:
    check = FiniteCheck(tmp_path / "last.pt", delayed=delayed)
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("inf")])
    names = ["encoders.a", "encoders.b"]
    check.add(0, torch.tensor(1.0), GradientNorms(names, good, good.norm()))
    message = r"step 1: loss is 2\.0, gradient norm inf, .*such a gradient: encoders\.b \(1 in all\); no checkpoint was"
    if delayed:
        check.add(1, torch.tensor(2.0), GradientNorms(names, bad, bad.norm()))
        with pytest.raises(TrainingError, match=message):
            check.settle()  # as before every checkpoint
        check.settle()
    else:
        with pytest.raises(TrainingError, match=message):
            check.add(1, torch.tensor(2.0), GradientNorms(names, bad, bad.norm()))


def test_channels_last_reaches_a_kernel_of_one_channel() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(3, 4, 3))
    before = [parameter.clone() for parameter in network.parameters()]
    to_channels_last(network)
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), before, strict=True))
    assert network[0].weight.stride() == (9, 1, 3, 1)
    assert network[0](torch.randn(2, 1, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    assert network[2].weight.is_contiguous(memory_format=torch.channels_last_3d)


COMPILED = """
import torch
torch.set_grad_enabled(False)  # a backward graph takes as long again
from torch._dynamo.utils import counters
from avssl.models.heads import mlp
from avssl.models.momentum import MomentumCopy
from avssl.training.setup import compile_encoders
method = torch.nn.Module()
method.views = ("video", "audio")
method.encoders = torch.nn.ModuleDict({"video": mlp([4, 2])})
method.networks = dict(method.encoders.items())
method.target = MomentumCopy({"video": method.encoders["video"], "video_head": mlp([2, 2])})
names = list(method.state_dict())
x = torch.ones(2, 4)
expected = method.encoders["video"](x)
compile_encoders(method, torch.device("cpu"))
assert method.target["video"]._compiled_call_impl is not None
assert method.target["video_head"]._compiled_call_impl is None
assert list(method.state_dict()) == names
torch.testing.assert_close(method.encoders["video"](x), expected)
before = counters["stats"]["unique_graphs"]
method.encoders["video"](torch.ones(3, 4))
assert counters["stats"]["unique_graphs"] == before + 1  # another shape is compiled, not run eagerly
torch._dynamo.config.recompile_limit = 2
try:
    method.encoders["video"](torch.ones(5, 4))
except torch._dynamo.exc.FailOnRecompileLimitHit:
    print("refused")
"""


@pytest.mark.processes
@pytest.mark.parametrize("compiler", ["g++", "no-such-compiler"])
def test_compiled_encoders_keep_their_names_and_a_missing_compiler_is_said(tmp_path: Path, compiler: str) -> None:
    if compiler == "g++" and not shutil.which(compiler, path="/usr/bin:/bin"):
        pytest.skip("no g++ here")
    environment = {"PATH": "/usr/bin:/bin", "CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment["TORCHINDUCTOR_VEC_ISA_OK"] = "0"  # without looking for vector instructions, by three compilations
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
    if compiler == "g++":
        assert done.returncode == 0, done.stderr
        assert done.stdout == "refused\n"  # more shapes than views, which would silently fall back to eager
    else:
        assert "ConfigError: run.compile=true, but torch.compile fails here" in done.stderr
        assert "install a C++ compiler" in done.stderr
