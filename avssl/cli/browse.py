"""Browse the neighbors of clips: a web page over embeddings made by avssl embed.

    avssl browse embeddings/ --open
    avssl browse embeddings/ embeddings_before/        (two runs side by side)

The address is printed. Only this machine can open it, unless --host names another address: then it holds a token. The
index, the map and previews of clips that browsers cannot play are cached in EMBEDDINGS/browser.
Exit code: 0 done (Ctrl-C), 2 wrong call.
"""

import argparse
import dataclasses
import errno
import ipaddress
import os
import resource
import secrets
import signal
import socket
import sys
import tempfile
import webbrowser
from contextlib import ExitStack
from pathlib import Path

import torch
import uvicorn

from avssl.browser.app import build_app
from avssl.browser.catalog import IndexedStore
from avssl.browser.guard import Guard
from avssl.browser.previews import Previews
from avssl.browser.protocol import TimedProtocol
from avssl.browser.uploads import Uploads
from avssl.cli.common import check_above_0, info, new_parser, run
from avssl.files import WriteError, check_writable
from avssl.retrieval.store import Store, StoreError, read_store

STOPS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    return run(_browse, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__name__, __doc__)
    parser.add_argument("embeddings", type=Path, nargs="+", help="folder of avssl embed, or two of one manifest")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8300, help="0 = any free one (default: 8300)")
    parser.add_argument("--open", action="store_true", help="open the page in this machine's web browser")
    parser.add_argument("--root", type=Path, help="folder of the clips, when it moved")
    parser.add_argument("--max-upload-mb", type=int, default=64, help="largest file to drop (default: 64)")
    parser.add_argument("--max-upload-seconds", type=float, default=60.0, help="longest file to drop (default: 60)")
    parser.add_argument("--preview-gb", type=float, default=1.0, help="disk for previews (default: 1)")
    return parser


def browse(*embeddings: str | Path, port: int = 0, open_page: bool = True) -> None:
    """Serve the page of one or two folders of embeddings on this machine until Ctrl-C, and open it in a browser.

    Args:
        embeddings: folders that `avssl embed` or `store_of_arrays` wrote, of the same clips.
        port: 0 = a free one.
        open_page: False = only its address is printed.

    Raises:
        ValueError: a folder cannot be used; as the command prints it.
    """
    words = [*map(str, embeddings), "--port", str(port), *(["--open"] if open_page else [])]
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        _browse(_parser().parse_args(words))
    except SystemExit:  # after Ctrl-C; the program that called goes on
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _browse(given: argparse.Namespace) -> int:
    for number in STOPS:  # uvicorn ends its work first, then lets them through
        signal.signal(number, lambda *_: sys.exit(0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every connection is an open file
    indexed: list[IndexedStore] = []
    with ExitStack() as stack:
        stack.callback(leave_busy, indexed)  # runs last
        check_above_0(given, "max_upload_mb", "max_upload_seconds", "preview_gb")
        stores = open_stores(given.embeddings, given.root)
        listening = stack.enter_context(listen(given.host, given.port))
        folders = [cache_folder(store, stack) for store in stores]
        indexed += [IndexedStore(store, folder, info) for store, folder in zip(stores, folders, strict=True)]
        limits = {"max_bytes": given.max_upload_mb << 20, "max_seconds": given.max_upload_seconds}
        uploads = stack.enter_context(Uploads(stores, **limits))
        previews = stack.enter_context(Previews(folders[0] / "previews", max_bytes=round(given.preview_gb * 2**30)))
        token = None if ipaddress.ip_address(listening.getsockname()[0]).is_loopback else secrets.token_urlsafe(24)
        for each in indexed:
            each.prepare()
        address = address_of(listening, given.host, token)
        print(address, flush=True)
        info("Ctrl-C stops it")
        if given.open:
            webbrowser.open(address)
        app = build_app(indexed, previews=previews, uploads=uploads)
        app = Guard(app, token=token, names=[given.host.strip("[]")])
        torch.set_num_threads(1)  # searches are short and run in parallel
        quiet = {"log_level": "warning", "access_log": False, "server_header": False}
        config = uvicorn.Config(app, http=TimedProtocol, timeout_graceful_shutdown=3, **quiet)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def open_stores(folders: list[Path], root: Path | None) -> list[Store]:
    """Raises StoreError: a folder cannot be used or is given twice, or there are two of different clips, or more."""
    if len(folders) > 2:
        raise StoreError(f"{len(folders)} folders of embeddings: give one, or two to see side by side")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise StoreError(f"{folders[0]} is given twice: to compare two runs, give the embeddings of each")
    stores = [read_store(folder) for folder in folders]
    if len({store.meta.manifest_hash for store in stores}) > 1:
        raise StoreError(
            f"{folders[0]} and {folders[1]} are of different manifests ({stores[0].meta.manifest}, "
            f"{stores[1].meta.manifest}): extract both from the same one"
        )
    if root is None:
        root = Path(stores[0].meta.root)
    if not root.is_dir():
        raise StoreError(f"the folder of the clips does not exist: {root.absolute()}; name the right one with --root")
    return [dataclasses.replace(store, meta=dataclasses.replace(store.meta, root=str(root))) for store in stores]


def listen(host: str, port: int) -> socket.socket:
    """Raises ValueError: the address is not one of this machine, or taken."""
    try:
        if not 0 <= port <= 65_535:
            raise OverflowError("a port is a number up to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except (OSError, OverflowError) as error:
        hint = "--host is an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        if isinstance(error, OverflowError) or error.errno == errno.EADDRINUSE:
            hint = "--port 0 finds a free one"
        raise ValueError(f"--host {host} --port {port} cannot be listened on ({error}): {hint}") from error
    return listening


def cache_folder(store: Store, stack: ExitStack) -> Path:
    """EMBEDDINGS/browser; a temporary folder where that cannot be written."""
    folder = store.folder / "browser"
    try:
        check_writable(folder / "writable")
    except WriteError as error:
        info(f"{error}; index and previews are kept for this time only")
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="avssl-browser-")))
    return folder


def address_of(listening: socket.socket, host: str, token: str | None) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")


def leave_busy(indexed: list[IndexedStore]) -> None:
    """Exit at once while an index is built or a map drawn: an orderly exit with running FAISS threads crashes."""
    if any(each.is_busy() for each in indexed):
        os._exit(0)
