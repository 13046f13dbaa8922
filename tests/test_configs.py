"""Every configuration in configs/ loads, says where it comes from, and carries the numbers that it claims."""

from pathlib import Path

import pytest
import torch

from avssl.config import Config, load, merge_options
from avssl.data.manifest import Manifest
from avssl.methods import METHODS, build_method
from avssl.structs import Instances, Progress
from avssl.training.setup import check_inputs, set_up
from avssl.training.step import train_step
from avssl.transforms.views import check_views

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted((CONFIGS / "evaluate").glob("*.yaml"))  # of fine-tuning: parts of a configuration
BASES = set((CONFIGS / "base").glob("*.yaml"))  # what others have in common
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - set(RECIPES) - BASES)
AVID = 'Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021'
OF_OWN_CLIPS = ("cpu", "one_gpu")  # folders of AVID's recipes by size
PAPERS = {  # of each method
    "avid": AVID,
    "avid_cma": AVID,
    "finetune": AVID,
    "infonce": 'van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", arXiv',
    "neighbour": 'Qian et al., "Spatiotemporal Contrastive Video Representation Learning", CVPR 2021',
    "neighbour_rho_moco": 'Feichtenhofer, Fan, Xiong, Girshick, He, "A Large-Scale Study on Unsupervised',
    "neighbour_cvrl": 'Qian, Meng, Gong, Yang, Wang, Belongie, Cui, "Spatiotemporal Contrastive Video Representation',
    "neighbour_vince": 'Gordon, Ehsani, Fox, Farhadi, "Watching the World Go By: Representation Learning from',
    "neighbour_seco": 'Yao, Zhang, Qiu, Pan, Mei, "SeCo: Exploring Sequence Supervision for Unsupervised',
    "byol": 'Grill et al., "Bootstrap Your Own Latent',
    "swav": 'Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by',
    "seer": 'Goyal, Caron, Lefaudeux, et al., "Self-supervised Pretraining of Visual Features in the Wild"',
    "npid": 'Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018',
    "moco": 'Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297',
    "moco_v3": 'Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021',
    "simclr": 'Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual',
    "simsiam": 'Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021',
    "barlow": 'Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction"',
    "vicreg": 'Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization',
    "sigreg": 'Balestriero, LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"',
    "predict": 'Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video"',
    "pirl": 'Misra, van der Maaten, "Self-Supervised Learning of Pretext-Invariant Representations", CVPR 2020',
    "cpc": 'van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", arXiv',
    "cpc_dpc": 'Han, Xie, Zisserman, "Video Representation Learning by Dense Predictive Coding", ICCV workshops 2019',
    "pretext_rotation": 'Jing, Yang, Liu, Tian, "Self-Supervised Spatiotemporal Feature Learning via Video Rotation',
    "pretext_position": 'Doersch, Gupta, Efros, "Unsupervised Visual Representation Learning by Context Prediction"',
    "pretext_jigsaw": 'Noroozi, Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles"',
    "pretext_order": 'Xu, Xiao, Zhao, Shao, Xie, Zhuang, "Self-Supervised Spatiotemporal Learning via Video Clip Order',
    "pretext_speed": 'Wang, Jiao, Liu, "Self-Supervised Video Representation Learning by Pace Prediction", ECCV 2020',
    "patch": 'Wang, Gupta, "Unsupervised Learning of Visual Representations using Videos", ICCV 2015',
    "walk": 'Jabri, Owens, Efros, "Space-Time Correspondence as a Contrastive Random Walk", NeurIPS 2020',
}


def options_of(config: Config, part: str | None = None) -> object:
    """Options of the method, or of a part of it."""
    given = dict(config.method if part is None else config.method["parts"][part])
    given.pop("weight", None)
    name = given.pop("name", part)
    return merge_options(METHODS[name].Options, given, where=name)


def header(path: Path) -> str:
    """The leading comment as one line."""
    lines = path.read_text().splitlines()
    length = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:length])


