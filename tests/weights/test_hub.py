"""Weights on the hub: fetched from a small server that answers as the hub does, uploaded to a stub of its two calls."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import avssl
from avssl.data.manifest import Manifest
from avssl.training.loop import train
from avssl.weights.hub import FILES, HubError, fetch, push_to_hub
from tests.support.runs import Call, config

hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys, avssl
model = avssl.load(sys.argv[1], device="cpu")
print(model.weights_hash, model.path.parent.name)
"""


@pytest.fixture(scope="module")
def weights(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    assert not train(config(clip_set, folder / "run", "run.max_steps=1"))
    avssl.export(avssl.load(folder / "run", device="cpu"), folder / "weights")
    return folder / "weights"


@pytest.fixture
def server(weights: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one repository, me/encoders, and the files that were asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            place, _, name = self.path.partition("/resolve/")
            revision, _, name = name.partition("/")
            known = place == "/me/encoders" and revision in ("main", "v1", COMMIT) and name in FILES
            content = (weights / name).read_bytes() if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            if known:
                self.send_header("X-Repo-Commit", COMMIT)
            elif place == "/me/encoders":
                self.send_header("X-Error-Code", "RevisionNotFound")
            else:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                asked.extend([name] if known else [])
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


def test_weights_are_fetched_once_and_loaded(weights: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server

    def run(name: str) -> subprocess.CompletedProcess:
        env = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PATH": ""}
        env |= {"PYTHONPATH": str(Path(avssl.__file__).parents[1])}
        return subprocess.run([sys.executable, "-c", FETCH, name], env=env, capture_output=True, text=True)

    done = run("hf:me/encoders")
    assert done.stdout.split() == [avssl.load(weights, device="cpu").weights_hash, COMMIT], done.stderr[-1500:]
    assert sorted(asked) == sorted(FILES)
    assert run("hf:me/encoders@v1").stdout == done.stdout
    assert len(asked) == len(FILES)  # they lie in the cache
    lost = run("hf:me/others")
    assert "HubError: hf:me/others: the hub says: 404" in lost.stderr.splitlines()[-1]


def test_a_folder_is_uploaded_as_it_is(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Call
) -> None:
    calls = []
    monkeypatch.setattr(hub, "create_repo", lambda name, **how: calls.append((name, how)))
    monkeypatch.setattr(hub, "upload_folder", lambda **how: calls.append(how) or "https://hub/me/encoders/commit/1")
    assert push_to_hub(weights, "me/encoders", private=True) == "https://hub/me/encoders/commit/1"
    assert calls[0] == ("me/encoders", {"private": True, "exist_ok": True, "token": None})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/encoders", weights)
    assert (weights / "README.md").read_text().startswith("---\nlibrary_name: avssl\n")
    done = call("tools/convert.py", weights.parent / "run", "--to", tmp_path / "w", "--push", "me/encoders")
    assert done.out.splitlines()[-1] == "uploaded: https://hub/me/encoders/commit/1"
    assert calls[-1]["folder_path"] == tmp_path / "w"
    with pytest.raises(HubError, match=r"has no config\.json: write it with avssl convert"):
        push_to_hub(tmp_path, "me/encoders")


def test_what_the_hub_lacks_or_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"hf:a/b/c: the hub says: Repo id must be in the form"):
        fetch("hf:a/b/c")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"hf:a/b needs huggingface_hub: pip install 'avssl\[hub\]'"):
        fetch("hf:a/b")
