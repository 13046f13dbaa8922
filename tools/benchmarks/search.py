"""Speed of the neighbor browser (avssl browse) with many clips, over HTTP: start, latency of each kind of search
with the index and exact, and load of many clients at once.

    python tools/benchmarks/search.py
    python tools/benchmarks/search.py --n 100000 --clients 10 --seconds 10

Letters: R rows of a shard, D dimensions.
"""

import http.client
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import stopwatch
import torch
import torch.nn.functional as F

from avssl.media.encode import write_clip
from avssl.retrieval.search import WAYS
from avssl.retrieval.store import SCHEMA, SHARD_ROWS, Meta

NUM_CLASSES = 400  # as in Kinetics
LATENT = 32  # dimensions in which clips of a class differ, shared by video and audio
NUM_FILES = 8  # made clips; every row is one of them
WAIT_SECONDS = 1800.0  # for the index
ROOT = Path(__file__).parents[2]


def benchmark_search(
    folder: Path, *, num_rows: int, dim: int, num_queries: int, num_clients: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Make embeddings in an empty folder, start avssl browse on them twice, and ask.

    Args:
        num_queries: of each way, one after another.
        num_clients, seconds: how many clients ask without a pause, and for how long.

    Returns:
        start_seconds: from the command to the first answer, with the index to be built, and restart_seconds with it
        beside the embeddings; index_seconds and ready_seconds: until it is in use, built and read; for each way the
        median and the 95th percentile of milliseconds, by the index and exactly, and the recall of the index; load:
        what `load` gives.
    """
    make_embeddings(folder, num_rows=num_rows, dim=dim, seed=seed)
    with _server(folder) as (first, start_seconds):
        index_seconds = _until_ready(first)
    with _server(folder) as (server, restart_seconds):
        ready_seconds = _until_ready(server)
        recall = _ask(server, "/api/about")["stores"][0]["index"]["recall"] or {}
        generator = random.Random(seed)
        ways = []
        for way in WAYS:
            asked = [f"/api/neighbors?query={generator.randrange(num_rows)}&by={way}" for _ in range(num_queries)]
            indexed, exact = (_percentiles(server, [path + end for path in asked]) for end in ("", "&exact=1"))
            exact = {f"exact_{name}": value for name, value in exact.items()}
            ways.append({"way": way, **indexed, **exact, "recall": recall.get(way, 1.0)})
        loaded = load(server, num_rows=num_rows, num_clients=num_clients, seconds=seconds, seed=seed)
    return {
        "n": num_rows,
        "dim": dim,
        "start_seconds": start_seconds,
        "index_seconds": index_seconds,
        "restart_seconds": restart_seconds,
        "ready_seconds": ready_seconds,
        "ways": ways,
        "load": loaded,
    }


def make_embeddings(folder: Path, *, num_rows: int, dim: int, seed: int) -> None:
    """Write embeddings such as a trained run has: a direction for each class and, in fewer dimensions, one for each
    clip, both shared by video and audio, and noise of each modality's own; every tenth clip has the audio of another
    class.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = F.normalize(torch.randn(NUM_CLASSES, dim, generator=generator), dim=1)
    basis = F.normalize(torch.randn(LATENT, dim, generator=generator), dim=1)
    _make_clips(folder / "clips", seed=seed)
    for number, first in enumerate(range(0, num_rows, SHARD_ROWS)):
        ids = torch.arange(first, min(first + SHARD_ROWS, num_rows))
        looks = torch.randint(NUM_CLASSES, ids.shape, generator=generator)
        foreign = torch.rand(ids.shape, generator=generator) < 0.1
        sounds = torch.where(foreign, torch.randint(NUM_CLASSES, ids.shape, generator=generator), looks)
        own = torch.randn(len(ids), LATENT, generator=generator) @ basis / LATENT**0.5  # (R, D)
        for modality, kind in (("video", looks), ("audio", sounds)):
            noise = torch.randn(len(ids), dim, generator=generator) / dim**0.5
            vectors = F.normalize(classes[kind] + 0.7 * own + 0.4 * noise, dim=1)
            np.save(folder / f"shard-{number:05d}.{modality}.npy", vectors.numpy().astype(np.float16))
        columns = {
            "id": ids.tolist(),
            "path": [f"clips/{id % NUM_FILES}.mp4" for id in ids.tolist()],
            "label": [f"class {kind:03d}" for kind in looks.tolist()],
            "has_audio": [True] * len(ids),
            "has_video": [True] * len(ids),
        }
        missing = {name: [None] * len(ids) for name in SCHEMA.names if name not in columns}
        pq.write_table(pa.table(columns | missing, schema=SCHEMA), folder / f"shard-{number:05d}.parquet")
    made = {"run": "none", "manifest": "none", "weights_hash": str(seed), "manifest_hash": str(seed)}
    meta = Meta(**made, root=str(folder), kind="embedding", num_clips=1, split=None, num_rows=num_rows)
    (folder / "meta.json").write_text(json.dumps(asdict(meta)) + "\n")


def _make_clips(folder: Path, *, seed: int) -> None:
    """A second of noise and a tone each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    times = np.arange(16_000, dtype=np.float32) / 16_000
    for number in range(NUM_FILES):
        frames = rng.integers(0, 255, (15, 64, 64, 3), dtype=np.uint8)
        tone = 0.3 * np.sin(2 * np.pi * 200 * (number + 1) * times, dtype=np.float32)
        write_clip(folder / f"{number}.mp4", frames, fps=15, samples=tone, sample_rate=16_000)


@dataclass(frozen=True)
class Server:
    """A running avssl browse."""

    process: subprocess.Popen
    host: str

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, timeout=60)

    def held(self) -> dict[str, float]:
        """Memory of its own in MB, and open files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return {"own_mb": int(anonymous.split()[1]) / 1024, "open_files": files}


@contextmanager
def _server(folder: Path) -> Iterator[tuple[Server, float]]:
    """Start the browser; also the seconds until it first answered."""
    since = time.perf_counter()
    command = [sys.executable, str(ROOT / "tools" / "browse.py"), str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise ValueError(f"{' '.join(command)} did not start: see above")
        server = Server(process, address.removeprefix("http://").rstrip("/"))
        _ask(server, "/api/about")
        yield server, time.perf_counter() - since
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _until_ready(server: Server) -> float:
    since = time.perf_counter()
    while time.perf_counter() - since < WAIT_SECONDS:
        index = _ask(server, "/api/about")["stores"][0]["index"]
        if index["state"] == "failed":
            raise ValueError(index["why"])
        if index["state"] != "building":
            return time.perf_counter() - since
        time.sleep(0.2)
    raise ValueError(f"the index was not ready after {WAIT_SECONDS:.0f} seconds")


def _ask(server: Server, path: str) -> Any:
    connection = server.connect()
    try:
        return json.loads(_get(connection, path))
    finally:
        connection.close()


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None = None) -> bytes:
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status >= 400:
        raise ValueError(f"{path} was answered with {answer.status}: {body[:200]!r}")
    return body


def _percentiles(server: Server, paths: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one request after another."""
    connection, took = server.connect(), []
    for path in [paths[0], *paths]:  # the first warms up
        since = time.perf_counter()
        _get(connection, path)
        took.append(1000 * (time.perf_counter() - since))
    connection.close()
    return {"median_ms": float(np.median(took[1:])), "p95_ms": float(np.quantile(took[1:], 0.95))}


def _visit(server: Server, num_rows: int, seed: int, until: float) -> tuple[list[float], list[str]]:
    """Ask what a page asks, without a pause: milliseconds of each answer, and errors."""
    took, errors = [], []
    generator, connection = random.Random(seed), server.connect()
    while time.perf_counter() < until:
        path, headers = _question(generator, num_rows)
        since = time.perf_counter()
        try:
            _get(connection, path, headers)
            took.append(1000 * (time.perf_counter() - since))
        except (OSError, ValueError, http.client.HTTPException) as error:
            errors.append(repr(error))
            connection.close()
            connection = server.connect()
    connection.close()
    return took, errors


def _question(generator: random.Random, num_rows: int) -> tuple[str, dict[str, str]]:
    """Path and headers."""
    clip, way = generator.randrange(num_rows), generator.choice(WAYS)
    paths = [
        f"/api/neighbors?query={clip}&by={way}",
        f"/api/neighbors?query={clip}&by={way}&label=class%20{clip % NUM_CLASSES:03d}",
        f"/api/agreement?query={clip}",
        f"/api/clips?name=clips/{clip % NUM_FILES}&offset={clip // NUM_FILES}",
        f"/poster/{clip}",
        f"/spectrogram/{clip}",
        f"/media/{clip}",
        "/",
    ]
    path = generator.choice(paths)
    return path, {"range": f"bytes={generator.randrange(1000)}-"} if path.startswith("/media/") else {}


def load(server: Server, *, num_rows: int, num_clients: int, seconds: float, seed: int) -> dict[str, Any]:
    """Many clients at once.

    Returns:
        requests, errors, first_error, requests_per_second, median_ms and p95_ms of all kinds of requests together, and
        what the server held of memory (MB) and open files after the first third and at the end.
    """
    since = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        clients = [pool.submit(_visit, server, num_rows, seed + i, since + seconds) for i in range(num_clients)]
        time.sleep(seconds / 3)
        before = server.held()
    took, errors = ([each for client in clients for each in client.result()[i]] for i in range(2))
    time.sleep(1)  # the last connections are closed
    return {
        "clients": num_clients,
        "seconds": seconds,
        "requests": len(took),
        "errors": len(errors),
        "first_error": errors[0] if errors else "",
        "requests_per_second": len(took) / seconds,
        "median_ms": float(np.median(took)),
        "p95_ms": float(np.quantile(took, 0.95)),
        **{f"{name}_after_a_third": value for name, value in before.items()},
        **{f"{name}_at_the_end": value for name, value in server.held().items()},
    }


def measure(**settings: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return benchmark_search(Path(folder), **settings)


def main() -> int:
    parser = stopwatch.command(__doc__, seed=0)
    parser.add_argument("--n", dest="num_rows", type=int, default=1_000_000, help="clips (default: 1,000,000)")
    parser.add_argument("--dim", type=int, default=128, help="embedding dimension (default: 128)")
    parser.add_argument("--queries", dest="num_queries", type=int, default=100, help="of each way (default: 100)")
    parser.add_argument("--clients", dest="num_clients", type=int, default=50, help="that ask at once (default: 50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long (default: 60)")
    plan = (
        "{num_rows} clips of {dim} dimensions: two starts, {num_queries} queries each way by the index "
        "and exactly, then {num_clients} clients for {seconds} s"
    )
    return stopwatch.run(parser, measure, plan=plan)


if __name__ == "__main__":
    sys.exit(main())
