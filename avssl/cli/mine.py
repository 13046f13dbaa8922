"""Mine agreement sets from the memory banks of a trained run, and measure how often a positive shares the class.

    avssl mine runs/toy --k 32 --rule consensus --out sets.parquet

The file has a row per instance: id, path, positive_ids, scores, exact; its metadata names the engine and the recall.
The engines tiles and flat find exact sets; ivf (FAISS) is for hundreds of thousands of clips, finds most of each set
and measures how much. The rules consensus and union use clips that have both modalities, video and audio those that
have that modality. With labels, the precision of every rule that has enough clips is printed beside chance. Exit code:
0 done, 2 wrong call.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avssl.cli.common import add_json, info, new_parser, run
from avssl.config import loads
from avssl.data.manifest import Manifest, read_manifest
from avssl.files import atomic_write, check_writable, print_result
from avssl.mining.agreement import (
    ENGINES,
    AgreementSets,
    agreement_precision,
    chance_precision,
    minable,
    mine_agreement,
)
from avssl.mining.definition import RULES
from avssl.training.checkpoint import check_manifest, load_checkpoint


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("run", type=Path, help="folder of a run of AVID or AVID-CMA")
    parser.add_argument("--k", type=int, default=32, help="positives per instance")
    parser.add_argument("--rule", choices=RULES, default="consensus")
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="search: tiles and flat are exact, ivf is not"
    )
    parser.add_argument("--min-score", type=float, default=-1.0, help="least similarity of a positive (default: none)")
    parser.add_argument("--out", type=Path, required=True, help="parquet file for the sets")
    parser.add_argument("--manifest", type=Path, help="the run's manifest, when it moved")
    add_json(parser)
    return run(_mine, parser.parse_args(arguments))


def _mine(given: argparse.Namespace) -> int:
    check_writable(given.out)
    video, audio, usable, manifest = read_banks(given.run, given.manifest)
    valid = {rule: minable(**usable, rule=rule) for rule in RULES}
    num_rows = {rule: int(rows.sum()) for rule, rows in valid.items()}
    if not num_rows[given.rule]:
        needed = {"video": "video", "audio": "audio"}.get(given.rule, "both video and audio")
        others = [rule for rule in RULES if num_rows[rule]]
        raise ValueError(
            f"no clip of {given.run} has {needed}, which --rule {given.rule} needs: use --rule {' or '.join(others)}"
        )
    num = num_rows[given.rule]
    if given.k > num / 4:
        info(f"note: {given.k} positives of {num} clips are mostly chance: try --k {max(1, num // 10)}")
    targets = torch.from_numpy(manifest.targets())
    has_labels = bool((targets >= 0).any())
    found = {
        rule: mine_agreement(
            video,
            audio,
            k=given.k,
            rule=rule,
            min_score=given.min_score,
            valid=valid[rule],
            engine=given.engine,
        )
        for rule in RULES
        if rule == given.rule or (has_labels and num_rows[rule] > given.k)
    }
    write_sets(given.out, found[given.rule], manifest)
    positives = float((found[given.rule].ids[valid[given.rule]] >= 0).sum(dim=1).float().mean())
    summary = {
        "k": given.k,
        "positives": positives,
        "rule": given.rule,
        "rows": {rule: num_rows[rule] for rule in found},
        "engine": found[given.rule].engine,
        "exact": float(found[given.rule].exact[valid[given.rule]].float().mean()),
        "recall": found[given.rule].recall,
    }
    how = "all proven exact" if summary["exact"] == 1 else f"not proven, measured recall {summary['recall']:.3f}"
    if has_labels:
        precision = {rule: agreement_precision(sets.ids, targets) for rule, sets in found.items()}
        summary["agreement_precision"] = precision | {"chance": chance_precision(targets, valid[given.rule])}
    lines = [
        f"{num_rows[given.rule]} instances, {positives:.4g} positives each by {given.rule}, "
        f"{how} ({summary['engine']}) -> {given.out}"
    ]
    for rule, value in summary.get("agreement_precision", {}).items():
        rows = f"   of {num_rows[rule]} clips" if rule in found else ""
        lines.append(f"  positives of the same class, {rule:9} {value:.3f}{rows}")
    print_result(summary, "\n".join(lines), to=given.json)
    return 0


def read_banks(
    run: Path, manifest_path: Path | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], Manifest]:
    """Memory banks of video and audio (N, D), their valid rows {modality: (N,)}, and the run's manifest."""
    state = load_checkpoint(run)
    model = state["model"]
    owners = [name.removesuffix("banks.video.z") for name in model if name.endswith("banks.video.z")]  # "", or a part's
    if not owners:
        raise ValueError(f"{run} has no memory banks: mine a run of avid or avid_cma, or of joint with one of them")
    config = loads(state["config"], source=str(run))
    path = manifest_path or Path(config.data.manifest)
    manifest = read_manifest(path, root=None if manifest_path else config.data.root)
    check_manifest(state, manifest, path=run, read_from=path)
    banks = f"{owners[0]}banks"
    usable = {modality: model[f"{banks}.{modality}.valid"] for modality in ("video", "audio")}
    return model[f"{banks}.video.z"].float(), model[f"{banks}.audio.z"].float(), usable, manifest


def write_sets(path: Path, sets: AgreementSets, manifest: Manifest) -> None:
    """One row per instance; an instance without a set has an empty list."""
    ids, scores = sets.ids.tolist(), sets.score.tolist()
    table = pa.table(
        {
            "id": pa.array(range(len(ids)), pa.int64()),
            "path": pa.array([str(value) for value in manifest.column("path")], pa.string()),
            "positive_ids": pa.array([[i for i in row if i >= 0] for row in ids], pa.list_(pa.int64())),
            "scores": pa.array(
                [[s for i, s in zip(*row, strict=True) if i >= 0] for row in zip(ids, scores, strict=True)],
                pa.list_(pa.float32()),
            ),
            "exact": pa.array(sets.exact.tolist(), pa.bool_()),
        }
    ).replace_schema_metadata({"engine": sets.engine, "recall": str(sets.recall)})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)
