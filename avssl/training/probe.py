"""Whether a run is healthy, seen while it trains: nearest neighbors among labeled clips, and a watch for collapse."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import distributed
from avssl.data.manifest import Manifest
from avssl.logs import COLLAPSE_LIMITS, COLLAPSE_STEPS
from avssl.mining.votes import knn_votes
from avssl.objectives.negatives import Bank
from avssl.structs import Batch, Instances, Step

MAX_CLIPS = 4096  # labeled clips that vote and are asked, drawn at random where there are more


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
    """

    def __init__(self, manifest: Manifest, instances: Instances, *, seed: int, device: torch.device) -> None:
        targets = manifest.targets()
        rows = np.flatnonzero(instances.valid.numpy() & (targets >= 0))
        if len(rows) > MAX_CLIPS:
            rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_CLIPS, replace=False))
        _, groups = np.unique(manifest.column("group")[rows], return_inverse=True)
        _, classes = np.unique(targets[rows], return_inverse=True)
        self._groups, self._classes = torch.from_numpy(groups), torch.from_numpy(classes)
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

    def pop(self, banks: Mapping[str, Bank]) -> dict[str, float]:
        """Share of clips whose class their neighbors name, by modality and by both, and by the vectors of memory banks
        (NPID's evaluation), with that of the commonest class; over all ranks, which must all call. Starts anew. Empty
        where fewer than two classes were seen.
        """
        means = {}  # {modality: (n, dim)}, zeros for clips that were not seen
        for modality, sums in sorted(self._sums.items()):
            sums = distributed.all_reduce(sums)[:-1].cpu()
            means[modality] = F.normalize(sums[:, :-1], dim=1) * (sums[:, -1:] > 0)
        self._sums = {}
        if len(means) > 1:
            seen = torch.stack([x.any(dim=1) for x in means.values()]).all(dim=0)
            means["both"] = torch.cat(list(means.values()), dim=1) * seen[:, None]
        for modality, bank in banks.items():
            known = bank.valid[self._rows].cpu()
            means[f"{modality}_bank"] = bank.z[self._rows].float().cpu() * known[:, None]
        found = {}
        for name, x in means.items():
            rows = x.any(dim=1)
            groups, classes = self._groups[rows], self._classes[rows]
            counts = classes.bincount()
            if (counts > 0).sum() < 2 or len(groups.unique()) < 2:
                continue
            votes = knn_votes(x[rows], F.one_hot(classes).bool(), x[rows], groups=(groups, groups))
            found[f"probe/{name}"] = float((votes.argmax(dim=1) == classes).float().mean())
            found["probe/chance"] = float(counts.max() / counts.sum())
        return found


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
