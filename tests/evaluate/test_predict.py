"""What a classifier says of a file, against the same worked out by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch

from avssl.data.check import manifest_of_file
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.evaluate.predict import predict
from avssl.methods import build_method
from avssl.methods.avid import AVID
from avssl.models.heads import Classifier, describe_maps, side_by_side
from avssl.transforms.views import apply_views
from avssl.weights.load import Pretrained, run_of
from tests.support.runs import config
from tests.support.tiny import everything

CLASSES = ("walk", "run", "fly")


@pytest.fixture(scope="module")
def pretrained(clip_set: Manifest) -> Pretrained:
    settings = config(clip_set, Path("none"))
    return run_of(build_method(settings, everything(4)), settings, path=Path("none"))


def vectors_of(pretrained: Pretrained, path: Path, *, num_clips: int) -> dict[str, dict[str, torch.Tensor]]:
    """{video, audio: {map: (C, d)}, both: {pool: (C, d)}}."""
    dataset = ClipDataset(manifest_of_file(path), pretrained.data, AVID.views, num_eval_clips=num_clips)
    batch = apply_views(collate([dataset[Key(0, 0, clip)] for clip in range(num_clips)]), AVID.views, pretrained.data)
    seen = {"video": batch.video["video"], "audio": batch.audio["audio"]}
    maps = {side: describe_maps(pretrained.encoders[side].forward_features(x)) for side, x in seen.items()}
    return maps | {"both": {"pool": side_by_side(maps["video"]["pool"], maps["audio"]["pool"])}}


def test_scores_are_the_mean_softmax_of_clips_on_any_map_of_any_side(
    pretrained: Pretrained, clip_set: Manifest
) -> None:
    path = clip_set.path(0)
    torch.manual_seed(0)
    with torch.inference_mode():
        for side, maps in vectors_of(pretrained, path, num_clips=2).items():
            for stage in {"conv3x", "pool"} & maps.keys():
                classifier = Classifier(maps[stage].shape[1], CLASSES, modality=side, stage=stage).eval()
                told = predict(dataclasses.replace(pretrained, classifier=classifier), path, num_clips=2, num_crops=1)
                expected = classifier(maps[stage]).softmax(dim=1).mean(dim=0)
                assert tuple(told) == CLASSES
                torch.testing.assert_close(torch.tensor(list(told.values())), expected, msg=f"{side} {stage}")
