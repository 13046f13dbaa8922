"""BYOL: the symmetric loss in closed form, and a target that follows after the optimizer step."""

import torch
import torch.nn.functional as F

from avssl.structs import Progress
from tests.support.contract import batch_of, build

START = Progress(0, 0, 10)


def test_the_loss_is_the_squared_distance_of_both_directions() -> None:
    method = build("byol").eval()
    batch = batch_of(method, 0)
    step = method(batch, START)
    with torch.no_grad():
        z = [method.heads["video"](method.encoders["video"](batch.video[v])) for v in ("video", "video.1")]
        t = [method.target["video_head"](method.target["video"](batch.video[v])) for v in ("video", "video.1")]
        p = [F.normalize(method.predictors["video"](each), dim=1) for each in z]
        distance = [(p[i] - F.normalize(t[1 - i], dim=1)).square().sum(dim=1).mean() for i in range(2)]
    torch.testing.assert_close(step.loss, distance[0] + distance[1])


def test_the_target_follows_the_new_weights_by_a_rising_momentum() -> None:
    method = build("byol")
    step = method(batch_of(method, 0), START)
    before = {name: value.clone() for name, value in method.target.named_parameters()}
    with torch.no_grad():
        for parameter in (*method.encoders.parameters(), *method.heads.parameters()):
            parameter += 1
    online = {"networks.video." + n: p for n, p in method.encoders["video"].named_parameters()}
    online |= {"networks.video_head." + n: p for n, p in method.heads["video"].named_parameters()}
    for done, momentum in ((0, 0.9), (5, 0.95), (10, 1.0)):
        method.after_step(step, Progress(0, done, 10))
        for name, value in method.target.named_parameters():
            torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * online[name])
        before = {name: value.clone() for name, value in method.target.named_parameters()}
    assert not any(value.requires_grad for value in method.target.parameters())


def test_across_modalities_each_predicts_the_other_ones_target() -> None:
    method = build("byol across").eval()
    batch = batch_of(method, 0)
    step = method(batch, START)
    given = {"video": batch.video["video"], "audio": batch.audio["audio"]}
    with torch.no_grad():
        p, t = {}, {}
        for name, x in given.items():
            p[name] = F.normalize(method.predictors[name](method.heads[name](method.encoders[name](x))), dim=1)
            t[name] = F.normalize(method.target[f"{name}_head"](method.target[name](x)), dim=1)
        distance = [
            (p[one] - t[two]).square().sum(dim=1).mean() for one, two in (("video", "audio"), ("audio", "video"))
        ]
    torch.testing.assert_close(step.loss, distance[0] + distance[1])
