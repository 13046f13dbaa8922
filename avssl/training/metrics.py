"""What a report of the log says besides the loss: what clips lack, signs of collapse, precision of mined sets."""

from collections.abc import Mapping

import torch

from avssl import distributed
from avssl.data.manifest import Manifest
from avssl.logs import embedding_metrics
from avssl.methods.base import Method
from avssl.mining.agreement import agreement_precision, chance_precision
from avssl.structs import Batch, Step


def batch_metrics(batch: Batch, *, batch_size: int) -> dict[str, torch.Tensor]:
    """Fractions of the clips of a step, whose mean over the ranks they are; batch_size: of all ranks."""
    lost, scale = batch.ids < 0, distributed.world_size() / batch_size
    counts = {
        "frac_unreadable": lost.new_tensor(len(batch.errors), dtype=torch.float32),
        "frac_no_audio": (~batch.has_audio & ~lost).sum(),
        "frac_no_video": (~batch.has_video & ~lost).sum(),
        "frac_padded": torch.stack(list(batch.padded.values())).any(dim=0).sum(),
    }
    return {name: count.float() * scale for name, count in counts.items()}


def set_metrics(method: Method, metrics: Mapping[str, float], manifest: Manifest) -> dict[str, float]:
    """How often the sets that `metrics` tell of agree with the labels, where there are any, and how often sets drawn at
    random would. The log alone learns it: nothing of it reaches the method.
    """
    targets = torch.from_numpy(manifest.targets())  # (N,)
    found = {}
    for name, sets in method.agreement_sets().items():
        mined = (sets >= 0).any(dim=1).cpu()  # (N,)
        if any(metric.startswith(f"{name}/") for metric in metrics) and (targets[mined] >= 0).sum() > 1:
            found[f"{name}/precision"] = agreement_precision(sets, targets)
            found[f"{name}/chance"] = chance_precision(targets, mined)
    return found


def collapse_metrics(step: Step) -> dict[str, float]:
    """Signs of collapse among the clips that have the modality in question, where there are two."""
    present = {name: x.z[x.ids >= 0] for name, x in step.embeddings.items()}
    return {
        f"{name}_{metric}": float(value)
        for name, z in present.items()
        if len(z) > 1
        for metric, value in embedding_metrics(z).items()
    }
