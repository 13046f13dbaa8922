"""Our weights in mteb: its own tasks in miniature, and vectors that are those of the file."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.data.manifest import Manifest
from avssl.training.loop import train
from avssl.weights.load import Pretrained, load
from tests.support.runs import config

mteb = pytest.importorskip("mteb", reason="the extra [mteb] is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = tmp_path_factory.mktemp("runs") / "avid"
    assert train(config(clip_set, folder, "optim.epochs=1"))
    return load(folder)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("task", ["VideoClassification", "VideoAudioClassification", "VideoAudioClusteringTask"])
def test_its_tasks_run(run: Pretrained, task: str, features: bool, tmp_path: Path) -> None:
    from mteb.mocks import mock_tasks

    from avssl.evaluate.mteb import MtebEncoder

    given = getattr(mock_tasks, f"Mock{task}")()
    cache = mteb.ResultCache(tmp_path)
    found = mteb.evaluate(MtebEncoder(run, features=features), given, cache=cache, encode_kwargs={"batch_size": 2})
    (result,) = found.task_results
    assert 0 <= result.get_score() <= 1
    assert found.model_name.startswith("avssl/")


def test_vectors_are_those_of_the_file(run: Pretrained, clip_set: Manifest) -> None:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    from avssl.evaluate.mteb import MtebEncoder

    path = clip_set.path(int(np.flatnonzero(clip_set.has_audio)[0]))
    sound = AudioDecoder(str(path)).get_all_samples()
    row = {
        "video": VideoDecoder(io.BytesIO(path.read_bytes())),
        "audio": {"array": sound.data.numpy(), "sampling_rate": sound.sample_rate},
    }
    loader = torch.utils.data.DataLoader([row, {"audio": row["audio"]}])
    both, heard = MtebEncoder(run, num_clips=2).encode(loader)
    expected = run.encode(path, num_clips=2).embedding
    assert heard @ expected["audio"][0] > 0.999
    mean = expected["video"][0] + expected["audio"][0]
    assert both @ mean / np.linalg.norm(mean) > 0.99  # frames are scaled by torch instead of the decoder
    features = MtebEncoder(run, num_clips=2, features=True).encode(loader)
    dim = run.encoders["video"].dim
    assert features.shape == (2, dim + run.encoders["audio"].dim)
    assert not features[1, :dim].any()
    with pytest.raises(ValueError, match=r"a row has text, .* take video, audio: choose tasks on these"):
        MtebEncoder(run).encode(torch.utils.data.DataLoader([{"text": "a dog"}]))
