"""A real browser on the real server over a small real folder of embeddings, made once for all tests here."""

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from avssl.data.check import build_table
from avssl.data.manifest import read_manifest, write_manifest
from avssl.retrieval.write import write_store
from avssl.training.loop import train
from avssl.weights.load import load_run
from tests.support.clips import make_clip, make_sound
from tests.support.runs import config

NUM_CLIPS, PAGE = 60, 48  # clips of the set, and on the grid's first page
SILENT, SOUND_ONLY, OTHER_FORMAT = "train/1/silent.mp4", "train/0/sound only.mp3", "train/1/other format.avi"
PART = "train/0/000.mp4"  # seconds 0.4 to 0.8 of the file
MARKUP = "train/0/<b id=x>.mp4"
MAX_UPLOAD_MB = 1
PATIENCE_SECONDS = 30  # of every wait: a busy machine is slow, and what works is not waited for
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SCREENSHOTS = Path(__file__).parents[2] / "runs" / "browser-screenshots"


expect.set_options(timeout=1000 * PATIENCE_SECONDS)


@dataclass(frozen=True)
class Site:
    """A running server."""

    url: str  # without the slash at its end
    clips: Path  # folder of the clips


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The clips, and the embeddings of them by two runs."""
    folder = tmp_path_factory.mktemp("browser")
    clips = folder / "clips"
    rows = []
    for number in range(NUM_CLIPS - 4):
        rows.append({"path": f"train/{number % 2}/{number:03d}.mp4", "label": str(number % 2), "split": "train"})
        make_clip(clips / rows[-1]["path"], number % 2, number)
    make_clip(clips / SILENT, 1, 100, sound=False)
    make_sound(clips / SOUND_ONLY, 0, 101)
    make_clip(clips / OTHER_FORMAT, 1, 102)
    make_clip(clips / MARKUP, 0, 103)
    for path, label in ((SILENT, "1"), (SOUND_ONLY, "0"), (OTHER_FORMAT, "1"), (MARKUP, "0")):
        rows.append({"path": path, "label": label, "split": "train"})
    rows[0] |= {"start": 0.4, "end": 0.8}
    rows.sort(key=lambda row: row["path"])
    path = clips / "manifest.parquet"
    write_manifest(path, build_table(clips, rows, num_workers=1), root=clips)
    manifest = read_manifest(path)
    folders = []
    for seed in (0, 1):
        run = folder / f"run {seed}"
        assert train(config(manifest, run, "optim.epochs=1", "optim.warmup_epochs=0", f"run.seed={seed}"))
        folders.append(folder / f"embeddings {seed}")
        write_store(folders[-1], load_run(run), manifest, manifest_path=path, num_clips=1)
    return clips, *folders


def start(arguments: list[str]) -> tuple[subprocess.Popen, str]:
    """A server and the address that it prints."""
    command = [sys.executable, "tools/browse.py", *arguments, "--port", "0", "--max-upload-mb", str(MAX_UPLOAD_MB)]
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, text=True)
    ready, _, _ = select.select([server.stdout], [], [], 120)
    url = server.stdout.readline().strip().rstrip("/") if ready else ""
    if not url.startswith("http://127.0.0.1:"):
        server.kill()
        raise AssertionError(f"{command} printed no address, but {url!r}")
    return server, url


@pytest.fixture(scope="session")
def site(embeddings: tuple[Path, Path, Path]) -> Iterator[Site]:
    """The server over both runs."""
    clips, *folders = embeddings
    server, url = start([str(folder) for folder in folders])
    yield Site(url, clips)
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """Opens a path of the site in a window of its own. No test may leave an error on the browser's console (a broken
    script, something refused by the content policy), but for answers with an error status that it expects.
    """
    contexts, complaints = [], []

    def open_page(path: str = "/", *, expected_status: int | None = None, script: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(1000 * PATIENCE_SECONDS)
        page = context.new_page()
        if script:
            page.add_init_script(script)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complain(message, expected_status))
        page.goto(site.url + path)
        return page

    def complain(message: ConsoleMessage, expected_status: int | None) -> None:
        if message.type in ("error", "warning") and f"status of {expected_status} " not in message.text:
            complaints.append(message.text)

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
