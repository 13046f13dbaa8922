"""Find the neighbors of a clip in embeddings made by avssl embed.

    avssl search embeddings/ --query 12 --from audio --to video --k 10
    avssl search embeddings/ --query some/other/clip.mp4 --by agreement
    avssl search embeddings/ --query song.mp3 --from audio --to video

The query is an id, a path of the set, or any video or audio file: a file outside of the set is embedded with the run
that made the embeddings. Results always have the modality of --to. Exit code: 0 done, 2 wrong call.
"""

import argparse
import dataclasses
from os.path import expanduser
from pathlib import Path

from avssl.cli.common import add_json, new_parser, run
from avssl.files import print_result
from avssl.retrieval.embed import embed_file, run_of_store
from avssl.retrieval.search import Query, find_row, name_of, query_of_row, query_of_vectors, search
from avssl.retrieval.store import Store, StoreError, read_store
from avssl.structs import MODALITIES


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("embeddings", type=Path, help="folder written by avssl embed")
    parser.add_argument(
        "--query", type=expanduser, required=True, help="id, path of the set, or any video or audio file"
    )
    parser.add_argument("--from", dest="source", choices=MODALITIES, default="video", help="modality of the query")
    parser.add_argument("--to", dest="target", choices=MODALITIES, default="video", help="modality of the results")
    parser.add_argument(
        "--by", choices=("cosine", "agreement"), default="cosine", help="agreement: similar in video and audio"
    )
    parser.add_argument("--k", type=int, default=10, help="how many")
    add_json(parser)
    return run(_retrieve, parser.parse_args(arguments))


def _retrieve(given: argparse.Namespace) -> int:
    store = read_store(given.embeddings)
    modalities = MODALITIES if given.by == "agreement" else (given.source, given.target)
    missing = [modality for modality in modalities if modality not in store.meta.modalities]
    if missing:
        own = store.meta.modalities[0]
        raise StoreError(f"the run of these embeddings has no {missing[0]} encoder: use --from {own} --to {own}")
    query = find_query(store, given.query)
    way = "agreement" if given.by == "agreement" else f"{given.source[0]}2{given.target[0]}"
    found = search(store, query, way=way, k=given.k)
    lines = [f"{each.score:6.3f}  {each.id:7}  {each.label or '-':20}  {name_of(store, each.row)}" for each in found]
    result = {"query": query.name, "neighbors": [dataclasses.asdict(entry) for entry in found]}
    print_result(result, "\n".join(["score        id  label                 path", *lines]), to=given.json)
    return 0


def find_query(store: Store, text: str) -> Query:
    """A row of the store, or a file outside of it, which is embedded now."""
    row = find_row(store, text)
    if row is not None:
        return query_of_row(store, row)
    if not Path(text).exists():
        raise StoreError(f"query {text} is no id or path of these embeddings, and no such file exists")
    return query_of_vectors(embed_file(Path(text), store.meta, run=run_of_store(store.meta)), text)
