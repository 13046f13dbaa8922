"""The browser's server as a visitor meets it: right questions, wrong ones, and files it must not give away."""

import asyncio
import csv
import io
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from avssl.browser import app as module
from avssl.browser import catalog
from avssl.browser.app import build_app
from avssl.browser.catalog import IndexedStore
from avssl.browser.guard import Guard
from avssl.browser.previews import Previews
from avssl.browser.tags import Tags
from avssl.browser.uploads import MAX_AT_ONCE, PREFIX, Uploads, remove_leftovers
from avssl.config import load
from avssl.data.manifest import Manifest
from avssl.retrieval.search import WAYS, query_of_row, rank
from avssl.retrieval.store import Store, StoreError, read_store
from avssl.retrieval.write import write_store
from avssl.training.loop import train
from avssl.weights.load import load_run
from tests.support.clips import make_clip, make_set, make_sound
from tests.support.runs import TINY
from tests.support.stores import random_vectors, write

MAX_BYTES, MAX_SECONDS = 200_000, 5.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_set(tmp_path_factory.mktemp("set"), num_train=8, num_test=6, sound_only=1)


@pytest.fixture(scope="module")
def stores(clips: Manifest, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> list[Store]:
    """Embeddings of two runs of the same clips."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        own = [f"data.manifest={clips.root}/manifest.parquet", f"run.dir={folder / str(seed)}", f"run.seed={seed}"]
        assert train(
            load(repository / "configs/toy/avid.yaml", [*TINY, *own, "optim.epochs=1", "optim.warmup_epochs=0"])
        )
        run = load_run(folder / str(seed))
        write_store(folder / f"e{seed}", run, clips, manifest_path=clips.root / "manifest.parquet", num_clips=1)
    return [read_store(folder / f"e{seed}") for seed in (0, 1)]


def visit(shown: list[Store], folder: Path, **limits: float) -> Iterator[TestClient]:
    settings = {"max_bytes": MAX_BYTES, "max_seconds": MAX_SECONDS} | limits
    with Uploads(shown, **settings) as uploads, Previews(folder / "previews") as previews:
        shown_on = [IndexedStore(store, folder / str(number), print) for number, store in enumerate(shown)]
        server = Guard(build_app(shown_on, previews=previews, uploads=uploads))
        visitor = TestClient(server, base_url="http://127.0.0.1", raise_server_exceptions=False)
        visitor.uploads, visitor.stores = uploads, shown_on
        yield visitor


@pytest.fixture(scope="module")
def visitor(stores: list[Store], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from visit(stores, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def silent(stores: list[Store]) -> int:
    return int(stores[0].ids[~stores[0].has["audio"]][0])


def detail(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


def test_about(visitor: TestClient, stores: list[Store]) -> None:
    about = visitor.get("/api/about").json()
    assert [store["name"] for store in about["stores"]] == [str(store.folder) for store in stores]
    assert about["stores"][0]["ways"] == list(WAYS)
    assert about["stores"][0]["index"] == {
        "state": "exact",
        "why": "16 clips: every search looks at all of them",
        "recall": None,
    }
    assert about["stores"][0]["with_video"] == 14
    counts = Counter(stores[0].table.column("label").to_pylist())
    assert about["labels"] == [{"name": name, "clips": counts[name]} for name in ("0", "1")]
    assert about["uploads"] == {"max_bytes": MAX_BYTES, "max_seconds": MAX_SECONDS}


def test_clips_are_listed_page_by_page_and_filtered(visitor: TestClient, clips: Manifest) -> None:
    paths, offset = [], 0
    while offset is not None:
        page = visitor.get(f"/api/clips?offset={offset}&limit=5").json()
        paths, offset = paths + [clip["path"] for clip in page["clips"]], page["next"]
    assert paths == clips.column("path").tolist()
    assert page["total"] == 16
    found = visitor.get("/api/clips?label=1&name=TEST/").json()
    assert found["clips"]
    assert all(clip["label"] == "1" and clip["path"].startswith("test/") for clip in found["clips"])
    assert visitor.get("/api/clips?label=nothing").json() == {"total": 0, "clips": [], "next": None}
    assert visitor.get("/api/clips?name=.*").json()["total"] == 0  # a text, no pattern
    assert visitor.get("/api/clips?offset=1000").json()["clips"] == []
    one = visitor.get(f"/api/clips/{found['clips'][0]['id']}").json()
    assert one == found["clips"][0]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_neighbours_are_those_of_the_search(visitor: TestClient, stores: list[Store], way: str, number: int) -> None:
    store = stores[number]
    row = int(np.flatnonzero(store.has["video"] & store.has["audio"])[3])
    expected = rank(store, query_of_row(store, row), way=way, depth=16)
    found, offset = [], 0
    while offset is not None:
        asked = f"/api/neighbors?query={store.ids[row]}&by={way}&store={number}&offset={offset}&limit=4"
        page = visitor.get(asked).json()
        found, offset = found + page["neighbors"], page["next"]
    assert [clip["id"] for clip in found] == store.ids[expected.rows].tolist()
    assert np.allclose([clip["score"] for clip in found], expected.scores)
    assert (page["exact"], page["recall"], page["by"]) == (True, None, way)
    assert page["query"]["id"] == store.ids[row]
    only = visitor.get(f"/api/neighbors?query={store.ids[row]}&by={way}&store={number}&label=1").json()["neighbors"]
    assert [clip["id"] for clip in only] == [clip["id"] for clip in found if clip["label"] == "1"]


def test_agreement_shows_three_lists(visitor: TestClient, stores: list[Store]) -> None:
    both = stores[0].ids[stores[0].has["video"] & stores[0].has["audio"]]
    found = visitor.get(f"/api/agreement?query={both[0]}&limit=3").json()
    assert len(found["positives"]) == 3
    assert found["positives"][0]["score"] == pytest.approx(
        min(found["positives"][0][side] for side in ("video", "audio"))
    )
    assert all(clip["video"] > clip["audio"] for clip in found["looks_alike"])
    assert all(clip["audio"] > clip["video"] for clip in found["sounds_alike"])


def test_map_places_every_clip(visitor: TestClient, stores: list[Store]) -> None:
    drawn = visitor.get("/api/map?store=1").json()
    assert drawn["ids"] == stores[1].ids.tolist()
    assert [place is not None for place in drawn["video"]] == stores[1].has["video"].tolist()
    assert all(0 <= value <= 1 for place in drawn["audio"] if place for value in place)
    assert {drawn["label_names"][label] for label in drawn["labels"]} == {"0", "1"}
    if not visitor.get("/api/about").json()["umap"]:
        assert "avssl[umap]" in detail(visitor.get("/api/map?by=umap"), 400)


@pytest.mark.parametrize(
    "address, status",
    [
        ("/api/clips/999", 404),
        ("/api/clips/-1", 400),
        ("/api/clips/99999999999999999999999", 400),
        ("/api/clips/abc", 400),
        ("/api/clips?limit=0", 400),
        ("/api/clips?limit=100000", 400),
        ("/api/clips?offset=-5", 400),
        ("/api/neighbors?query=0", 400),
        ("/api/neighbors?query=0&by=smell", 400),
        ("/api/neighbors?query=999&by=v2v", 404),
        ("/api/neighbors?query=0&by=v2v&store=2", 404),
        ("/api/neighbors?query=0&by=v2v&store=-1", 404),
        ("/api/neighbors?query=../../etc/passwd&by=v2v", 400),
        ("/api/neighbors?query=u-0123456789abcdef&by=v2v", 404),
        ("/api/agreement?query=x", 400),
        ("/api/map?store=7", 404),
        ("/api/map?by=tsne", 400),
        ("/media/999", 404),
        ("/media/x", 400),
        ("/media/1.5", 400),
        ("/poster/999", 404),
        ("/poster/u-0123456789abcdef", 404),
        ("/spectrogram/..%2f1", 404),
        ("/nothing", 404),
    ],
)
def test_wrong_questions_get_a_sentence(visitor: TestClient, address: str, status: int) -> None:
    assert detail(visitor.get(address), status)


@pytest.mark.parametrize(
    "address",
    [
        "/media/../../../../etc/passwd",
        "/media/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/media//etc/passwd",
        "/media/1/../../etc/passwd",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/..%5capp.py",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_name_of_a_visitor_is_opened(visitor: TestClient, address: str) -> None:
    answer = visitor.get(address)
    assert answer.status_code in (400, 404)
    assert "import" not in answer.text
    assert "root:" not in answer.text


def test_paths_that_leave_the_folder_are_refused_at_the_start(tmp_path: Path) -> None:
    for path in ("../secret.mp4", "/etc/passwd", "a/../../b.mp4"):
        store = write(tmp_path / "e", random_vectors(2, 4), paths=["fine.mp4", path])
        with pytest.raises(StoreError, match=r"paths that leave their root, such as"):
            IndexedStore(store, tmp_path, print)


def test_a_clip_is_sent_whole_or_in_ranges(visitor: TestClient, clips: Manifest) -> None:
    content = clips.path(1).read_bytes()
    size = len(content)
    whole = visitor.get("/media/1")
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, content, "bytes")
    assert whole.headers["content-type"] == "video/mp4"
    head = visitor.head("/media/1")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")
    for asked, expected in (
        ("bytes=0-99", content[:100]),
        ("bytes=100-", content[100:]),
        (f"bytes={size - 1}-", content[-1:]),
        ("bytes=-10", content[-10:]),
        (f"bytes=5-{10 * size}", content[5:]),
        (f"bytes=-{10 * size}", content),
    ):
        answer = visitor.get("/media/1", headers={"range": asked})
        assert (answer.status_code, answer.content) == (206, expected), asked
        first = size - len(expected) if asked != "bytes=0-99" else 0
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{size}"
    for beyond in (f"bytes={size}-", f"bytes={10 * size}-{11 * size}"):
        answer = visitor.get("/media/1", headers={"range": beyond})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{size}"
    for broken in ("bytes=b-a", "bytes=9-5", "lines=1-2", "bytes="):
        assert visitor.get("/media/1", headers={"range": broken}).status_code in (200, 400, 416)
    stale = visitor.get("/media/1", headers={"range": "bytes=0-9", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, content)


def test_pictures_of_clips_are_small_and_asked_for_again_at_no_cost(
    visitor: TestClient, silent: int, stores: list[Store]
) -> None:
    for kind, form in (("poster", "JPEG"), ("spectrogram", "PNG")):
        answer = visitor.get(f"/{kind}/1")
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.format == form
        assert max(picture.size) <= 256
        again = visitor.get(f"/{kind}/1", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert dict(visitor.head(f"/{kind}/1").headers) == dict(answer.headers)
    assert "audio" in detail(visitor.get(f"/spectrogram/{silent}"), 404)
    blind = int(stores[0].ids[~stores[0].has["video"]][0])
    assert "video" in detail(visitor.get(f"/poster/{blind}"), 404)
    assert visitor.get(f"/media/{blind}").headers["content-type"] == "audio/mpeg"


def test_a_clip_without_audio_says_what_cannot_be_asked(visitor: TestClient, silent: int) -> None:
    assert "has no audio" in detail(visitor.get(f"/api/neighbors?query={silent}&by=a2v"), 400)
    assert "has no audio" in detail(visitor.get(f"/api/agreement?query={silent}"), 400)
    found = visitor.get(f"/api/neighbors?query={silent}&by=v2v").json()["neighbors"]
    assert {clip["audio"] for clip in found} == {None}


def test_a_file_that_went_away_is_said_to_be_gone(tmp_path: Path) -> None:
    make_clip(tmp_path / "clips" / "0.mp4", 0, 0)
    store = write(tmp_path / "e", random_vectors(3, 4), root=tmp_path)
    (tmp_path / "clips" / "1.mp4").mkdir()
    for visitor in visit([store], tmp_path / "b"):
        assert visitor.get("/media/0").status_code == 200
        for kind in ("media", "poster", "spectrogram"):
            assert "no file" in detail(visitor.get(f"/{kind}/1"), 404)
            assert "2.mp4: the file does not exist" in detail(visitor.get(f"/{kind}/2"), 404)


def test_a_link_that_leads_out_is_served_only_if_it_was_there_at_the_start(tmp_path: Path) -> None:
    for number in range(4):
        make_clip(tmp_path / "root/clips" / f"{number}.mp4", number, number)
    (tmp_path / "root/clips").rename(tmp_path / "pool")  # a class folder on another disk
    (tmp_path / "root/clips").symlink_to(tmp_path / "pool")
    make_clip(tmp_path / "secret.mp4", 0, 9)
    store = write(tmp_path / "e", random_vectors(4, 4), root=tmp_path / "root")
    (tmp_path / "pool/3.mp4").rename(tmp_path / "root/3.mp4")
    (tmp_path / "pool/3.mp4").symlink_to(tmp_path / "root/3.mp4")
    for visitor in visit([store], tmp_path / "b"):
        time.sleep(0.02)  # the clock of files is coarse
        (tmp_path / "pool/1.mp4").unlink()
        (tmp_path / "pool/1.mp4").symlink_to(tmp_path / "secret.mp4")
        (tmp_path / "root/3.mp4").unlink()
        (tmp_path / "root/3.mp4").symlink_to("../secret.mp4")
        assert visitor.get("/media/0").status_code == 200
        for number in (1, 3):
            for kind in ("media", "poster", "spectrogram"):
                assert f"{number}.mp4 leads out" in detail(visitor.get(f"/{kind}/{number}"), 404)


def test_two_runs_that_read_different_clips_are_listed_together(tmp_path: Path) -> None:
    first = write(tmp_path / "a", random_vectors(4, 4), ids=[0, 1, 4, 6], labels=["x", "y", "x", "x"])
    second = write(tmp_path / "b", random_vectors(3, 4), ids=[1, 5, 6], labels=["y", "z", "x"])
    for visitor in visit([first, second], tmp_path / "c"):
        assert visitor.get("/api/about").json()["labels"] == [
            {"name": "x", "clips": 3},
            {"name": "y", "clips": 1},
            {"name": "z", "clips": 1},
        ]
        pages = [visitor.get(f"/api/clips?limit=3&offset={offset}").json() for offset in (0, 3)]
        assert [[clip["id"] for clip in page["clips"]] for page in pages] == [[0, 1, 4], [5, 6]]
        assert visitor.get("/api/clips?label=z").json()["clips"][0]["path"] == "clips/5.mp4"
        asked = "/api/neighbors?query=5&by=v2v&store="
        assert len(visitor.get(f"{asked}1").json()["neighbors"]) == 2
        assert f"clip 5 is in {second.folder}, but not in {first.folder}" in detail(visitor.get(f"{asked}0"), 404)


def upload(visitor: TestClient, content: bytes, name: str = "mine.mp4") -> httpx.Response:
    return visitor.post("/api/uploads", params={"name": name}, content=content)


def left_over(visitor: TestClient) -> list[str]:
    return [path.name for path in visitor.uploads.folder.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.slow
def test_an_uploaded_clip_finds_what_the_clip_itself_would(
    visitor: TestClient, clips: Manifest, stores: list[Store]
) -> None:
    row = int(np.flatnonzero(stores[0].has["video"] & stores[0].has["audio"])[2])
    answer = upload(visitor, (clips.root / stores[0].path(row)).read_bytes())
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["name"], told["has_video"], told["has_audio"]) == ("mine.mp4", True, True)
    assert told["seconds"] == pytest.approx(1.2, abs=0.15)
    assert left_over(visitor) == []
    for number in (0, 1):
        for way in ("v2v", "a2a", "agreement"):
            found = visitor.get(f"/api/neighbors?query={told['id']}&by={way}&store={number}").json()
            assert found["query"] == told
            assert found["neighbors"][0]["score"] == pytest.approx(1, abs=2e-3)  # itself, stored as float16
    assert visitor.get(f"/api/agreement?query={told['id']}").json()["positives"]
    for kind in ("poster", "spectrogram"):
        assert visitor.get(f"/{kind}/{told['id']}").content == visitor.get(f"/{kind}/{stores[0].ids[row]}").content


def test_an_uploaded_sound_has_one_side(visitor: TestClient, tmp_path: Path) -> None:
    make_sound(tmp_path / "song.mp3", 1, 3)
    told = upload(visitor, (tmp_path / "song.mp3").read_bytes(), "../../song.mp3").json()
    assert (told["has_video"], told["has_audio"]) == (False, True)
    assert visitor.get(f"/api/neighbors?query={told['id']}&by=a2v").json()["neighbors"]
    assert "no video" in detail(visitor.get(f"/api/neighbors?query={told['id']}&by=v2a"), 400)
    assert "no video" in detail(visitor.get(f"/poster/{told['id']}"), 404)


def test_uploads_that_are_refused(visitor: TestClient, clips: Manifest, tmp_path: Path) -> None:
    clip = clips.path(1).read_bytes()
    assert "cannot be used" in detail(upload(visitor, b"no clip at all"), 422)
    assert "empty" in detail(upload(visitor, b""), 422)
    assert "could not be embedded" in detail(upload(visitor, clip[:300]), 422)
    assert "cannot be used" in detail(upload(visitor, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "a.m3u8"), 422)
    assert "larger than" in detail(upload(visitor, bytes(MAX_BYTES + 1)), 413)
    pieces = (bytes(50_000) for _ in range(100))  # without a length in the header
    assert "larger than" in detail(visitor.post("/api/uploads?name=a.mp4", content=pieces), 413)
    make_sound(tmp_path / "long.mp3", 0, 0, seconds=MAX_SECONDS + 2)
    assert "more than the 5 allowed here" in detail(upload(visitor, (tmp_path / "long.mp3").read_bytes(), "l.mp3"), 422)
    assert detail(visitor.post("/api/uploads", content=clip), 400)  # no name
    assert detail(visitor.post("/api/uploads", params={"name": "a" * 300}, content=clip), 400)
    assert visitor.get("/api/uploads?name=a").status_code == 405
    assert detail(visitor.post("/api/uploads?name=a", content=clip, headers={"origin": "http://evil.example"}), 403)
    assert str(visitor.uploads.folder) not in upload(visitor, b"nothing").text
    assert left_over(visitor) == []
    assert upload(visitor, clip).status_code == 200  # and the next one is served


def test_a_removed_folder_of_uploads_is_made_again(visitor: TestClient, clips: Manifest) -> None:
    for _ in range(2):
        shutil.rmtree(visitor.uploads.folder)  # as cleaners of temporary files do
        told = upload(visitor, clips.path(1).read_bytes()).json()
        assert visitor.get(f"/poster/{told['id']}").status_code == 200
        assert visitor.uploads.folder.stat().st_mode & 0o777 == 0o700


def test_a_file_that_takes_too_long_is_given_up(stores: list[Store], clips: Manifest, tmp_path: Path) -> None:
    for visitor in visit(stores, tmp_path, timeout_seconds=0.05):
        assert "not done within" in detail(upload(visitor, clips.path(1).read_bytes()), 422)
        assert left_over(visitor) == []
        folder = visitor.uploads.folder
    assert not folder.exists()


def test_too_many_uploads_at_once_are_turned_away(visitor: TestClient) -> None:
    places = [visitor.uploads.place(f"{number}.mp4") for number in range(MAX_AT_ONCE)]
    for place in places:
        place.__enter__()
    assert "try again in a moment" in detail(upload(visitor, b"x"), 503)
    for place in places:
        place.__exit__(None, None, None)
    assert upload(visitor, b"x").status_code == 422


def test_what_nobody_waits_for_any_more_is_not_embedded(
    visitor: TestClient, clips: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several visitors wait in line, and one of them leaves."""
    taken, answers = [], {}
    take = visitor.uploads.take
    monkeypatch.setattr(visitor.uploads, "take", lambda path, name: taken.append(name) or take(path, name))

    async def send_file(name: str, *, leaves: bool) -> None:
        messages = [{"type": "http.request", "body": clips.path(1).read_bytes()}]

        async def receive() -> dict[str, object]:
            if messages:
                return messages.pop()
            if not leaves:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            answers.setdefault(name, message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/api/uploads", "query_string": f"name={name}".encode()}
        await visitor.app(scope | {"headers": [(b"host", b"127.0.0.1")]}, receive, send)

    async def all_at_once() -> None:
        names = ("first.mp4", "left.mp4", "last.mp4")
        await asyncio.gather(*(send_file(name, leaves=name == "left.mp4") for name in names))

    asyncio.run(all_at_once())
    assert sorted(taken) == ["first.mp4", "last.mp4"]
    assert answers == {"first.mp4": 200, "left.mp4": 408, "last.mp4": 200}
    assert left_over(visitor) == []


def test_what_a_killed_server_left_is_removed(
    visitor: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / f"{PREFIX}killed").mkdir()
    for name in (".lock", "clip.mp4"):
        (tmp_path / f"{PREFIX}killed" / name).write_text("x")
    (tmp_path / f"{PREFIX}used").symlink_to(visitor.uploads.folder)
    remove_leftovers()
    assert not (tmp_path / f"{PREFIX}killed").exists()
    assert visitor.uploads.folder.exists()


def test_a_sender_that_pauses_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.2)

    async def pieces(size: int, seconds: float) -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(size)
            await asyncio.sleep(seconds)

    async def run(*arguments: float) -> int:
        return len([piece async for piece in module.with_timeout(pieces(*arguments))])

    assert asyncio.run(run(10_000, 0.05)) == 8
    for arguments in ((10_000_000, 5), (1, 0.05)):  # one long pause, or always too slow
        with pytest.raises(TimeoutError):
            asyncio.run(run(*arguments))


def test_old_uploads_are_forgotten(visitor: TestClient, clips: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avssl.browser.uploads.MAX_HELD", 1)
    first, second = (upload(visitor, clips.path(1).read_bytes()).json()["id"] for _ in range(2))
    assert "bring it again" in detail(visitor.get(f"/api/neighbors?query={first}&by=v2v"), 404)
    assert visitor.get(f"/api/neighbors?query={second}&by=v2v").status_code == 200


@pytest.mark.slow
def test_a_run_that_was_trained_on_embeds_nothing(stores: list[Store], clips: Manifest, tmp_path: Path) -> None:
    other = write(tmp_path / "e", random_vectors(3, 4), run=stores[0].meta.run)  # other weights
    gone = write(tmp_path / "g", random_vectors(3, 4), run=str(tmp_path / "no run"))
    for store, why in ((other, "was trained on since"), (gone, "no run")):
        for visitor in visit([store], tmp_path / "b"):
            assert why in detail(upload(visitor, clips.path(1).read_bytes()), 422)


def test_searches_are_exact_until_the_index_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "EXACT_BELOW", 10)
    store = write(tmp_path / "e", random_vectors(3000, 16))
    begin, opened = threading.Event(), catalog.open_index

    def later(*given: object, **named: object) -> object:
        begin.wait(30)
        return opened(*given, **named)

    monkeypatch.setattr(catalog, "open_index", later)
    for visitor in visit([store], tmp_path / "b"):
        visitor.stores[0].prepare()
        assert visitor.get("/api/about").json()["stores"][0]["index"]["state"] == "building"
        asked = "/api/neighbors?query=5&by=v2a"
        exact = visitor.get(asked).json()
        assert (exact["exact"], exact["recall"]) == (True, None)
        begin.set()
        while visitor.get("/api/about").json()["stores"][0]["index"]["state"] == "building":
            time.sleep(0.05)
        index = visitor.get("/api/about").json()["stores"][0]["index"]
        assert index["state"] == "ready"
        found = visitor.get(asked).json()
        assert (found["exact"], found["recall"]) == (False, index["recall"]["v2a"])
        assert visitor.get(f"{asked}&exact=1").json()["neighbors"] == exact["neighbors"]
        assert visitor.get("/api/agreement?query=5").json()["exact"] is False


def test_a_failing_index_leaves_exact_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "EXACT_BELOW", 10)
    monkeypatch.setattr(catalog, "open_index", lambda *given, **named: (_ for _ in ()).throw(MemoryError("too much")))
    said: list[str] = []
    indexed = IndexedStore(write(tmp_path / "e", random_vectors(50, 4)), tmp_path, said.append)
    indexed.prepare()
    while indexed.state == "building":
        time.sleep(0.01)
    assert (indexed.state, indexed.index) == ("failed", None)
    assert "too much" in indexed.why
    assert said == [indexed.why]


