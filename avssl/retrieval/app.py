"""The neighbour browser's server: what the page asks, and the clips that it plays.

What lives here: addresses, what comes in and what goes out. What does not: who may ask (guard.py), searching
(search.py, index.py), pictures of clips (previews.py), visitors' files (uploads.py), the page itself (static/).

Only clips of the embeddings are served, by their id: no name that a visitor sends is ever opened.
"""

import asyncio
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.requests import ClientDisconnect

from avssl.data.manifest import OUTSIDE
from avssl.retrieval.index import EXACT_BELOW, NeighbourIndex, open_index
from avssl.retrieval.map import Map, Method, has_umap, open_map
from avssl.retrieval.previews import PreviewError, Previews
from avssl.retrieval.search import Contrast, Ranking, Way, contrast, described, query_of_row, rank, ways_of
from avssl.retrieval.search import Query as ClipQuery
from avssl.retrieval.store import Store, StoreError
from avssl.retrieval.uploads import BusyError, Upload, UploadError, Uploads

STATIC = Path(__file__).parent / "static"
NO_END = 1e9  # seconds: of a part that goes to the end of its file
PAUSE_SECONDS = 15.0  # between two pieces of an upload
WAITING_THREADS = 16  # that wait for pictures, and as many for previews: neither keeps the other or searches waiting

Id = Annotated[int, InPath(ge=0, lt=2**62)]
Key = Annotated[str, InPath(pattern=r"^([0-9]{1,18}|u-[0-9a-f]{16})$")]
Asked = Annotated[str, Query(pattern=r"^([0-9]{1,18}|u-[0-9a-f]{16})$")]
Label = Annotated[str, Query(max_length=1000)]
Offset = Annotated[int, Query(ge=0, lt=2**40)]
Limit = Annotated[int, Query(ge=1, le=200)]


class Shelf:
    """Embeddings that are shown, with their index, which comes when it is ready.

    Args:
        folder: for the index and maps.
        say: is told what is built, and what could not be.

    Raises:
        StoreError: a path leaves the folder of the clips.
    """

    def __init__(self, store: Store, folder: Path, say: Callable[[str], None]) -> None:
        outside = store.table.filter(pc.match_substring_regex(store.table.column("path"), OUTSIDE))
        if outside.num_rows:
            raise StoreError(
                f"{store.folder} holds paths that leave their root, such as {outside.column('path')[0].as_py()!r}"
            )
        self.store, self.folder, self.say = store, folder, say
        self.index: NeighbourIndex | None = None
        self.state: Literal["exact", "building", "ready", "failed"] = "exact"
        self.why = f"{len(store):,} clips: every search looks at all of them"
        self._maps: dict[Method, Map] = {}
        self._drawing = {method: threading.Lock() for method in get_args(Method)}

    def prepare(self) -> None:
        """Have the index read or built in the background, where there are clips enough for one."""
        if len(self.store) < EXACT_BELOW:
            return
        self.state, self.why = (
            "building",
            "the index is being read or built; until then every search looks at all clips",
        )
        threading.Thread(target=self._open_index, daemon=True).start()

    def _open_index(self) -> None:
        try:
            self.index = open_index(self.store, self.folder, say=self.say)
        except Exception as error:  # of whatever kind: the page works without an index, and says so
            self.state, self.why = "failed", f"no index ({error}): every search looks at all clips"
            self.say(self.why)
            return
        self.state, self.why = "ready", f"index of {len(self.store):,} clips"
        self.say(f"{self.store.folder}: {self.why}, built in {self.index.measured.seconds:.0f} s")

    def map(self, method: Method) -> Map:
        """Where clips lie; drawn once, which takes UMAP a minute."""
        with self._drawing[method]:
            if method not in self._maps:
                self._maps[method] = open_map(self.store, self.folder, method=method, say=self.say)
            return self._maps[method]

    def clip(self, row: int) -> dict[str, Any]:
        start, end = self.store.part(row)
        return {
            "id": int(self.store.ids[row]),
            "path": self.store.path(row),
            "label": self.store.label(row),
            "has_video": bool(self.store.has["video"][row]),
            "has_audio": bool(self.store.has["audio"][row]),
            "start": start,
            "end": end,
        }

    def source(self, row: int) -> tuple[Path, tuple[float, float] | None]:
        """The file of a clip, and which seconds of it the clip is."""
        start, end = self.store.part(row)
        part = None if start is None and end is None else (start or 0.0, NO_END if end is None else end)
        return Path(self.store.meta.root) / self.store.path(row), part

    def neighbours(self, query: ClipQuery, ranking: Ranking) -> list[dict[str, Any]]:
        return [
            self.clip(found.row) | {"score": found.score, "video": found.video, "audio": found.audio}
            for found in described(self.store, query, ranking)
        ]

    def recall(self, *ways: Way) -> float | None:
        """The smallest that was measured of these ways of the index."""
        return None if self.index is None else min(self.index.measured.recall[way] for way in ways)


