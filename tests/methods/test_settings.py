"""Every field of every section and method with values that may not work: refused in one sentence, or taken for a
reason.
"""

from pathlib import Path
from typing import Any

import pytest

from avssl.config import Config, ConfigError, DataConfig, ModelConfig, OptimConfig, PolicyConfig, RunConfig, from_dict
from avssl.data.manifest import Manifest
from avssl.methods import METHODS, method_options
from avssl.training.loop import train
from avssl.training.setup import set_up
from tests.support.runs import config

SECTIONS = {"data": DataConfig, "data.policy": PolicyConfig, "model": ModelConfig, "optim": OptimConfig}
SECTIONS |= {"run": RunConfig, **{f"method {name}": method.Options for name, method in METHODS.items()}}
HEADS = ("avid", "avid_cma", "infonce", "neighbour", "patch", "walk")
TWO_VIEWS = ("simclr", "moco_v3", "byol", "simsiam", "barlow", "vicreg", "sigreg")
TEXT = {  # any words are a name; what is not there is refused when the run is set up
    *("data.manifest", "data.root", "data.split", "model.video", "model.audio", "model.video_weights"),
    *("model.audio_weights", "model.init", "run.dir", "method patch.tracks"),
}
SWITCHES = {
    *("optim.decay_norm_and_bias", "optim.nesterov", "run.channels_last", "run.compile", "run.sync_batchnorm"),
    *(f"method {name}.head_batch_norm" for name in HEADS),
    *("method cpc.maps", "method barlow.predictor", "method barlow.stop_gradient"),
    *("method simsiam.constant_predictor_rate", "method avid_cma.mine_in_background"),
    *(f"method {name}.shard_bank" for name in ("avid", "avid_cma", "neighbour", "npid", "pirl")),
}
ZERO = {  # reason: fields that are taken as 0
    "none of it happens": {
        *("data.cache_gigabytes", "data.flip", "data.jitter_probability", "data.gray", "data.blur", "data.solarize"),
        *("data.background", "data.time_mask", "data.band_mask"),
        *("data.max_offset_seconds", "data.volume_jitter", "optim.weight_decay", "optim.momentum", "optim.gamma"),
        *("method walk.dropout", "method finetune.dropout", "method swav.num_small", "method neighbour.num_far"),
        *(f"method {name}.adversarial" for name in TWO_VIEWS),
        *("method avid_cma.mine_every",),  # mined once
        *("run.probe_clips",),
    },
    "a term of the loss is left out": {
        *(f"method {name}.{term}" for name in ("avid", "avid_cma") for term in ("cross", "within")),
        *(
            "method pirl.weight",
            "method barlow.off_diagonal_weight",
            "method sigreg.weight",
            *(f"method vicreg.{term}" for term in ("invariance", "variance", "covariance")),
            "method avid_cma.positives_within",
            "method avid_cma.positives_cross",
            "method neighbour.intra",
        ),
    },
    "nothing of the old vector is kept": {
        *(f"method {name}.bank_momentum" for name in ("avid", "avid_cma", "neighbour", "npid", "pirl")),
        *(f"method {name}.momentum" for name in ("neighbour", "byol", "moco", "moco_v3", "predict")),
    },
    "a number that is counted from 0": {
        *("run.seed", "data.num_workers", "optim.warmup_epochs", "method finetune.warmup_epochs"),
        *("method avid_cma.mine_from_epoch", "method swav.freeze_steps", "method swav.queue_from_epoch"),
        *(
            "method pretext.gap",
            "method cpc.skip",
            "method patch.hard_from_epoch",
            "method swav.queue_size",
            "method avid.in_batch_epochs",
            "method avid_cma.in_batch_epochs",
        ),
    },
    "the same seconds": {"method neighbour.intra_seconds"},
    "a cosine": {"method avid_cma.min_score"},
    "weights that stand still: a control": {"optim.lr", "optim.lr_per_256", "optim.final_lr"},
}
NULL = {  # the encoder's own, all of them, or none
    *("data.root", "data.split", "model.video_depth", "model.audio_depth", "model.video_weights", "model.init"),
    *("model.audio_weights", "optim.lr_per_256", "optim.clip_norm", "run.num_threads", "run.max_steps"),
    *("method avid.num_negatives_within", "method avid_cma.num_negatives_within", "method neighbour.num_queries"),
    *(
        "method cpc.num_negatives",
        "method neighbour.max_seconds",
        "method neighbour.min_far_seconds",
        "method neighbour.momentum",
    ),
}
TWO_VIEWS = ("byol", "moco", "moco_v3", "simclr", "simsiam", "barlow", "vicreg", "sigreg")
NO_CHANGES = {
    *("data.policy", "method neighbour.further", "method swav.small", "method pirl.transformed"),
    *(f"method {name}.{branch}" for name in TWO_VIEWS for branch in ("first", "second")),
}
TAKEN: list[tuple[Any, set[str]]] = [
    ("0", TEXT | SWITCHES | set().union(*ZERO.values())),
    ("-1", TEXT | {"method avid_cma.min_score"}),
    *((words, TEXT) for words in ("nan", ".inf", "words")),
    ("true", TEXT | SWITCHES),
    (None, NULL),
    ([], {"optim.milestones", "run.loggers"}),
    ({}, NO_CHANGES),
]