def test_there_is_a_config_of_every_method_for_every_set() -> None:
    def missing(name: str) -> set[str]:
        return {method for method in METHODS if not list((CONFIGS / name).glob(f"{method}*.yaml"))}

    assert missing("toy") == set()
    assert missing("kinetics") == {
        "npid",
        "moco",
        "moco_v3",
        "pirl",
        "simsiam",
        "barlow",
        "vicreg",
        "sigreg",
        "predict",
    }  # rho-MoCo, a setting of neighbour, stands for MoCo
    assert missing("digits") == {
        "neighbour",
        "patch",
        "walk",
        "joint",
        "finetune",
        "predict",
    }  # a digit that pans has no motion of its own


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_loads_and_its_options_are_the_methods(path: Path) -> None:
    config = load(path)
    name = config.method["name"]
    if path.parent.name in OF_OWN_CLIPS:
        assert name == "avid"
    else:
        assert path.stem == name or path.stem.startswith(f"{name}_") or (path.stem, name) == ("seer", "swav")
    options_of(config)
    for part in config.method.get("parts", {}):
        options_of(config, part)
    own = "runs/mine" if path.parent.name in OF_OWN_CLIPS else f"runs/{path.parent.name}/{path.stem}"
    assert config.run.dir == own


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name in ("toy", "digits", *OF_OWN_CLIPS)],
    ids=lambda path: f"{path.parent.name} {path.stem}",
)
def test_the_encoders_take_what_the_views_show(path: Path) -> None:
    config = load(path, ["method.tracks=none"] if path.stem == "patch" else [])
    every = torch.ones(2000, dtype=torch.bool)
    classes = {"target": torch.arange(2000) % 12, "classes": [str(i) for i in range(12)]}
    method = build_method(config, Instances(every, every, every, **classes if path.stem == "finetune" else {}))
    check_views(method.views, config.data)
    check_inputs(method, config.data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name == "toy" and path.stem not in ("patch", "joint")],  # without tracks
    ids=lambda path: path.stem,
)
def test_a_step_of_every_toy_recipe(path: Path, clip_set: Manifest, tmp_path: Path) -> None:
    small = [f"data.manifest={clip_set.root / 'manifest.parquet'}", f"run.dir={tmp_path}", "data.batch_size=4"]
    small += ["data.num_workers=0", "run.num_threads=1", "run.precision=float32", "model.init=null"]
    small += ["method.num_positives=2", "method.mine_from_epoch=1"] if path.stem == "avid_cma" else []
    config = load(path, small)
    run = set_up(config)
    done, norms = train_step(run.model, run.optimizer, next(iter(run.loader)), config, Progress(0, 0, 10))
    assert done.loss.isfinite()
    assert norms.total.isfinite()  # 0 where a queue is empty, or clips of a second are too short for a task


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_header_names_paper_and_result(path: Path) -> None:
    text = header(path)
    stems = [path.stem, path.stem.rpartition("_")[0], path.stem.partition("_")[0]]
    stems = ["avid"] if path.parent.name in OF_OWN_CLIPS else stems
    paper = "cpc_dpc" if path.match("kinetics/cpc.yaml") else next((stem for stem in stems if stem in PAPERS), None)
    named = f"Paper: {PAPERS[paper]}" if paper else "Papers: those of avid_cma.yaml, neighbour"  # joint
    assert named in text
    assert "not measured" in text or "docs/results/" in text  # a result has its source, or is not claimed


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_fine_tuning_are_the_published_ones(path: Path) -> None:
    text = header(path)
    assert AVID in text
    assert "not measured" in text
    own = {"data.manifest": "none", "run.dir": "none"}
    config = load(path, [f"{key}={value}" for key, value in own.items()])
    options, data, optim = options_of(config), config.data, config.optim
    name, frames = path.stem.split("_")
    assert frames == f"{data.num_frames}at{data.fps:g}"
    assert (options.dropout, options.warmup_epochs, optim.name, optim.lr, optim.weight_decay) == (
        0.5,
        5,
        "adam",
        1e-4,
        0,
    )
    after = {"ucf101": (16, [6, 10, 14]), "hmdb51": (10, [3, 6, 8])}[name]  # the warm-up comes before
    assert (optim.epochs - 5, [milestone - 5 for milestone in optim.milestones]) == after
    assert optim.gamma == 0.3
    assert data.batch_size == {8: 64, 32: 32}[data.num_frames]
    clips = {("ucf101", 8): 10, ("ucf101", 32): 5, ("hmdb51", 8): 25, ("hmdb51", 32): 10}
    assert data.clips_per_video == clips[name, data.num_frames]
    assert (data.size, data.min_crop_area) == (224, 0.08)
    assert data.jitter == ((0.4, 0.4, 0.4, 0.2) if name == "ucf101" else (1, 1, 1, 0.2))


