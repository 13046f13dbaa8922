"""Whether a run is healthy, seen while it trains: nearest neighbors among labeled clips, and a watch for collapse."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Config, ConfigError, DataConfig
from avssl.data.dataset import ClipDataset
from avssl.data.loader import build_loader, lost_workers_named
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.logs import COLLAPSE_LIMITS, COLLAPSE_STEPS
from avssl.mining.votes import knn_votes
from avssl.objectives.negatives import Bank
from avssl.structs import Batch, Instances, Step
from avssl.transforms.views import View, apply_views

MAX_CLIPS = 4096  # labeled clips that vote and are asked, drawn at random where there are more
BATCH_CLIPS = 32  # validation clips per forward pass


class OnlineProbe:
    """Leave-one-out nearest neighbors over labeled training clips, by what the encoders returned in the last epoch.

    No clip passes an encoder for it. A clip is the mean of its unit outputs over the epoch, so augmentation and the
    movement of the weights are in it: the numbers are not those of an evaluation, but rise and fall with them. Clips of
    one group (such as a source video) do not vote for one another. The method never sees a label.

    Args:
        manifest: its columns label and group are used.
        instances: rows that are trained on.
        seed: of the run; which clips are taken.
        device: of the training.
        asked: (m,) rows of other clips whose class the neighbors are asked for too; see `validation_rows`.
    """

    def __init__(
        self,
        manifest: Manifest,
        instances: Instances,
        *,
        seed: int,
        device: torch.device,
        asked: Sequence[int] | np.ndarray = (),
    ) -> None:
        targets = manifest.targets()
        rows = _at_most(MAX_CLIPS, np.flatnonzero(instances.valid.numpy() & (targets >= 0)), seed)
        self.asked = np.asarray(asked, dtype=np.int64)
        both = np.concatenate([rows, self.asked])
        _, groups = np.unique(manifest.column("group")[both], return_inverse=True)
        _, classes = np.unique(targets[both], return_inverse=True)
        (self._groups, self._asked_groups), (self._classes, self._asked_classes) = (
            torch.from_numpy(each).split([len(rows), len(self.asked)]) for each in (groups, classes)
        )
        self._rows = torch.from_numpy(rows).to(device)
        self._place = torch.full((instances.num + 1,), len(rows), device=device)  # last: the place of no clip
        self._place[self._rows] = torch.arange(len(rows), device=device)
        self._sums: dict[str, Tensor] = {}  # {modality: (len(rows) + 1, dim + 1)}: unit outputs, and how many

    def add(self, step: Step, batch: Batch) -> None:
        """Note what the encoders returned for a batch. No host sync."""
        for modality, features in step.features.items():
            has = (batch.has_audio if modality == "audio" else batch.has_video) & (batch.ids >= 0)
            places = self._place[batch.ids.where(has, -1)]  # (B,); -1 = the last
            unit = F.pad(F.normalize(features.float(), dim=1), (0, 1), value=1.0)
            if modality not in self._sums:
                self._sums[modality] = unit.new_zeros(len(self._classes) + 1, unit.shape[1])
            self._sums[modality].index_add_(0, places, unit)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, over all ranks, which must all call; rank 0 goes on with it alone."""
        self._sums = {modality: distributed.all_reduce(sums) for modality, sums in sorted(self._sums.items())}
        state = {modality: sums.cpu() for modality, sums in self._sums.items()} | {"rows": self._rows.cpu()}
        if not distributed.is_main():
            self._sums = {modality: torch.zeros_like(sums) for modality, sums in self._sums.items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned; not where labels have changed since, so that other rows vote."""
        device, is_main, state = self._place.device, distributed.is_main(), dict(state)
        if not torch.equal(state.pop("rows", torch.empty(0)), self._rows.cpu()):
            return
        self._sums = {name: (sums if is_main else torch.zeros_like(sums)).to(device) for name, sums in state.items()}

    def pop(self, banks: Mapping[str, Bank], asked: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Share of clips whose class their neighbors name, by modality and by both, and by the vectors of memory banks
        (NPID's evaluation), with that of the commonest class; over all ranks, which must all call. Starts anew. Empty
        where fewer than two classes were seen.

        Args:
            asked: {modality: (m, dim)} of the rows `asked`, zeros where there is nothing; their share is named val_*.
        """
        means = {}  # {modality: (n, dim)}, zeros for clips that were not seen
        for modality, sums in sorted(self._sums.items()):
            sums = distributed.all_reduce(sums)[:-1].cpu()
            means[modality] = F.normalize(sums[:, :-1], dim=1) * (sums[:, -1:] > 0)
        self._sums = {}
        asked = _with_both({modality: x for modality, x in (asked or {}).items() if modality in means})
        means = _with_both(means)
        for modality, bank in banks.items():
            means[f"{modality}_bank"] = bank.of_all(self._rows).cpu()
        found = {}
        for name, x in means.items():
            rows = x.any(dim=1)
            groups, classes = self._groups[rows], self._classes[rows]
            counts = classes.bincount()
            if (counts > 0).sum() < 2 or len(groups.unique()) < 2:
                continue
            truth = F.one_hot(classes, len(self._classes.bincount())).bool()
            votes = knn_votes(x[rows], truth, x[rows], groups=(groups, groups))
            found[f"probe/{name}"] = float((votes.argmax(dim=1) == classes).float().mean())
            found["probe/chance"] = float(counts.max() / counts.sum())
            there = asked[name].any(dim=1) if name in asked else torch.zeros(0, dtype=torch.bool)
            if there.any():
                votes = knn_votes(x[rows], truth, asked[name][there], groups=(groups, self._asked_groups[there]))
                right = votes.argmax(dim=1) == self._asked_classes[there]
                found[f"probe/val_{name}"] = float(right.float().mean())
        return found


def _with_both(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{modality: (n, dim) unit length or zeros}, and both: side by side, zeros for clips that lack one."""
    if len(features) < 2:
        return dict(features)
    seen = torch.stack([x.any(dim=1) for x in features.values()]).all(dim=0)
    return {**features, "both": torch.cat(list(features.values()), dim=1) * seen[:, None]}


def _at_most(number: int, rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows, or that many of them drawn at random, in their order."""
    if len(rows) <= number:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, number, replace=False))


