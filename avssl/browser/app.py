"""The neighbour browser's server: what the page asks, and the clips that it plays.

What lives here: addresses, what comes in and what goes out. What does not: who may ask (guard.py), the clips that are
shown (shelves.py), searching (search.py, index.py), pictures of clips (previews.py), visitors' files (uploads.py), the
page itself (static/).

Only clips of the embeddings are served, by their id: no name that a visitor sends is ever opened.
"""

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.requests import ClientDisconnect

from avssl.browser.catalog import Library, NotShownError, Shelf
from avssl.browser.map import Map, Method, has_umap
from avssl.browser.previews import PreviewError, Previews
from avssl.browser.uploads import BusyError, Upload, UploadError, Uploads
from avssl.files import digest
from avssl.retrieval.index import NeighbourIndex
from avssl.retrieval.search import Contrast, Ranking, Way, contrast, query_of_row, rank, ways_of
from avssl.retrieval.search import Query as ClipQuery
from avssl.retrieval.store import Store

STATIC = Path(__file__).parent / "static"
PAUSE_SECONDS = 15.0  # between two pieces of an upload
WAITING_THREADS = 16  # that wait for pictures, and as many for previews: neither keeps the other or searches waiting

Id = Annotated[int, InPath(ge=0, lt=2**62)]
Key = Annotated[str, InPath(pattern=r"^([0-9]{1,18}|u-[0-9a-f]{16})$")]
Asked = Annotated[str, Query(pattern=r"^([0-9]{1,18}|u-[0-9a-f]{16})$")]
Label = Annotated[str, Query(max_length=1000)]
Offset = Annotated[int, Query(ge=0, lt=2**40)]
Limit = Annotated[int, Query(ge=1, le=200)]


def build_app(shelves: Sequence[Shelf], *, previews: Previews, uploads: Uploads) -> FastAPI:
    """The server of embeddings, all of the same manifest. See the addresses below for what it answers."""
    app, library = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), Library(shelves)

    @app.exception_handler(RequestValidationError)
    def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    @app.exception_handler(NotShownError)
    def tell(request: Request, error: NotShownError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    @app.api_route("/", methods=["GET", "HEAD"])
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    add_clips(app, library, uploads)
    add_searches(app, library, uploads)
    add_files(app, library, previews, uploads)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def add_clips(app: FastAPI, library: Library, uploads: Uploads) -> None:
    """Add the addresses that tell what there is: embeddings, clips, maps."""
    lines: dict[tuple[int, Method], CapacityLimiter] = defaultdict(lambda: CapacityLimiter(1))  # UMAP takes a minute

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {
            "stores": [of_store(shelf) for shelf in library.shelves],
            "labels": [{"name": name, "clips": clips} for name, clips in library.label_counts().items()],
            "uploads": {"max_bytes": uploads.max_bytes, "max_seconds": uploads.max_seconds},
            "umap": has_umap(),
        }

    @app.get("/api/clips")
    def clips(label: Label = "", name: Label = "", offset: Offset = 0, limit: Limit = 48) -> dict[str, Any]:
        ids = library.ids(label=label, name=name)
        page = [library.find(id) for id in ids[offset : offset + limit].tolist()]
        after = offset + len(page)
        return {
            "total": len(ids),
            "clips": [shelf.clip(row) for shelf, row in page],
            "next": after if after < len(ids) else None,
        }

    @app.get("/api/clips/{id}")
    def clip(id: Id) -> dict[str, Any]:
        shelf, row = library.find(id)
        return shelf.clip(row)

    @app.get("/api/map")
    async def map_(store: int = 0, by: Method = "pca") -> dict[str, Any]:
        shelf = library.shelf(store)
        try:
            drawn = await to_thread.run_sync(shelf.map, by, limiter=lines[store, by])
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return of_map(shelf.store, drawn, by)


def add_searches(app: FastAPI, library: Library, uploads: Uploads) -> None:
    """Add the addresses that find neighbours of a clip or of an uploaded file."""
    searching = threading.BoundedSemaphore(os.cpu_count() or 1)

    def asked(key: str, number: int) -> tuple[Shelf, ClipQuery, dict[str, Any]]:
        """The store, the query in it, and what is told of the query."""
        shelf = library.shelf(number)
        if key.startswith("u-"):
            upload = held(uploads, key)
            return shelf, upload.queries[number], of_upload(upload)
        row = library.find_on(shelf, int(key))
        return shelf, query_of_row(shelf.store, row), shelf.clip(row)

    def narrowing(shelf: Shelf, exact: bool) -> NeighbourIndex | None:
        return None if exact else shelf.index

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


def add_files(app: FastAPI, library: Library, previews: Previews, uploads: Uploads) -> None:
    """Add the addresses by which files come in and go out."""
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
                    async for chunk in unhurried(request.stream()):
                        size += len(chunk)
                        if size > uploads.max_bytes:
                            raise too_large
                        file.write(chunk)
                async with turn:
                    if await request.is_disconnected():
                        raise ClientDisconnect  # nobody waits for it any more
                    return of_upload(await to_thread.run_sync(uploads.take, path, name, limiter=embedding))
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
        shelf, row = library.find(id)
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
            shelf, row = library.find(int(key))
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
    tag = f'"{digest(content)}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(content, media_type=kind, headers={"etag": tag})
