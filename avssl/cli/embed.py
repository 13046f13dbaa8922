"""Write the embeddings of every clip of a manifest, for avssl search and avssl browse.

    avssl embed runs/toy data/toy/manifest.parquet --out embeddings/
    torchrun --nproc-per-node 2 -m avssl embed runs/toy data/toy/manifest.parquet --out embeddings/
    avssl embed runs/toy data/toy/manifest.parquet --out embeddings/ --engine ray

The same command resumes a stopped extraction.
Exit code: 0 done, 1 some clips could not be read (they are named), 2 wrong call.
"""

import argparse
from pathlib import Path

from avssl import distributed
from avssl.cli.common import add_json, add_manifest, new_parser, run, warn_unread
from avssl.data.manifest import read_manifest
from avssl.files import print_next, print_result
from avssl.retrieval.write import write_store
from avssl.weights.load import load, with_data


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or of weights (avssl convert)")
    add_manifest(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the embeddings")
    parser.add_argument("--features", action="store_true", help="trunk features instead of unit-length head outputs")
    parser.add_argument("--split", help="rows of one split only")
    parser.add_argument("--num-clips", type=int, default=3, help="clips averaged per video")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    engine_help = "ray: on all machines of a Ray cluster, which see the same folders; one task takes --workers CPUs"
    parser.add_argument("--engine", choices=["processes", "ray"], default="processes", help=engine_help)
    add_json(parser)
    return run(_extract, parser.parse_args(arguments))


def _extract(given: argparse.Namespace) -> int:
    try:
        manifest = read_manifest(given.manifest, root=given.root)
        device = distributed.init()
        store = write_store(
            given.out,
            with_data(load(given.run, device=device), num_workers=given.workers),
            manifest,
            manifest_path=given.manifest,
            kind="features" if given.features else "embedding",
            split=given.split,
            num_clips=given.num_clips,
            engine=given.engine,
        )
    finally:
        distributed.shut_down()
    if store is None:
        return 0
    code = warn_unread(store.errors)
    splits = manifest.column("split")
    asked = len(splits) if given.split is None else int((splits == given.split).sum())
    summary = {
        "clips": len(store),
        "with_sound": int(store.has["audio"].sum()),
        "sound_only": int((~store.has["video"]).sum()),
        "not_read": len(store.errors),
        "left_out": asked - len(store) - len(store.errors),
    }
    kinds = "video only, as the run has no audio encoder"
    if "audio" in store.meta.modalities:
        kinds = f"{summary['with_sound']} with sound"
        kinds += f" ({summary['sound_only']} of them without video)" if summary["sound_only"] else ""
    text = f"{summary['clips']} clips, {kinds}, {summary['not_read']} not read"
    text += f", {summary['left_out']} left out, as they lack what the run takes" if summary["left_out"] else ""
    text += f" -> {given.out}"
    print_result(summary, text, to=given.json)
    if given.json != "-":
        source, target = (
            next(modality for modality in order if store.has[modality].any())
            for order in (("audio", "video"), ("video", "audio"))
        )
        query = ["--query", store.ids[store.has[source].argmax()], "--from", source, "--to", target]
        print_next("search", given.out, *query)
        print_next("browse", given.out, "--open", title="  or")
    return code
