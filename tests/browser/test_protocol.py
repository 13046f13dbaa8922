"""Visitors that send half a request, byte by byte or nothing at all, on a real socket."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from avssl.browser import protocol

SECONDS = 0.4
ASK = b"GET / HTTP/1.1\r\nHost: a\r\n"
SEND = b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Slow, and only /read waits for what is sent."""
    await asyncio.sleep(2 * SECONDS)
    if scope["path"] == "/read":
        await Request(scope, receive).body()
    await PlainTextResponse("fine")(scope, receive, send)


def talk(visit: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine]) -> bytes:
    """What a visitor reads until the server closes."""

    async def run() -> bytes:
        config = uvicorn.Config(answer, log_level="critical", timeout_keep_alive=60)
        loop = asyncio.get_running_loop()
        make = lambda: protocol.TimedProtocol(config=config, server_state=ServerState(), app_state={})  # noqa: E731
        server = await loop.create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        sending = asyncio.create_task(visit(reader, writer))
        try:
            found = b""
            with contextlib.suppress(ConnectionResetError):  # closed while a byte was on its way
                async with asyncio.timeout(20):
                    while block := await reader.read(1 << 16):
                        found += block
            return found
        finally:
            sending.cancel()
            writer.close()
            server.close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", SECONDS)


@pytest.mark.parametrize("begin", [b"", b"GET / HT", ASK], ids=["nothing", "half a line", "no end"])
def test_half_sent_headers_are_closed(begin: bytes) -> None:
    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while begin:  # byte by byte, for ever
            await asyncio.sleep(SECONDS / 8)
            writer.write(b"a")

    assert talk(visit) == b""


@pytest.mark.parametrize("body", [b"", b"x"], ids=["next headers", "rest of the body"])
def test_what_follows_an_answer_comes_in_time_too(body: bytes) -> None:
    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASK + (b"Content-Length: 9999\r\n\r\n" if body else b"\r\n"))
        await asyncio.sleep(3 * SECONDS)  # an answer may take as long as it needs
        while True:
            writer.write(body or b"G")
            await asyncio.sleep(SECONDS / 8)

    assert talk(visit).endswith(b"fine")


def test_a_body_that_is_read_may_take_longer() -> None:
    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SEND)
        for byte in b"body":
            await asyncio.sleep(SECONDS)
            writer.write(bytes([byte]))
        await asyncio.sleep(SECONDS)
        writer.write(b"half")

    assert talk(visit).endswith(b"fine")
