"""Write the embeddings of every clip of a manifest: what tools/retrieve.py and tools/browse.py search.

    python tools/extract.py runs/toy data/toy/manifest.parquet --out embeddings/
    torchrun --nproc-per-node 2 tools/extract.py runs/toy data/toy/manifest.parquet --out embeddings/

A stopped extraction continues where it was. Exit code: 0 done, 1 some clips could not be read (they are named), 2
wrong call.
"""

import argparse
import json
import sys
from pathlib import Path

from avssl import distributed
from avssl.data.manifest import read_manifest
from avssl.retrieval.write import write_store
from avssl.weights.load import load, with_data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or of weights (tools/convert.py)")
    parser.add_argument("manifest", type=Path, help="parquet file of datasets/*.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the embeddings")
    parser.add_argument("--features", action="store_true", help="trunk features instead of unit-length head outputs")
    parser.add_argument("--split", help="rows of one split only")
    parser.add_argument("--num-clips", type=int, default=3, help="clips averaged per video")
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes")
    parser.add_argument("--root", help="folder of the clips, when it moved")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_args()
    try:
        device = distributed.init("auto")
        run = with_data(load(arguments.run, device=device), num_workers=arguments.num_workers)
        store = write_store(
            arguments.out,
            run,
            read_manifest(arguments.manifest, root=arguments.root),
            manifest_path=arguments.manifest,
            kind="features" if arguments.features else "embedding",
            split=arguments.split,
            num_clips=arguments.num_clips,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    hears = "audio" in store.meta.towers
    if arguments.json:
        print(json.dumps(summary))
    else:
        sides = f"{summary['with_sound']} with sound" if hears else "by their pictures, as the run hears nothing"
        sides += f" ({summary['sound_only']} of them without picture)" if hears and summary["sound_only"] else ""
        print(f"{summary['clips']} clips, {sides}, {summary['not_read']} not read -> {arguments.out}")
        source, target = (
            next(side for side in order if store.has[side].any()) for order in (("audio", "video"), ("video", "audio"))
        )
        query = f"--query {store.ids[store.has[source].argmax()]} --from {source} --to {target}"
        print(f"next: python tools/retrieve.py {arguments.out} {query} --k 10", file=sys.stderr)
        print(f"  or: python tools/browse.py {arguments.out} --open", file=sys.stderr)
    return 1 if store.errors else 0


if __name__ == "__main__":
    sys.exit(main())