@pytest.mark.parametrize("name, epochs", [("avid", 30), ("avid_cma", 20)])
def test_kinetics_is_the_published_recipe(name: str, epochs: int) -> None:
    config = load(CONFIGS / "kinetics" / f"{name}.yaml")
    data, model, optim = config.data, config.model, config.optim
    assert (data.num_frames, data.fps, data.size) == (8, 16, 224)
    assert (data.min_crop_area, data.flip, data.jitter) == (0.08, 0.5, (0.4, 0.4, 0.4, 0.2))
    assert (data.audio_seconds, data.sample_rate, data.max_offset_seconds) == (2, 24000, 0.5)
    assert (data.spectrogram, data.n_fft, data.hop_seconds, data.volume_jitter) == ("avid", 512, 0.01, 0.1)
    assert (data.clips_per_video, data.batch_size) == (10, 4 * 256)  # 4 nodes
    assert (model.video, model.video_depth, model.video_width) == ("r2plus1d_avid", None, 1)  # its own depth: 18
    assert (model.audio, model.audio_depth, model.audio_width) == ("conv2d_avid", None, 1)  # its own depth: 10
    assert (optim.name, optim.lr, optim.weight_decay, optim.betas) == ("adam", 2e-4, 1e-5, (0.9, 0.999))
    assert (optim.schedule, optim.milestones, optim.warmup_epochs) == ("multistep", (), 0)  # a constant rate
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


@pytest.mark.parametrize("name, num_positives", [("toy", 8), ("digits", 64), ("kinetics", 32)])
def test_avid_cma_continues_its_neighbour(name: str, num_positives: int) -> None:
    avid, cma = (load(CONFIGS / name / f"{method}.yaml") for method in ("avid", "avid_cma"))
    assert cma.data == avid.data
    assert cma.model == avid.model.replace(init=avid.run.dir)
    options, before = options_of(cma), options_of(avid)
    assert options.num_positives == num_positives
    for shared in ("embedding_dim", "hidden_dim", "head_batch_norm", "temperature", "num_negatives"):
        assert getattr(options, shared) == getattr(before, shared), shared


def test_published_neighbour_recipes() -> None:
    recipes = {
        name: load(CONFIGS / "kinetics" / f"neighbour_{name}.yaml") for name in ("rho_moco", "cvrl", "vince", "seco")
    }
    options = {name: options_of(config) for name, config in recipes.items()}
    assert {name: (o.num_clips, o.num_queries, o.temperature, o.embedding_dim) for name, o in options.items()} == {
        "rho_moco": (4, None, 0.1, 128),
        "cvrl": (2, None, 0.1, 128),
        "vince": (8, 4, 0.07, 64),
        "seco": (4, 1, 0.1, 128),
    }
    assert {name: o.momentum for name, o in options.items()} == {
        "rho_moco": 0.994, "cvrl": None, "vince": 0.999, "seco": 0.999,
    }  # fmt: skip
    assert {name: (o.negatives, o.queue_size) for name, o in options.items() if "queue" in o.negatives} == {
        "rho_moco": (("queue",), 65536),
        "vince": (("batch", "queue"), 65536),
        "seco": (("queue",), 131072),
    }
    assert [(o.interval, o.max_seconds) for o in options.values()] == [("uniform", None)] * 3 + [("halves", None)]
    assert {name: config.data.num_frames for name, config in recipes.items()} == {
        "rho_moco": 8, "cvrl": 16, "vince": 1, "seco": 1,
    }  # fmt: skip
    cvrl = recipes["cvrl"].data
    assert (cvrl.jitter, cvrl.blur, cvrl.solarize, cvrl.gray) == ((0.8, 0.8, 0.8, 0.2), 1.0, 0.0, 0.2)
    further = options["cvrl"].views()[1].settings(cvrl)
    assert (further.blur, further.solarize) == (0.1, 0.2)
    moco = recipes["rho_moco"].optim
    assert (moco.lr, moco.weight_decay * moco.lr) == pytest.approx((0.1 * 512 / 64 * 4, 1e-4 * 0.8))
    assert moco.nesterov


def test_joint_continues_avid_with_its_parts() -> None:
    joint, cma = (load(CONFIGS / "kinetics" / f"{name}.yaml") for name in ("joint", "avid_cma"))
    assert joint.model == cma.model
    assert options_of(joint, "avid_cma") == options_of(cma)
    assert set(joint.method["parts"]) == {"avid_cma", "neighbour", "patch"}
    toy = load(CONFIGS / "toy" / "joint.yaml")
    for name in ("neighbour", "patch"):
        assert options_of(toy, name) == options_of(load(CONFIGS / "toy" / f"{name}.yaml"))