def read(field: str, value: object) -> Config:
    """A configuration with one value, and its method's options read."""
    section, _, name = field.rpartition(".")
    given: dict[str, Any] = {"data": {"manifest": "m"}, "run": {"dir": "r"}}
    if section.startswith("method "):
        method = section.removeprefix("method ")
        given["method"] = {"name": method, **({"tracks": "t"} if method == "patch" else {}), name: value}
    elif section == "data.policy":
        given["data"]["policy"] = {name: value}
    else:
        given.setdefault(section, {})[name] = value
    result = from_dict(given, source="test")
    method_options(result)
    return result


def problem_of(field: str, value: object) -> str | None:
    try:
        read(field, value)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("value, taken", TAKEN, ids=[str(value) for value, _ in TAKEN])
def test_every_field_refuses_what_cannot_work(value: object, taken: set[str]) -> None:
    found = set()
    for section, options in SECTIONS.items():
        for name in options.model_fields:
            field = f"{section}.{name}"
            if (problem := problem_of(field, value)) is None:
                found.add(field)
                continue
            assert "\n" not in problem
            assert name in problem
            assert any(word in problem for word in ("expected", "must be a mapping", "needs", "far begins"))
    assert found == taken


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("method patch.temperature", "0.0", r"temperature=0\.0 in method patch: expected a number above 0"),
        ("method walk.dropout", "1.0", r"dropout=1\.0 in method walk: expected a number of at least 0 and below 1"),
        (
            "method avid.bank_momentum",
            "5",
            r"bank_momentum=5 in method avid: .* and below 1, such as 0\.5",
        ),
        ("method swav.small", {"size": 0}, r"method swav: size=0 in small: expected a whole number of at least 1"),
        ("method byol.first", {"blurr": 1}, r"method byol: unknown key blurr in first: did you mean blur"),
        ("optim.betas", ["0.9"], r"optim\.betas=\[0\.9\] in test: expected a list of 2, each a number of at least 0"),
        ("optim.momentum", "1", r"optim\.momentum=1 in test: expected a number of at least 0 and below 1"),
        ("run.seed", str(2**64), r"run\.seed=18446744073709551616 in test: expected a whole number of at least 0 and"),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(field, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.batch_size=1"], "data.batch_size=1 on 1 processes .* leaves BatchNorm one clip to normalize over"),
        (["optim.accumulate=4"], "with optim.accumulate=4 leaves BatchNorm one clip to normalize over: at least 2"),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.nesterov=true needs optim.momentum above 0"),
        (["data.size=8"], r"R2Plus1DAvid input of shape \(1, 3, 2, 8, 8\): too small"),
        (["data.hop_seconds=1e-9"], r"hop_seconds=1e-09 is not even a sample at 8000 Hz"),
        (["data.audio_seconds=0.01"], "80 samples are too few for a window of 256"),
        (["data.hop_seconds=10"], "Conv2DAvid input of shape .*: too small"),
        (["data.num_mels=999"], r"num_mels=999: \d+ of these bands hold no frequency bin"),
        (["model.video_width=1e-9", "model.video=words"], "model.video=words is not an encoder"),
        (["model.video_depth=11"], "r2plus1d_avid depth=11: expected one of 18, 10|10, 18"),
        (["model.video_weights=words"], "words"),
        (["method.within=0", "method.cross=0"], r"method\.cross=0 and method\.within=0 leave nothing to learn"),
    ],
)
def test_values_that_do_not_go_together_are_refused_before_anything_is_written(
    clip_set: Manifest, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        set_up(config(clip_set, tmp_path / "run", *overrides))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_is_taken_as_0_trains(clip_set: Manifest, tmp_path: Path) -> None:
    taken = {field: section for fields in ZERO.values() for field in fields for section in [field.partition(".")[0]]}
    common = [f"{field}=0" for field, section in taken.items() if section in ("data", "optim")]
    own = [f"method.{f.partition('.')[2]}=0" for f, s in taken.items() if s == "method avid" and "cross" not in f]
    train(config(clip_set, tmp_path, *common, *own, "optim.lr_per_256=null", "run.max_steps=1", "optim.name=sgd"))
    assert (tmp_path / "last.pt").exists()
