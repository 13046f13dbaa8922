"""The encoders as a loss asks them: once for each view, with gradients, and with statistics of the right views only."""

import weakref

import pytest
import torch
from torch import nn

from avssl.config import DataConfig, Options, from_dict
from avssl.methods import build_method
from avssl.methods.base import Encode, Method
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.views import View, multi_crop
from tests.support.tiny import everything

NUM, DIM = 6, 4


class CountingEncoder(nn.Module):
    """A convolution, BatchNorm and a mean; counts its passes."""

    dim, min_size = DIM, (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(3, DIM, 1)
        self.norm = nn.BatchNorm3d(DIM)
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_features(x)["pool"]

    def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.sizes.append(len(x))
        maps = self.norm(self.layer(x))
        return {"conv": maps, "pool": maps.mean(dim=(2, 3, 4))}


def some_batch(views: tuple[View, ...], *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def size(view: View) -> int:
        return dict(view.changes).get("size", 8)

    return Batch(
        video={view.name: torch.randn(NUM, 3, 2, size(view), size(view), generator=generator) for view in views},
        audio={},
        ids=torch.arange(NUM),
        start={view.name: torch.zeros(NUM, dtype=torch.float64) for view in views},
        has_audio=torch.zeros(NUM, dtype=torch.bool),
        has_video=torch.ones(NUM, dtype=torch.bool),
        params={},
        padded={view.name: torch.zeros(NUM, dtype=torch.bool) for view in views},
    )


VIEWS = multi_crop(2, 1, small={"size": 4})


@pytest.fixture
def encode() -> tuple[Encode, CountingEncoder, Batch]:
    torch.manual_seed(0)
    encoder, batch = CountingEncoder(), some_batch(VIEWS)
    return Encode(nn.ModuleDict({"video": encoder}), VIEWS, batch), encoder, batch


def test_a_view_passes_once_and_a_group_once_more(encode) -> None:
    ask, encoder, _ = encode
    assert ask("video") is ask("video")
    assert encoder.sizes == [NUM]
    one, two = ask.together(["video", "video.1"])
    assert encoder.sizes == [NUM, 2 * NUM]
    assert ask.together(("video", "video.1"))[0] is one
    assert one.shape == two.shape == (NUM, DIM)
    assert not torch.allclose(one, ask("video"), atol=1e-3)  # BatchNorm saw both views
    joint = torch.cat([one, two])
    torch.testing.assert_close(joint.mean(dim=0), torch.zeros(DIM), atol=1e-5, rtol=0)


def test_stages_and_changed_pixels_are_not_kept(encode) -> None:
    ask, encoder, batch = encode
    maps = ask("video", stage="conv")
    assert maps.shape == (NUM, DIM, 2, 8, 8)
    other = ask("video", x=batch.video["video"].flip(-1) * 2)
    assert len(encoder.sizes) == 2
    assert not torch.equal(ask("video"), other)
    torch.testing.assert_close(ask("video"), maps.mean(dim=(2, 3, 4)))
    many = ask("video", x=torch.randn(NUM, 5, 3, 2, 8, 8))
    assert many.shape == (NUM, 5, DIM)


def test_gradients_are_recorded_whatever_the_caller_says(encode) -> None:
    ask, encoder, _ = encode
    with torch.no_grad():
        quiet = ask("video")
    ask("video").sum().backward()
    assert quiet.requires_grad
    assert encoder.layer.weight.grad is not None


def test_an_undeclared_view_is_refused(encode) -> None:
    with pytest.raises(ValueError, match=r"view audio is asked for, but the method declares video, video\.1, small\.0"):
        encode[0]("audio")


@pytest.mark.parametrize("first", ["video", "small.0"])
def test_only_views_like_the_exported_one_move_statistics(encode, first) -> None:
    """Whatever comes first, and with the batch's own statistics in every output."""
    ask, encoder, batch = encode
    alone = CountingEncoder()
    alone.load_state_dict(encoder.state_dict())
    alone(batch.video["video"])
    for view in (first, "small.0", "video"):
        ask(view)
    torch.testing.assert_close(encoder.norm.running_mean, alone.norm.running_mean)
    assert encoder.norm.num_batches_tracked == 1
    small = ask("small.0")
    torch.testing.assert_close(small.mean(dim=0), torch.zeros(DIM), atol=1e-5, rtol=0)


def test_without_a_view_like_the_exported_one_all_move_them() -> None:
    views = (View("a", changes={"size": 4}), View("b", changes={"size": 4, "num_frames": 2}))
    encoder = CountingEncoder()
    ask = Encode(nn.ModuleDict({"video": encoder}), views, some_batch(views))
    ask("a"), ask("b")
    assert encoder.norm.num_batches_tracked == 2


class Forgetful(Method):
    Options = Options
    modalities = ("video",)
    views = (View("video"), View("video.1"))

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        return Step(encode("video").sum())


def test_a_declared_view_that_is_never_asked_for_is_an_error() -> None:
    every = torch.ones(NUM, dtype=torch.bool)
    encoders = nn.ModuleDict({"video": CountingEncoder()})
    method = Forgetful(Options(), encoders, instances=Instances(every, every, every), seed=0)
    batch = some_batch(Forgetful.views)
    with pytest.raises(RuntimeError, match=r"Forgetful declares the views video\.1 and never encodes them"):
        method(batch, Progress(0, 0, 1))
    method.find_unused_parameters = True
    assert method(batch, Progress(0, 0, 1)).loss.isfinite()


def test_a_group_with_an_exported_view_moves_statistics() -> None:
    views = (View("video"), View("turned", recipe="rotation"))
    encoder = CountingEncoder()
    ask = Encode(nn.ModuleDict({"video": encoder}), views, some_batch(views))
    ask.together(["video", "turned"])
    assert encoder.norm.num_batches_tracked == 1


def test_a_batch_in_parts_keeps_no_activations_and_moves_statistics_once() -> None:
    encoder, batch = CountingEncoder(), some_batch(VIEWS)
    maps: list[weakref.ref] = []
    encoder.layer.register_forward_hook(lambda module, given, out: maps.append(weakref.ref(out)))
    ask = Encode(nn.ModuleDict({"video": encoder}), VIEWS, batch, num_parts=3)
    one, two = ask.together(["video", "video.1"])
    alone = ask("video", x=batch.video["video"] * 2, stage="conv")
    assert encoder.sizes == [4, 4, 4, 2, 2, 2]  # two rows of both views, whose BatchNorm is joint
    assert encoder.norm.num_batches_tracked == 6
    assert not any(map() is not None for map in maps)
    (one.sum() + two.square().sum() + alone.square().sum()).backward()
    assert encoder.sizes[6:] == [2, 2, 2, 4, 4, 4]
    assert encoder.norm.num_batches_tracked == 6
    torch.testing.assert_close(one[:2].sum(0) + two[:2].sum(0), torch.zeros(DIM), atol=1e-5, rtol=0)


def test_a_change_to_the_configured_value_is_none() -> None:
    data = DataConfig(manifest="m", size=8)
    assert View("a", changes={"size": 8, "blur": 0.5}).applied(data) == View("a", changes={"blur": 0.5})
    given = {"data": {"manifest": "m", "size": 48}, "run": {"dir": "r"}}
    byol = {"name": "byol", "hidden_dim": 16, "first": {"size": "48"}, "second": {"size": 32, "solarize": 0.0}}
    method = build_method(from_dict(given | {"method": byol}, source="test"), everything(4))
    assert [dict(view.changes) for view in method.views] == [{"blur": 1.0}, {"blur": 0.1, "size": 32}]


@pytest.mark.parametrize("changes", [{"num_frames": 1}, {"size": 4}, {"fps": 1.0}])
def test_unequal_branches_move_statistics_by_the_one_that_is_exported(changes: dict) -> None:
    views = (View("video"), View("other", changes=changes))
    encoder = CountingEncoder()
    ask = Encode(nn.ModuleDict({"video": encoder}), views, some_batch(views))
    ask("other"), ask("video")
    assert encoder.norm.num_batches_tracked == (2 if "fps" in changes else 1)
