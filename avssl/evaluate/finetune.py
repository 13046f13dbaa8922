"""Fine-tuning as an ordinary, resumable training run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from avssl import distributed
from avssl.config import ConfigError, PolicyConfig, from_dict, merge, read_sections, with_overrides
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.files import atomic_write
from avssl.methods import is_supervised
from avssl.training.checkpoint import LAST
from avssl.training.loop import train
from avssl.weights.load import Pretrained, Run, load_run

RECIPE = {  # AVID on UCF101: 5 epochs of the classifier alone, then 16; clips and encoders are those of the pretraining
    "data": {"clips_per_video": 5, "batch_size": 32, "split": "train"},
    "method": {"name": "finetune"},
    "optim": {
        "name": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "epochs": 21,
        "schedule": "multistep",
        "milestones": [11, 15, 19],
        "gamma": 0.3,
    },
}
NOT_FOR_SOUND = {"no_audio": "skip", "silent": "skip", "no_video": "mask"}  # policy when the audio encoder is tuned


def train_classifier(
    pretrained: Pretrained,
    manifest: Manifest,
    *,
    out: Path,
    trained: bool = True,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
) -> Run | None:
    """Fine-tune one of the encoders on the labels of the rows whose split is train.

    Args:
        pretrained: initial weights; its data section says how clips are read.
        manifest: with the column split of this run.
        out: folder of the run; a run there is continued.
        trained: False = random weights by run.seed (supervised training).
        recipe: YAML with sections of a run; which overrides RECIPE and the data section of the weights.
        overrides: section.key=value, which override all others.

    Returns:
        The run after its last epoch; None when interrupted.

    Raises:
        ConfigError: recipe or overrides cannot be used, or `out` holds another run.
        TrainingError: as `train`.
    """
    path = out / "manifest.parquet"
    given = with_overrides(merge(_base(pretrained), read_sections(recipe) if recipe else {}), overrides)
    own = {"data": {"manifest": str(path), "root": str(manifest.root)}, "run": {"dir": str(out)}}
    config = from_dict(merge(given, own), source=str(recipe or "the recipe of fine-tuning"))
    if not is_supervised(config):
        raise ConfigError(f"method.name={config.method['name']} learns no labels: fine-tuning is method.name=finetune")
    modality = config.method.get("modality", "video")
    if modality not in pretrained.encoders:
        raise ConfigError(
            f"method.modality={modality}, but {pretrained.path} has no encoder for it, only for "
            f"{', '.join(pretrained.encoders)}: choose that one"
        )
    if config.data.split not in ("auto", "train"):
        raise ConfigError(
            f"data.split={config.data.split or 'null'}: fine-tuning learns from the training clips of the evaluated "
            "split, and from no others"
        )
    _check_rows(manifest, modality)
    if modality == "audio":
        policy = PolicyConfig(**NOT_FOR_SOUND | config.data.policy.model_dump(exclude_unset=True))
        config = config.replace(data=config.data.replace(policy=policy))
    start = out / f"start-{pretrained.weights_hash[:12]}.safetensors"
    if trained:
        config = config.replace(model=config.model.replace(**{f"{modality}_weights": str(start)}))
    others = [each for each in sorted(out.glob("start-*.safetensors")) if each != (start if trained else None)]
    if others and (out / LAST).exists():
        weights = start if trained else "null"
        raise ConfigError(
            f"model.{modality}_weights={weights}, but the run in {out} was started with {others[0]}: choose another "
            "folder"
        )
    if distributed.is_main():
        _prepare(pretrained, manifest, path, start if trained else None)
    distributed.barrier()
    return load_run(out) if train(config) else None


def _base(pretrained: Pretrained) -> dict[str, Any]:
    """RECIPE with the clips and encoders of the pretraining; its policy is none of fine-tuning's."""
    model = pretrained.model.replace(video_weights=None, audio_weights=None, init=None).model_dump()
    return merge({"data": pretrained.data.model_dump(exclude={"manifest", "root", "policy"}), "model": model}, RECIPE)


def _check_rows(manifest: Manifest, modality: str) -> None:
    """Raise ConfigError unless some training clip has the encoder's modality."""
    has, lacks, other = {
        "video": (manifest.has_video, "video", "audio"),
        "audio": (manifest.has_audio & manifest.usable(), "audio", "video"),
    }[modality]
    if not (has & (manifest.column("split") == "train")).any():
        raise ConfigError(f"no training clip has {lacks} that can be read: tune method.modality={other}")


def _prepare(pretrained: Pretrained, manifest: Manifest, path: Path, start: Path | None) -> None:
    """Write the run's manifest and the weights that it starts from."""
    if path.exists():
        before = read_manifest(path, root=manifest.root)
        if (before.hash, before.labels_hash) != (manifest.hash, manifest.labels_hash):
            raise ConfigError(
                f"{path.parent} holds a run on other clips, labels or splits: choose another folder, or delete it"
            )
    else:
        write_manifest(path, manifest.table, root=manifest.root)
    if start is not None and not start.exists():
        weights = {name: value.detach().cpu().contiguous() for name, value in pretrained.encoders.state_dict().items()}
        with atomic_write(start) as temporary:
            temporary.write_bytes(save(weights))