def build_app(shelves: Sequence[Shelf], *, previews: Previews, uploads: Uploads) -> FastAPI:
    """The server of embeddings, all of the same manifest. See the addresses below for what it answers."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    before = np.zeros(0, dtype=np.int64)
    listed = []  # each store with its clips that no store before it has
    for shelf in shelves:
        listed.append((shelf, ~np.isin(shelf.store.ids, before)))
        before = np.union1d(before, shelf.store.ids)
    searching = threading.BoundedSemaphore(os.cpu_count() or 1)

    @app.exception_handler(RequestValidationError)
    def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    def shelf_of(number: int) -> Shelf:
        if not 0 <= number < len(shelves):
            raise HTTPException(404, f"store {number}: there are {len(shelves)}, counted from 0")
        return shelves[number]

    def find(id: int) -> tuple[Shelf, int]:
        for shelf in shelves:
            row = shelf.store.row(id)
            if row is not None:
                return shelf, row
        raise HTTPException(404, f"clip {id} is not in these embeddings")

    def asked(key: str, number: int) -> tuple[Shelf, ClipQuery, dict[str, Any]]:
        """The store, the query in it, and what is told of the query."""
        shelf = shelf_of(number)
        if key.startswith("u-"):
            upload = held(uploads, key)
            return shelf, upload.queries[number], of_upload(upload)
        known, _ = find(int(key))
        row = shelf.store.row(int(key))
        if row is None:
            raise HTTPException(404, f"clip {key} is in {known.store.folder}, but not in {shelf.store.folder}")
        return shelf, query_of_row(shelf.store, row), shelf.clip(row)

    def narrowing(shelf: Shelf, exact: bool) -> NeighbourIndex | None:
        return None if exact else shelf.index

    @app.api_route("/", methods=["GET", "HEAD"])
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for shelf, own in listed:
            names, labels = shelf.store.labels
            numbers = np.bincount(labels[own & (labels >= 0)], minlength=len(names)).tolist()
            counts.update({name: number for name, number in zip(names, numbers, strict=True) if number})
        return {
            "stores": [of_store(shelf) for shelf in shelves],
            "labels": [{"name": name, "clips": counts[name]} for name in sorted(counts)],
            "uploads": {"max_bytes": uploads.max_bytes, "max_seconds": uploads.max_seconds},
            "umap": has_umap(),
        }

    @app.get("/api/clips")
    def clips(label: Label = "", name: Label = "", offset: Offset = 0, limit: Limit = 48) -> dict[str, Any]:
        found = [shelf.store.ids[own & selected(shelf.store, label=label, name=name)] for shelf, own in listed]
        ids = found[0] if len(found) == 1 else np.sort(np.concatenate(found))
        page = [find(id) for id in ids[offset : offset + limit].tolist()]
        after = offset + len(page)
        return {
            "total": len(ids),
            "clips": [shelf.clip(row) for shelf, row in page],
            "next": after if after < len(ids) else None,
        }

    @app.get("/api/clips/{id}")
    def clip(id: Id) -> dict[str, Any]:
        shelf, row = find(id)
        return shelf.clip(row)

    @app.get("/api/neighbours")
    def neighbours(
        query: Asked,
        by: Way,
        store: int = 0,
        label: Label = "",
        exact: bool = False,
        offset: Offset = 0,
        limit: Limit = 24,
    ) -> dict[str, Any]:
        shelf, wanted, told = asked(query, store)
        since = time.perf_counter()
        with searching:
            ranking = answered(
                lambda: rank(
                    shelf.store,
                    wanted,
                    way=by,
                    depth=offset + limit + 1,  # one more tells whether another page follows
                    label=label or None,
                    index=narrowing(shelf, exact),
                )
            )
            shown = Ranking(
                *(values[offset : offset + limit] for values in (ranking.rows, ranking.scores)), ranking.exact
            )
            found = shelf.neighbours(wanted, shown)
        return {
            "query": told,
            "by": by,
            "exact": ranking.exact,
            "recall": None if ranking.exact else shelf.recall(by),
            "milliseconds": 1000 * (time.perf_counter() - since),
            "neighbours": found,
            "next": offset + limit if len(ranking.rows) > offset + limit else None,
        }

    @app.get("/api/agreement")
    def agreement(
        query: Asked, store: int = 0, label: Label = "", exact: bool = False, limit: Limit = 8
    ) -> dict[str, Any]:
        shelf, wanted, told = asked(query, store)
        since = time.perf_counter()
        with searching:
            lists: Contrast = answered(
                lambda: contrast(shelf.store, wanted, k=limit, label=label or None, index=narrowing(shelf, exact))
            )
            found = {name: shelf.neighbours(wanted, ranking) for name, ranking in vars(lists).items()}
            is_exact = all(ranking.exact for ranking in vars(lists).values())
        return {
            "query": told,
            "exact": is_exact,
            "recall": None if is_exact else shelf.recall("agreement", "v2v", "a2a"),
            "milliseconds": 1000 * (time.perf_counter() - since),
            **found,
        }

    @app.get("/api/map")
    def map_(store: int = 0, by: Method = "pca") -> dict[str, Any]:
        shelf = shelf_of(store)
        return of_map(shelf.store, answered(lambda: shelf.map(by)), by)

    add_files(app, find=find, previews=previews, uploads=uploads)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def add_files(app: FastAPI, *, find: Callable[[int], tuple[Shelf, int]], previews: Previews, uploads: Uploads) -> None:
    """Add the addresses by which files come in and go out.

    Args:
        find: the clip with an id: where it is shown, and its row there.
    """
    small, large = CapacityLimiter(WAITING_THREADS), CapacityLimiter(WAITING_THREADS)
    turn = asyncio.Lock()  # of the files that arrived, one is embedded

    @app.post("/api/uploads")
    async def receive(request: Request, name: Annotated[str, Query(min_length=1, max_length=255)]) -> dict[str, Any]:
        too_large = HTTPException(413, f"{name} is larger than the {uploads.max_bytes / 2**20:g} MB allowed here")
        if int(request.headers.get("content-length", "0")) > uploads.max_bytes:
            raise too_large
        try:
            with uploads.place(name) as path:
                size = 0
                with path.open("wb") as file:
                    async for chunk in unhurried(request.stream()):
                        size += len(chunk)
                        if size > uploads.max_bytes:
                            raise too_large
                        file.write(chunk)
                async with turn:
                    if await request.is_disconnected():
                        raise ClientDisconnect  # nobody waits for it any more
                    return of_upload(await to_thread.run_sync(uploads.take, path, name))
        except UploadError as error:
            raise HTTPException(422, str(error)) from error
        except BusyError as error:
            raise HTTPException(503, str(error)) from error
        except (TimeoutError, ClientDisconnect) as error:
            raise HTTPException(408, f"{name} stopped arriving, or is no longer waited for") from error
        except OSError as error:
            raise HTTPException(507, f"{name} cannot be stored here: {error.strerror}") from error

    @app.api_route("/media/{id}", methods=["GET", "HEAD"])
    async def play(id: Id) -> FileResponse:
        shelf, row = find(id)
        path, kind = await pictured(previews.media, *shelf.source(row), among=large)
        return FileResponse(path, media_type=kind)

    @app.get("/poster/{key}")
    async def poster(key: Key, request: Request) -> Response:
        return picture(request, await small_picture(key, "poster"), "image/jpeg")

    @app.get("/spectrogram/{key}")
    async def spectrogram(key: Key, request: Request) -> Response:
        return picture(request, await small_picture(key, "spectrogram"), "image/png")

    async def small_picture(key: str, kind: Literal["poster", "spectrogram"]) -> bytes:
        if not key.startswith("u-"):
            shelf, row = find(int(key))
            return await pictured(getattr(previews, kind), *shelf.source(row), among=small)
        content = getattr(held(uploads, key), kind)
        if content is None:
            raise HTTPException(404, f"the file has no {'picture' if kind == 'poster' else 'sound'}")
        return content

    async def pictured(
        make: Callable[..., Any], source: Path, part: tuple[float, float] | None, *, among: CapacityLimiter
    ) -> Any:
        """What other processes make of a clip, as far as they can."""
        try:
            return await to_thread.run_sync(make, source, part, limiter=among)
        except PreviewError as error:
            raise HTTPException(404, str(error)) from error


def held(uploads: Uploads, key: str) -> Upload:
    upload = uploads.get(key)
    if upload is None:
        raise HTTPException(404, "this file is no longer held here: bring it again")
    return upload


def selected(store: Store, *, label: str, name: str) -> np.ndarray:
    """(n,) bool: rows with this label whose path holds this text in any case; the empty ones ask for nothing."""
    chosen = np.ones(len(store), dtype=bool)
    if label:
        names, labels = store.labels
        chosen &= labels == names.index(label) if label in names else False
    if name:
        chosen &= pc.match_substring(store.table.column("path"), name, ignore_case=True).to_numpy()
    return chosen


def of_store(shelf: Shelf) -> dict[str, Any]:
    store = shelf.store
    return {
        "name": str(store.folder),
        "run": store.meta.run,
        "kind": store.meta.kind,
        "clips": len(store),
        "with_video": int(store.has["video"].sum()),
        "with_audio": int(store.has["audio"].sum()),
        "ways": list(ways_of(store)),
        "index": {
            "state": shelf.state,
            "why": shelf.why,
            "recall": None if shelf.index is None else shelf.index.measured.recall,
        },
    }


def of_upload(upload: Upload) -> dict[str, Any]:
    return {name: getattr(upload, name) for name in ("id", "name", "has_video", "has_audio", "seconds")}


def of_map(store: Store, drawn: Map, by: Method) -> dict[str, Any]:
    names, labels = store.labels
    places = {
        side: [None if np.isnan(x) else [round(x, 4), round(y, 4)] for x, y in points.tolist()]
        for side, points in drawn.places.items()
    }
    return {
        "by": by,
        "of": len(store),
        "ids": store.ids[drawn.rows].tolist(),
        "labels": labels[drawn.rows].tolist(),
        "label_names": names,
        "clusters": drawn.clusters.tolist(),
        "num_clusters": int(drawn.clusters.max(initial=-1)) + 1,
        "note": drawn.note,
        **places,
    }


async def unhurried(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a stream. Raises TimeoutError when the next one does not come."""
    while True:
        async with asyncio.timeout(PAUSE_SECONDS):
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
        yield piece


def answered(ask: Callable[[], Any]) -> Any:
    """What `ask` finds; what it refuses is a wrong question."""
    try:
        return ask()
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def picture(request: Request, content: bytes, kind: str) -> Response:
    """A small picture, or that the visitor has it already."""
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(content, media_type=kind, headers={"etag": tag})
