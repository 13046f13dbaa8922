"""What a reader wants to know of a run first, what its loss is compared with, and what words mean."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from avssl.config import Config
from avssl.evaluate.table import Result
from avssl.evaluate.table import shown as shown_figure
from avssl.logs import COLLAPSE_LIMITS
from avssl.methods import method_options
from avssl.report.history import History
from avssl.report.page import table

WORDS = (
    ("embedding", "what an encoder and its head make of a clip: a vector of length 1"),
    ("features", "what the encoder makes of it, before the head: what evaluation and transfer use"),
    ("cosine", "how alike two embeddings are: 1 = equal, 0 = nothing in common"),
    ("effective rank", "how many directions embeddings use: near 1, clips are told apart by one number or not at all"),
    ("memory bank", "a running mean of the embeddings of each training clip, which later steps compare with"),
    ("agreement", "the smaller of the cosines by video and by audio: high where two clips look and sound alike"),
    ("positive", "a clip that the loss pulls together with another one"),
    ("chance", "what guessing would reach"),
    ("random weights", "the same encoders before any training: what the training has to beat"),
    ("interval", "where the value would lie in 95 of 100 repetitions with other test clips"),
)


def summary_parts(
    history: History,
    results: Sequence[Result],
    *,
    stand: str,
    clips: str,
    has_labels: bool | None,
    disk_bytes: int,
    limits: Mapping[str, float],
) -> list[str]:
    """A table of answers.

    Args:
        results: of `avssl evaluate`.
        stand: how far the training is; clips: what it is of.
        has_labels: whether any clip has one; None = the manifest is not there.
        disk_bytes: of the checkpoint.
        limits: as `loss_limits` gives them.
    """
    last = {name: float(values[-1]) for name, (_, values) in history.lines.items()}
    rows = [
        ("Trained?", stand),
        ("On what?", f"{clips}; {disk_bytes / 1e6:.0f} MB for a checkpoint"),
        ("Loss", _loss(last, limits)),
        ("Collapsed?", _collapse(last)),
        ("Do neighbors share a class?", _probe(last, has_labels)),
        ("Better than random weights?", _beyond_random(results)),
    ]
    return [table("Answers", (), rows)]


def loss_limits(config: Config, *, num_classes: int) -> dict[str, float]:
    """{what is known: loss} for guessing and, with `num_classes` even classes, for knowing the class of every clip and
    nothing else; empty for methods whose loss has no such values. Losses of several terms or of `joint` have none."""
    name, options = config.method["name"], method_options(config)
    num = options.get("num_negatives") or config.data.batch_size - 1
    kind = options.get("contrast", "info_nce") if name in ("avid", "infonce") else ""
    if not kind or options.get("within") or options.get("cross", 1) != 1:
        return {}
    if options.get("in_batch_epochs") and kind == "info_nce":
        found = {"guessing in batch": math.log(config.data.batch_size)}
        is_whole = options["in_batch_epochs"] >= config.optim.epochs
        return found if is_whole else found | {"guessing by banks": math.log(1 + num)}
    known = {"guessing": 1} | ({"knowing the class": num_classes} if num_classes > 1 else {})
    noise = {name: num / count * math.log1p(count / num) if kind == "nce" else 0 for name, count in known.items()}
    return {name: math.log1p(num / count) + noise[name] for name, count in known.items()}


def _loss(last: Mapping[str, float], limits: Mapping[str, float]) -> str:
    if "loss" not in last:
        return "none was reported"
    known = {what: value for what, value in limits.items() if what != "guessing in batch" or len(limits) == 1}
    return "; ".join([f"{last['loss']:.2f} at the end", *(f"{what}: {value:.2f}" for what, value in known.items())])


def _collapse(last: Mapping[str, float]) -> str:
    signs = {name: value for name, value in last.items() if name.endswith(tuple(COLLAPSE_LIMITS)) and "/" not in name}
    if not signs:
        return "not known: the method reports no embeddings"
    lost = [name for name, value in signs.items() if value <= COLLAPSE_LIMITS["_" + name.rpartition("_")[2]]]
    ranks = [f"{name.removesuffix('_rank')} {value:.1f}" for name, value in signs.items() if name.endswith("_rank")]
    return f"{'yes: ' + ', '.join(lost) if lost else 'no'}; effective rank: {', '.join(ranks)}"


def _probe(last: Mapping[str, float], has_labels: bool | None) -> str:
    shares = {name.removeprefix("probe/"): value for name, value in last.items() if name.startswith("probe/")}
    if not shares:
        why = {True: "no epoch is finished, or the method has no such metric", False: "the clips have no labels"}
        return f"not known: {why.get(has_labels, 'the manifest is not there')}"
    chance = shares.pop("chance")
    named = ", ".join(f"{name} {value:.2f}" for name, value in shares.items())
    return f"{named} of the labeled training clips are named by their neighbors; the commonest class: {chance:.2f}"


def _beyond_random(results: Sequence[Result]) -> str:
    for result in results:
        ways = [way for way in ("both", "video", "audio") if way in result["scores"]]
        if result["random"] and ways:
            figures: tuple[Any, Any] = result["scores"][ways[0]], result["random"][ways[0]]
            trained, random = map(shown_figure, figures)
            return f"{result['protocol']} by {ways[0]}: {trained}; random weights {random}; see Evaluation"
    return "not measured: see Evaluation"