def validation_rows(manifest: Manifest, config: Config) -> np.ndarray:
    """(m,) labeled rows of split val, at most run.probe_clips. Raises ConfigError where there are none."""
    number = config.run.probe_clips
    if not number:
        return np.zeros(0, dtype=np.int64)
    is_val = manifest.column("split") == "val"
    rows = np.flatnonzero(is_val & manifest.usable() & (manifest.targets() >= 0))
    if not len(rows) or config.data.split != "train":
        raise ConfigError(
            f"run.probe_clips={number} asks for clips of split val beside data.split=train: "
            f"{config.data.manifest} has {len(rows)} usable labeled ones, data.split is {config.data.split or 'null'}"
        )
    return _at_most(number, rows, config.run.seed)


def encode_clips(
    encoders: Mapping[str, nn.Module],
    manifest: Manifest,
    rows: np.ndarray,
    data: DataConfig,
    *,
    device: torch.device,
) -> tuple[dict[str, Tensor], list[str]]:
    """What encoders return in evaluation mode for the middle of each clip, and why some could not be read.

    Over all ranks, which must all call; a rank encodes its share.

    Returns:
        {modality: (m, dim) on the CPU, unit length, zeros where a clip has nothing of it}, and this rank's reasons.
    """
    views, data = [View(modality, recipe=modality) for modality in encoders], data.replace(cache_gigabytes=0)
    dataset = ClipDataset(manifest, data, views, num_eval_clips=1)
    mine = np.arange(len(rows))[distributed.rank() :: distributed.world_size()]
    parts = [mine[start : start + BATCH_CLIPS] for start in range(0, len(mine), BATCH_CLIPS)]
    keys = [[Key(0, int(row), 0) for row in rows[part]] for part in parts]
    loader = build_loader(dataset, keys, data, device=device)
    found = {name: torch.zeros(len(rows), encoder.dim, device=device) for name, encoder in encoders.items()}
    errors: list[str] = []
    training = {encoder: encoder.training for encoder in encoders.values()}
    with lost_workers_named(dataset, data), torch.no_grad():
        for encoder in training:
            encoder.eval()
        for part, batch in zip(parts, loader, strict=True):
            batch, places = apply_views(batch.to(device), views, data), torch.from_numpy(part).to(device)
            errors += batch.errors
            for modality, encoder in encoders.items():
                has = (batch.has_audio if modality == "audio" else batch.has_video) & (batch.ids >= 0)
                unit = F.normalize(encoder(getattr(batch, modality)[modality]).float(), dim=1)
                found[modality][places] = unit * has[:, None]
        for encoder, was in training.items():
            encoder.train(was)
    return {modality: distributed.all_reduce(x).cpu() for modality, x in found.items()}, errors


def describe_probe(votes: Mapping[str, float], epoch: int) -> list[str]:
    """What `OnlineProbe.pop` returned, in a line for a person; none of nothing."""
    shares = {name.removeprefix("probe/"): f"{value:.3f}" for name, value in votes.items()}
    if not shares:
        return []
    chance, named = shares.pop("chance"), ", ".join(f"{name} {share}" for name, share in shares.items())
    return [f"epoch {epoch}: nearest neighbors name the class of {named} of the clips (the commonest class: {chance})"]


class CollapseWatch:
    """Tells once when collapse metrics of the log stay at or below their limits for COLLAPSE_STEPS steps."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._told: set[str] = set()

    def look(self, step: int, signs: Mapping[str, float], done: Step) -> list[str]:
        """Warnings for a person. `signs`: `collapse_metrics` of `done`, reported at `step`."""
        lines = []
        for name, value in signs.items():
            embedding, _, ending = name.rpartition("_")
            limit = COLLAPSE_LIMITS.get(f"_{ending}")
            if limit is None:
                continue
            if value > limit:
                self._since.pop(name, None)
                self._told.discard(name)
                continue
            since = self._since.setdefault(name, step)
            if step - since >= COLLAPSE_STEPS and name not in self._told:
                self._told.add(name)
                num, dim = done.embeddings[embedding].z.shape
                what = f"effective rank {value:.1f} of at most {min(num - 1, dim)}"
                if ending == "std":
                    what = f"spread {value:.2f} of 1"
                lines.append(
                    f"warning: the embedding {embedding} is collapsing ({what}, since step {since}): its clips look "
                    "alike to the encoder. If it does not pass, try a lower optim.lr or a larger batch, and see "
                    "docs/learning-on-small-sets.md"
                )
        return lines
