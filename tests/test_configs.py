"""Every configuration in configs/ loads, says where it comes from, and carries the numbers that it claims."""

from pathlib import Path

import pytest

from avssl.config import Config, load, merge_options
from avssl.methods import METHODS

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
AVID = 'Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021'
PAPERS = {  # of each method
    "avid": AVID,
    "avid_cma": AVID,
    "infonce": 'van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", arXiv',
}


def options_of(config: Config) -> object:
    given = dict(config.method)
    name = given.pop("name")
    return merge_options(METHODS[name][1], given, where=name)


def header(path: Path) -> str:
    """The leading comment as one line."""
    lines = path.read_text().splitlines()
    length = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:length])


def test_there_is_a_config_of_every_method_for_every_set() -> None:
    sets = ("toy", "digits", "kinetics")
    assert all((CONFIGS / name / f"{method}.yaml").exists() for name in sets for method in METHODS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_loads_and_its_options_are_the_methods(path: Path) -> None:
    config = load(path)
    assert config.method["name"] == path.stem
    options_of(config)
    assert config.run.dir == f"runs/{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_header_names_paper_and_result(path: Path) -> None:
    text = header(path)
    assert f"Paper: {PAPERS[path.stem]}" in text
    assert "not measured" in text or "README.md" in text  # a result has its source, or is not claimed


@pytest.mark.parametrize("name, epochs", [("avid", 30), ("avid_cma", 20)])
def test_kinetics_is_the_published_recipe(name: str, epochs: int) -> None:
    config = load(CONFIGS / "kinetics" / f"{name}.yaml")
    data, model, optim = config.data, config.model, config.optim
    assert (data.num_frames, data.fps, data.size) == (8, 16, 224)
    assert (data.min_crop_area, data.flip, data.jitter) == (0.08, 0.5, [0.4, 0.4, 0.4, 0.2])
    assert (data.audio_seconds, data.sample_rate, data.max_offset_seconds) == (2, 24000, 0.5)
    assert (data.spectrogram, data.n_fft, data.hop_seconds, data.volume_jitter) == ("avid", 512, 0.01, 0.1)
    assert (data.clips_per_video, data.batch_size) == (10, 4 * 256)  # 4 nodes
    assert (model.video, model.video_depth, model.video_width) == ("r2plus1d_avid", None, 1)  # its own depth: 18
    assert (model.audio, model.audio_depth, model.audio_width) == ("conv2d_avid", None, 1)  # its own depth: 10
    assert (optim.name, optim.lr, optim.weight_decay, optim.betas) == ("adam", 2e-4, 1e-5, [0.9, 0.999])
    assert (optim.schedule, optim.milestones, optim.warmup_epochs) == ("multistep", [], 0)  # a constant rate
    assert (optim.epochs, optim.clip_norm, config.run.sync_batchnorm) == (epochs, None, False)
    options = options_of(config)
    assert (options.num_negatives, options.temperature, options.bank_momentum) == (1024, 0.07, 0.5)
    assert (options.embedding_dim, options.hidden_dim, options.head_batch_norm) == (128, 512, False)
    assert (options.cross, options.within) == (1, 0)
    if name == "avid_cma":
        assert (options.num_positives, options.rule, options.mine_every, options.mine_from_epoch) == (
            32,
            "consensus",
            5,
            0,
        )
        assert (options.num_negatives_within, options.positives_within, options.positives_cross) == (64, 1, 0)
        assert model.init == "runs/kinetics/avid"


@pytest.mark.parametrize("name, num_positives", [("toy", 5), ("digits", 64), ("kinetics", 32)])
def test_avid_cma_continues_its_neighbour(name: str, num_positives: int) -> None:
    avid, cma = (load(CONFIGS / name / f"{method}.yaml") for method in ("avid", "avid_cma"))
    assert cma.data == avid.data
    assert cma.model.init == avid.run.dir
    cma.model.init = avid.model.init
    assert cma.model == avid.model
    options, before = options_of(cma), options_of(avid)
    assert options.num_positives == num_positives
    for shared in ("embedding_dim", "hidden_dim", "head_batch_norm", "temperature", "num_negatives"):
        assert getattr(options, shared) == getattr(before, shared), shared