def test_tags_are_kept_in_a_file_and_filter(stores: list[Store], tmp_path: Path, clips: Manifest) -> None:
    file = stores[0].folder / "tags.csv"
    assert not file.exists()
    (visitor,) = visit(stores, tmp_path)
    first, second, third = (int(id) for id in stores[0].ids[:3])
    path = stores[0].path(stores[0].row(second))

    def change(ids: list[int], tag: str, on: bool) -> httpx.Response:
        return visitor.post("/api/tags", json={"ids": ids, "tag": tag, "on": on})

    try:
        assert visitor.get("/api/tags").json() == {"tags": {}, "counts": {}}
        assert change([first, second], "a dog", True).json()["counts"] == {"a dog": 2}
        assert change([second], ' "=1", ä ', True).json()["tags"][str(second)] == ["a dog", '"=1", ä']
        assert change([first], "a dog", False).json()["counts"] == {'"=1", ä': 1, "a dog": 1}
        found = visitor.get("/api/clips", params={"tag": "a dog"}).json()
        assert (found["total"], [clip["id"] for clip in found["clips"]]) == (1, [second])
        assert visitor.get("/api/clips", params={"tag": "none has it"}).json()["total"] == 0
        with file.open(newline="", encoding="utf-8") as lines:
            assert list(csv.reader(lines)) == [["id", "path", "tags"], [str(second), path, 'a dog;"=1", ä']]
        for ids, tag, status, words in (
            ([first], " ", 422, "expected some words without ;"),
            ([first], "a;b", 422, "expected some words without ;"),
            ([first], "a\nb", 422, "expected some words without ;"),
            ([10**6], "dog", 404, "clip 1000000 is not in these embeddings"),
            ([], "dog", 400, "ids: "),
            ([first], "x" * 101, 400, "tag: "),
        ):
            assert words in detail(change(ids, tag, True), status)
        elsewhere = {"origin": "http://elsewhere.org"}
        foreign = visitor.post("/api/tags", json={"ids": [third], "tag": "x", "on": True}, headers=elsewhere)
        assert foreign.status_code == 403
        again = Tags(file)
        assert again.all() == {second: ["a dog", '"=1", ä']}
        file.write_text("id,words\n1,a\n")
        with pytest.raises(StoreError, match=r"tags\.csv is no list of tags .*mend it, or move it away"):
            Tags(file)
    finally:
        file.unlink(missing_ok=True)
