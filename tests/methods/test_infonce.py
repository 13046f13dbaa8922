"""In-batch InfoNCE between video and audio: against cross-entropy, and what a clip without audio does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avssl.methods.infonce import InfoNCE, InfoNCEOptions
from avssl.structs import Instances, Progress
from tests.support.tiny import LinearEncoder, encode, everything, vector_batch

START = Progress(epoch=0, step=0, num_steps=1)


def build(num: int = 20, *, temperature: float = 0.1) -> InfoNCE:
    torch.manual_seed(0)
    encoders = nn.ModuleDict({"video": LinearEncoder(), "audio": LinearEncoder()})
    options = InfoNCEOptions(temperature=temperature, embedding_dim=8, hidden_dim=16)
    return InfoNCE(options, encoders, instances=everything(num), seed=0)


def embeddings(method: InfoNCE, batch) -> dict[str, torch.Tensor]:
    ask = encode(method, batch)
    return {view: F.normalize(method.heads[view](ask(view)), dim=1).detach() for view in ("video", "audio")}


def test_loss_is_symmetric_cross_entropy() -> None:
    method, batch = build(), vector_batch(torch.tensor([3, 7, 1, 12, 5]))
    z = embeddings(method, batch)
    scores = z["video"] @ z["audio"].T / 0.1
    own = torch.arange(5)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(method(batch, START).loss, expected)


@pytest.mark.parametrize("missing, other", [("audio", "video"), ("video", "audio")])
def test_a_missing_side_is_no_column_and_has_no_row(missing: str, other: str) -> None:
    method, ids = build(), torch.tensor([3, 7, 1, 12])
    has = torch.tensor([True, False, True, True])
    step = method(vector_batch(ids, **{f"has_{missing}": has}), START)
    z = embeddings(method, vector_batch(ids))
    scores = z[other] @ z[missing].T / 0.1
    kept, own = has.nonzero().squeeze(1), torch.arange(3)
    torch.testing.assert_close(step.logs[f"{other[0]}2{missing[0]}"], F.cross_entropy(scores[kept][:, kept], own))
    # all four of the other modality are columns for the three that have both
    torch.testing.assert_close(step.logs[f"{missing[0]}2{other[0]}"], F.cross_entropy(scores.T[kept], kept))
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_two_clips_of_one_video_are_each_others_positives() -> None:
    method, batch = build(), vector_batch(torch.tensor([3, 3, 8]))
    z = embeddings(method, batch)
    scores = z["video"] @ z["audio"].T / 0.1
    each = [torch.log1p((scores[i, 2] - scores[i, j]).exp()) for i in (0, 1) for j in (0, 1)]
    rows = [(each[0] + each[1]) / 2, (each[2] + each[3]) / 2, torch.logsumexp(scores[2], 0) - scores[2, 2]]
    torch.testing.assert_close(method(batch, START).logs["v2a"], torch.stack(rows).mean())


def test_a_set_without_audio_is_refused() -> None:
    silent = Instances(torch.ones(4) > 0, torch.zeros(4) > 0, torch.ones(4) > 0)
    encoders = nn.ModuleDict({"video": LinearEncoder(), "audio": LinearEncoder()})
    with pytest.raises(ValueError, match="no clip of this split has both video and audio"):
        InfoNCE(InfoNCEOptions(), encoders, instances=silent, seed=0)
