"""Several methods in one run: equal views are one view, others of the same name are told apart, also inside Same."""

from typing import Any

import pytest
import torch

from avssl.config import ConfigError, from_dict
from avssl.methods import build_method
from avssl.methods.joint import Joint
from avssl.structs import Instances, Progress
from avssl.transforms.views import Same, View
from tests.support.contract import HEAD, SWAV, batch_of

BYOL = {"hidden_dim": 16, "embedding_dim": 8}
NUM = 16


def build(parts: dict[str, Any]) -> Joint:
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": "joint", "parts": parts},
        "run": {"dir": "none"},
    }
    every = torch.ones(NUM, dtype=torch.bool)
    return build_method(from_dict(given, source="test"), Instances(every, every, every))


def test_equal_views_are_one_and_others_get_the_name_of_their_part() -> None:
    joint = build({"avid": HEAD, "neighbour": HEAD, "byol": BYOL, "swav": SWAV})
    assert [view.name for view in joint.views] == [
        *("video", "audio"),  # of avid; video of neighbour and swav is equal
        "video.1",  # of neighbour, anywhere in the clip
        *("byol/video", "byol/video.1"),  # blurred more often
        *("swav/video.1", "small.0", "small.1"),  # of the same seconds
    ]
    when = {view.name: view.when for view in joint.views}
    assert when["byol/video.1"] == Same("byol/video")
    assert when["swav/video.1"] == when["small.0"] == Same("video")
    assert joint.names["byol"] == {"video": "byol/video", "video.1": "byol/video.1"}


def test_byol_with_avid_learns_as_it_does_alone_from_its_own_views() -> None:
    joint = build({"avid": HEAD | {"num_negatives": 4}, "byol": BYOL}).eval()
    batch = batch_of(joint, 0)
    step = joint(batch, Progress(0, 0, 10))
    byol = joint.parts["byol"]
    own = {name: batch.video[key] for name, key in joint.names["byol"].items()}
    alone = byol(
        batch.map(lambda x: x).__class__(
            **{**vars(batch), "video": own, "audio": {}, "start": {name: batch.start["video"] for name in own}}
            | {"padded": {name: batch.padded["video"] for name in own}, "params": {}}
        ),
        Progress(0, 0, 10),
    )
    torch.testing.assert_close(step.logs["byol/loss"], alone.loss.detach())
    torch.testing.assert_close(step.embeddings["byol/video"].z, alone.embeddings["video"].z)


def test_the_joint_run_tells_of_parameters_without_gradient() -> None:
    assert not build({"avid": HEAD, "byol": BYOL}).find_unused_parameters
    assert build({"avid": HEAD, "swav": SWAV | {"freeze_steps": 3}}).find_unused_parameters


def test_views_of_parts_are_values() -> None:
    joint = build({"byol": BYOL, "other": {"name": "byol", **BYOL}})
    assert [view.name for view in joint.views] == ["video", "video.1"]
    assert View("video", changes={"blur": 1.0}) in joint.views


def test_the_head_of_a_part_moves_its_statistics_with_the_views_of_that_part() -> None:
    """Which the exported encoder does not see, as all of them are smaller."""
    small = {"first": {"size": 16}, "second": {"size": 16}}
    joint = build({"byol": BYOL | small, "swav": SWAV}).train()
    joint(batch_of(joint, 0), Progress(0, 0, 10))
    tracked = [int(m.num_batches_tracked) for m in joint.parts["byol"].heads.modules() if hasattr(m, "running_mean")]
    assert tracked == [2]


def test_every_part_draws_by_itself() -> None:
    parts = {"one": {"name": "avid", **HEAD}, "two": {"name": "avid", **HEAD}}
    one, two = build(parts).parts.values()
    again = build(parts).parts["two"]
    draws = [torch.rand(9, generator=part.generator(Progress(0, 3, 9))) for part in (one, two, again)]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[1], draws[2])
    assert not torch.equal(one.banks["video"].z, two.banks["video"].z)
    assert torch.equal(two.banks["video"].z, again.banks["video"].z)


def test_a_part_cannot_mine_before_it_has_learned() -> None:
    cma = {"name": "avid_cma", "num_positives": 2, **HEAD}
    joint = build({"avid": HEAD, "cma": cma})
    with pytest.raises(ConfigError, match=r"^method\.parts\.cma\.mine_from_epoch=0 .* \(model\.init=RUN\)"):
        joint.check_start()
    build({"avid": HEAD, "cma": cma | {"mine_from_epoch": 1}}).check_start()
    joint.parts["cma"].log_z.fill_(1.0)
    joint.check_start()


def test_patches_and_small_crops_move_no_statistics_of_the_shared_encoder() -> None:
    parts = {"avid": HEAD, "swav": SWAV, "patch": HEAD | {"tracks": "none"}, "walk": HEAD}
    joint = build(parts).train()
    joint(batch_of(joint, 0), Progress(0, 0, 10), num_parts=4)
    norms = [module for module in joint.encoders["video"].modules() if hasattr(module, "running_mean")]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2 * 4}  # video and swav/video.1, in four parts
