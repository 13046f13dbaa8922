"""Find the neighbours of a clip in embeddings made by tools/extract.py.

    python tools/retrieve.py embeddings/ --query 12 --from audio --to video --k 10
    python tools/retrieve.py embeddings/ --query some/other/clip.mp4 --by agreement
    python tools/retrieve.py embeddings/ --query song.mp3 --from audio --to video

The query is an id, a path of the set, or any file, of sound alone too: a file outside of the set is embedded with the
run that made the embeddings. An answer always has the side asked for with --to. Exit code: 0 done, 2 wrong call.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from avssl.retrieval.embed import embed_file, run_of_store
from avssl.retrieval.search import Query, find_row, query_of_row, query_of_vectors, search
from avssl.retrieval.store import Store, StoreError, read_store
from avssl.structs import MODALITIES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help="folder written by tools/extract.py")
    parser.add_argument("--query", required=True, help="id, path of the set, or any clip or sound on disk")
    parser.add_argument("--from", dest="source", choices=("video", "audio"), default="video", help="side of the query")
    parser.add_argument("--to", dest="target", choices=("video", "audio"), default="video", help="side of the answers")
    parser.add_argument(
        "--by", choices=("cosine", "agreement"), default="cosine", help="agreement: alike in picture and sound"
    )
    parser.add_argument("--k", type=int, default=10, help="how many")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    arguments = parser.parse_args()
    try:
        store = read_store(arguments.embeddings)
        sides = MODALITIES if arguments.by == "agreement" else (arguments.source, arguments.target)
        lacks = [side for side in sides if side not in store.meta.towers]
        if lacks:
            own = store.meta.towers[0]
            raise StoreError(
                f"these embeddings are of a run without a tower for {lacks[0]}: ask with --from {own} --to {own}"
            )
        query = find_query(store, arguments.query)
        way = "agreement" if arguments.by == "agreement" else f"{arguments.source[0]}2{arguments.target[0]}"
        found = search(store, query, way=way, k=arguments.k)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"query": query.name, "neighbours": [dataclasses.asdict(entry) for entry in found]}))
        return 0
    print("score   label                 path")
    for entry in found:
        print(f"{entry.score:6.3f}  {entry.label or '-':20}  {entry.path}")
    return 0


def find_query(store: Store, text: str) -> Query:
    """A row of the store, or a file outside of it, embedded now."""
    row = find_row(store, text)
    if row is not None:
        return query_of_row(store, row)
    if not Path(text).exists():
        raise StoreError(f"query {text} is no id or path of these embeddings, and no such file exists")
    return query_of_vectors(embed_file(Path(text), store.meta, run=run_of_store(store.meta)), text)


if __name__ == "__main__":
    sys.exit(main())
