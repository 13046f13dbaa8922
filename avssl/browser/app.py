"""The neighbor browser's server: what the page asks, and the clips that it plays.

Only clips of the embeddings are served, by their id: no name that a visitor sends is ever opened.
"""

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from avssl.browser.catalog import Catalog, IndexedStore, NotShownError
from avssl.browser.map import Method, has_umap
from avssl.browser.previews import PreviewError, Previews
from avssl.browser.tags import FILE, TagError, Tags
from avssl.browser.uploads import BusyError, Upload, UploadError, Uploads
from avssl.files import WriteError, digest
from avssl.retrieval.search import Query as ClipQuery
from avssl.retrieval.search import QueryError, Way, contrast, query_of_row, rank, ways_of

STATIC = Path(__file__).parent / "static"
STATUS = {
    QueryError: 400,
    NotShownError: 404,
    PreviewError: 404,
    UploadError: 422,
    TagError: 422,
    BusyError: 503,
    WriteError: 507,
}
PAUSE_SECONDS = 15.0  # between two pieces of an upload
LEAST_RATE = 50_000  # bytes per second of an upload on the whole, after such a pause
WAITING_THREADS = 16  # for images, and as many for previews, so that neither blocks the other or searches

Id = Annotated[int, InPath(ge=0, lt=2**62)]
KEY = r"^([0-9]{1,18}|u-[0-9a-f]{16})$"  # of a clip, of an upload
Key = Annotated[str, InPath(pattern=KEY)]
AskedKey = Annotated[str, Query(pattern=KEY)]
Label = Annotated[str, Query(max_length=1000)]
Offset = Annotated[int, Query(ge=0, lt=2**40)]
Limit = Annotated[int, Query(ge=1, le=200)]


def build_app(stores: Sequence[IndexedStore], *, previews: Previews, uploads: Uploads) -> FastAPI:
    """The server of stores of one manifest; see the routes below."""
    app, catalog = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), Catalog(stores)
    tags = Tags(stores[0].store.folder / FILE)

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    async def explain(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, STATUS[type(error)])

    for kind in STATUS:
        app.add_exception_handler(kind, explain)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    add_clips(app, catalog, uploads, tags)
    add_tags(app, catalog, tags)
    add_searches(app, catalog, uploads)
    add_files(app, catalog, previews, uploads)
    for route in app.routes:
        if "GET" in route.methods:
            route.methods.add("HEAD")
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def add_clips(app: FastAPI, catalog: Catalog, uploads: Uploads, tags: Tags) -> None:
    """Add the routes for stores, clips and maps."""
    lines: dict[tuple[int, Method], CapacityLimiter] = defaultdict(lambda: CapacityLimiter(1))  # UMAP takes a minute

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {
            "stores": [of_store(each) for each in catalog.stores],
            "labels": [{"name": name, "clips": clips} for name, clips in catalog.label_counts().items()],
            "uploads": {"max_bytes": uploads.max_bytes, "max_seconds": uploads.max_seconds},
            "umap": has_umap(),
        }

    @app.get("/api/clips")
    def clips(
        label: Label = "", name: Label = "", tag: Label = "", offset: Offset = 0, limit: Limit = 48
    ) -> dict[str, Any]:
        ids = catalog.ids(label=label, name=name)
        ids = np.intersect1d(ids, tags.ids(tag)) if tag else ids
        after = offset + limit
        return {
            "total": len(ids),
            "clips": [clip(id) for id in ids[offset:after].tolist()],
            "next": after if after < len(ids) else None,
        }

    @app.get("/api/clips/{id}")
    def clip(id: Id) -> dict[str, Any]:
        indexed, row = catalog.find(id)
        return indexed.clip(row)

    @app.get("/api/map")
    async def map_(store: int = 0, by: Method = "pca") -> dict[str, Any]:
        indexed = catalog[store]
        drawn = await to_thread.run_sync(indexed.map, by, limiter=lines[store, by])
        names, labels = indexed.store.labels
        places = {
            modality: [None if np.isnan(x) else [round(x, 4), round(y, 4)] for x, y in points.tolist()]
            for modality, points in drawn.places.items()
        }
        return {
            "by": by,
            "of": len(indexed.store),
            "ids": indexed.store.ids[drawn.rows].tolist(),
            "labels": labels[drawn.rows].tolist(),
            "label_names": names,
            "clusters": drawn.clusters.tolist(),
            "num_clusters": int(drawn.clusters.max(initial=-1)) + 1,
            "note": drawn.note,
            **places,
        }


class TagChange(BaseModel):
    """What the page asks to change."""

    ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**62)]], Field(min_length=1, max_length=10_000)]
    tag: Annotated[str, Field(min_length=1, max_length=100)]
    on: bool  # False = take it away


def add_tags(app: FastAPI, catalog: Catalog, tags: Tags) -> None:
    """Add the routes for tags."""

    @app.get("/api/tags")
    def known() -> dict[str, Any]:
        return {"tags": tags.all(), "counts": tags.counts()}

    @app.post("/api/tags")
    def change(asked: TagChange) -> dict[str, Any]:
        found = [catalog.find(id) for id in asked.ids]
        clips = [(id, indexed.store.path(row)) for id, (indexed, row) in zip(asked.ids, found, strict=True)]
        tags.change(clips, asked.tag, on=asked.on)
        return known()


