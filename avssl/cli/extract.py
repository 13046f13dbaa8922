"""Write the embeddings of every clip of a manifest: what tools/retrieve.py and tools/browse.py search.

    python tools/extract.py runs/toy data/toy/manifest.parquet --out embeddings/
    torchrun --nproc-per-node 2 tools/extract.py runs/toy data/toy/manifest.parquet --out embeddings/

A stopped extraction continues where it was. Exit code: 0 done, 1 some clips could not be read (they are named), 2
wrong call.
"""

import argparse
import sys
from pathlib import Path

from avssl import distributed
from avssl.cli.common import add_json, new_parser, run
from avssl.data.manifest import read_manifest
from avssl.files import print_result
from avssl.retrieval.write import write_store
from avssl.weights.load import load, with_data


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or of weights (tools/convert.py)")
    parser.add_argument("manifest", type=Path, help="parquet file of datasets/*.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the embeddings")
    parser.add_argument("--features", action="store_true", help="trunk features instead of unit-length head outputs")
    parser.add_argument("--split", help="rows of one split only")
    parser.add_argument("--num-clips", type=int, default=3, help="clips averaged per video")
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes")
    parser.add_argument("--root", help="folder of the clips, when it moved")
    add_json(parser)
    return run(_extract, parser.parse_args(arguments))


def _extract(given: argparse.Namespace) -> int:
    try:
        device = distributed.init("auto")
        store = write_store(
            given.out,
            with_data(load(given.run, device=device), num_workers=given.num_workers),
            read_manifest(given.manifest, root=given.root),
            manifest_path=given.manifest,
            kind="features" if given.features else "embedding",
            split=given.split,
            num_clips=given.num_clips,
        )
    finally:
        distributed.shut_down()
    if store is None:
        return 0
    for path, reason in store.errors.items():
        print(f"not read: {path}: {reason}", file=sys.stderr)
    summary = {
        "clips": len(store),
        "with_sound": int(store.has["audio"].sum()),
        "sound_only": int((~store.has["video"]).sum()),
        "not_read": len(store.errors),
    }
    hears = "audio" in store.meta.modalities
    sides = f"{summary['with_sound']} with sound" if hears else "by their pictures, as the run hears nothing"
    sides += f" ({summary['sound_only']} of them without picture)" if hears and summary["sound_only"] else ""
    text = f"{summary['clips']} clips, {sides}, {summary['not_read']} not read -> {given.out}"
    print_result(summary, text, to=given.json)
    if given.json != "-":
        source, target = (
            next(side for side in order if store.has[side].any()) for order in (("audio", "video"), ("video", "audio"))
        )
        query = f"--query {store.ids[store.has[source].argmax()]} --from {source} --to {target}"
        print(f"next: python tools/retrieve.py {given.out} {query} --k 10", file=sys.stderr)
        print(f"  or: python tools/browse.py {given.out} --open", file=sys.stderr)
    return 1 if store.errors else 0
