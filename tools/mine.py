"""Mine agreement sets from the memories of a trained run, write them, and say how often a positive shares the class.

    python tools/mine.py runs/toy --k 32 --rule consensus --out sets.parquet

The file has a row per instance: id, path, positive_ids, scores, exact. consensus and union mine the clips that have
picture and sound, video and audio those that have this side. When the manifest has labels, the precision of all rules
that have clips enough is printed beside chance. Exit code: 0 done, 2 wrong call.
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avssl.checkpoint import check_manifest, load_checkpoint
from avssl.config import loads
from avssl.data.manifest import Manifest, read_manifest
from avssl.files import check_writable, whole_file
from avssl.mining.agreement import RULES, AgreementSets, agreement_precision, chance_precision, minable, mine_agreement


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of AVID or AVID-CMA")
    parser.add_argument("--k", type=int, default=32, help="positives per instance")
    parser.add_argument("--rule", choices=RULES, default="consensus")
    parser.add_argument("--out", type=Path, required=True, help="parquet file for the sets")
    parser.add_argument("--manifest", type=Path, help="the run's manifest, when it moved")
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    arguments = parser.parse_args()
    try:
        check_writable(arguments.out)
        if arguments.json not in (None, "-"):
            check_writable(arguments.json)
        video, audio, usable, manifest = read_banks(arguments.run, arguments.manifest)
        valid = {rule: minable(**usable, rule=rule) for rule in RULES}
        if not valid[arguments.rule].any():
            sides = {"video": "a picture", "audio": "sound"}.get(arguments.rule, "both picture and sound")
            others = [rule for rule in RULES if valid[rule].any()]
            raise ValueError(
                f"no clip of {arguments.run} has {sides}, which --rule {arguments.rule} mines: ask for --rule "
                f"{' or '.join(others)}"
            )
        rules = {arguments.rule}
        if has_labels(manifest):
            rules |= {rule for rule in RULES if int(valid[rule].sum()) > arguments.k}
        found = {
            rule: mine_agreement(video, audio, k=arguments.k, rule=rule, valid=valid[rule])
            for rule in RULES
            if rule in rules
        }
        write_sets(arguments.out, found[arguments.rule], manifest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = {
        "k": arguments.k,
        "rule": arguments.rule,
        "rows": {rule: int(valid[rule].sum()) for rule in found},
        "exact": float(found[arguments.rule].exact[valid[arguments.rule]].float().mean()),
    }
    if has_labels(manifest):
        targets = torch.from_numpy(manifest.targets())
        precision = {rule: agreement_precision(sets.ids, targets) for rule, sets in found.items()}
        summary["agreement_precision"] = precision | {"chance": chance_precision(targets, valid[arguments.rule])}
    if arguments.json == "-":
        print(json.dumps(summary))
    else:
        print(
            f"{summary['rows'][arguments.rule]} instances, {arguments.k} positives each by {arguments.rule}, "
            f"{summary['exact']:.1%} proven exact -> {arguments.out}"
        )
        for rule, value in summary.get("agreement_precision", {}).items():
            rows = f"   of {summary['rows'][rule]} clips" if rule in found else ""
            print(f"  positives of the same class, {rule:9} {value:.3f}{rows}")
    if arguments.json and arguments.json != "-":
        Path(arguments.json).write_text(json.dumps(summary) + "\n")
    return 0


def read_banks(
    run: Path, manifest_path: Path | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], Manifest]:
    """Memories of both modalities (N, D), the rows that have each (N,), and the manifest they belong to."""
    state = load_checkpoint(run)
    model = state["model"]
    owners = [name.removesuffix("banks.video.z") for name in model if name.endswith("banks.video.z")]  # "", or a part's
    if not owners:
        raise ValueError(f"{run} has no memory banks: mine a run of avid or avid_cma, or of joint with one of them")
    config = loads(state["config"], source=str(run))
    path = manifest_path or Path(config.data.manifest)
    manifest = read_manifest(path, root=None if manifest_path else config.data.root)
    check_manifest(state, manifest.hash, path=run, manifest=path)
    banks = f"{owners[0]}banks"
    usable = {side: model[f"{banks}.{side}.valid"] for side in ("video", "audio")}
    return model[f"{banks}.video.z"], model[f"{banks}.audio.z"], usable, manifest


def has_labels(manifest: Manifest) -> bool:
    return bool((manifest.targets() >= 0).any())


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
    )
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


if __name__ == "__main__":
    sys.exit(main())