def add_searches(app: FastAPI, catalog: Catalog, uploads: Uploads) -> None:
    """Add the routes that search neighbors of a clip or of an uploaded file."""
    searching = threading.BoundedSemaphore(os.cpu_count() or 1)

    def find(key: str, number: int) -> tuple[IndexedStore, ClipQuery, dict[str, Any]]:
        """The store, the query in it, and its JSON description."""
        if key.startswith("u-"):
            indexed, upload = catalog[number], uploads.get(key)
            return indexed, upload.queries[number], of_upload(upload)
        indexed, row = catalog.find(int(key), number)
        return indexed, query_of_row(indexed.store, row), indexed.clip(row)

    @app.get("/api/neighbors")
    def neighbors(
        query: AskedKey,
        by: Way,
        store: int = 0,
        label: Label = "",
        exact: bool = False,
        offset: Offset = 0,
        limit: Limit = 24,
    ) -> dict[str, Any]:
        indexed, clip_query, description = find(query, store)
        since, end = time.perf_counter(), offset + limit
        options = {"label": label or None, "index": None if exact else indexed.index}
        with searching:
            ranking = rank(indexed.store, clip_query, way=by, depth=end + 1, **options)  # one more: does a page follow?
            found = indexed.neighbors(clip_query, ranking[offset:end])
        return {
            "query": description,
            "by": by,
            "exact": ranking.exact,
            "recall": None if ranking.exact else indexed.recall(by),
            "milliseconds": 1000 * (time.perf_counter() - since),
            "neighbors": found,
            "next": end if len(ranking.rows) > end else None,
        }

    @app.get("/api/agreement")
    def agreement(
        query: AskedKey, store: int = 0, label: Label = "", exact: bool = False, limit: Limit = 8
    ) -> dict[str, Any]:
        indexed, clip_query, description = find(query, store)
        since = time.perf_counter()
        options = {"label": label or None, "index": None if exact else indexed.index}
        with searching:
            lists = vars(contrast(indexed.store, clip_query, k=limit, **options))
            found = {name: indexed.neighbors(clip_query, ranking) for name, ranking in lists.items()}
        is_exact = all(ranking.exact for ranking in lists.values())
        return {
            "query": description,
            "exact": is_exact,
            "recall": None if is_exact else indexed.recall("agreement", "v2v", "a2a"),
            "milliseconds": 1000 * (time.perf_counter() - since),
            **found,
        }


def add_files(app: FastAPI, catalog: Catalog, previews: Previews, uploads: Uploads) -> None:
    """Add the routes for uploads, media and images."""
    small, large = CapacityLimiter(WAITING_THREADS), CapacityLimiter(WAITING_THREADS)
    turn, embedding = asyncio.Lock(), CapacityLimiter(1)  # of the files that arrived, one is embedded

    @app.post("/api/uploads")
    async def receive(request: Request, name: Annotated[str, Query(min_length=1, max_length=255)]) -> dict[str, Any]:
        too_large = HTTPException(413, f"{name} is larger than the {uploads.max_bytes / 2**20:g} MB allowed here")
        if int(request.headers.get("content-length", "0")) > uploads.max_bytes:
            raise too_large
        try:
            with uploads.place(name) as path:
                size = 0
                with path.open("wb") as file:
                    async for chunk in with_timeout(request.stream()):
                        size += len(chunk)
                        if size > uploads.max_bytes:
                            raise too_large
                        file.write(chunk)
                async with turn:
                    if await request.is_disconnected():
                        raise ClientDisconnect  # nobody waits for it any more
                    return of_upload(await to_thread.run_sync(uploads.take, path, name, limiter=embedding))
        except (TimeoutError, ClientDisconnect) as error:
            raise HTTPException(408, f"{name} stopped arriving, or is no longer waited for") from error
        except OSError as error:
            raise HTTPException(507, f"{name} cannot be stored here: {error.strerror}") from error

    @app.get("/media/{id}")
    async def play(id: Id) -> FileResponse:
        indexed, row = catalog.find(id)
        path, kind = await to_thread.run_sync(previews.media, *indexed.source(row), limiter=large)
        return FileResponse(path, media_type=kind)

    @app.get("/poster/{key}")
    async def poster(key: Key, request: Request) -> Response:
        return await picture(request, key, "poster", "image/jpeg")

    @app.get("/spectrogram/{key}")
    async def spectrogram(key: Key, request: Request) -> Response:
        return await picture(request, key, "spectrogram", "image/png")

    async def picture(request: Request, key: str, kind: Literal["poster", "spectrogram"], media_type: str) -> Response:
        """An image, or 304 if the browser has it already."""
        if key.startswith("u-"):
            content = getattr(uploads.get(key), kind)
            if content is None:
                raise HTTPException(404, f"the file has no {'video' if kind == 'poster' else 'audio'}")
        else:
            indexed, row = catalog.find(int(key))
            content = await to_thread.run_sync(getattr(previews, kind), *indexed.source(row), limiter=small)
        tag = f'"{digest(content)}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(content, media_type=media_type, headers={"etag": tag})


def of_store(indexed: IndexedStore) -> dict[str, Any]:
    store = indexed.store
    return {
        "name": str(store.folder),
        "run": store.meta.run,
        "kind": store.meta.kind,
        "clips": len(store),
        "with_video": int(store.has["video"].sum()),
        "with_audio": int(store.has["audio"].sum()),
        "ways": list(ways_of(store)),
        "index": {
            "state": indexed.state,
            "why": indexed.why,
            "recall": None if indexed.index is None else indexed.index.measured.recall,
        },
    }


def of_upload(upload: Upload) -> dict[str, Any]:
    return {name: getattr(upload, name) for name in ("id", "name", "has_video", "has_audio", "seconds")}


async def with_timeout(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a stream. Raises TimeoutError when the next one does not come, or all come too slowly."""
    now = asyncio.get_running_loop().time
    begin, size = now(), 0
    while True:
        async with asyncio.timeout_at(PAUSE_SECONDS + min(now(), begin + size / LEAST_RATE)):
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
        size += len(piece)
        yield piece
