"""Who may ask the neighbor browser's server, and the headers of every answer.

A page of somewhere else must not read clips through the visitor's browser (a name that leads to this machine, a form
that is sent here), and nobody else on the network without the token.
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")  # of a Host header: name, port
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "private, no-cache",  # kept by the visitor, asked for again: another set may have the same ids
}


class Guard:
    """Passes on what may be asked.

    Args:
        app: the server.
        token: that a visitor must bring once (?token=...), or as a bearer; None = only this machine can ask, and asks
            by its own addresses or one of
        names: of this machine, besides localhost.
    """

    def __init__(self, app: ASGIApp, *, token: str | None = None, names: Collection[str] = ()) -> None:
        self.app, self.token = app, token
        self.names = {"localhost", "localhost.", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a socket: nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)
            begun = True

        refusal = self._refusal(scope, Headers(scope=scope))
        try:
            await (refusal or self.app)(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server ends, and has waited long enough for this answer
            if not begun:
                await _refuse(503, "the server was stopped")(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self.token is None and not self._is_own(host):
            return _refuse(421, f"{host or 'no name'} is not a name of this machine")
        from_elsewhere = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        if scope["method"] in ("GET", "HEAD"):
            if from_elsewhere and headers.get("sec-fetch-mode") != "navigate":  # a link to here may be followed
                return _refuse(403, "only the page of this server may ask for this")
        elif from_elsewhere or headers.get("origin", f"http://{host}").partition("://")[2] != host:
            return _refuse(403, "only the page of this server may send something here")
        return None if self.token is None else self._without_token(scope, headers)

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine."""
        name = HOST.fullmatch(host)
        if name is None:
            return False
        bare = name[1].strip("[]").lower()
        try:
            return bare in self.names or ipaddress.ip_address(bare).is_loopback
        except ValueError:
            return False

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """What a visitor gets who has not shown the token yet, or shows it now; None = come in."""
        cookie = f"avssl-{scope['server'][1]}"  # cookies are shared by all servers of a machine
        asked = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if scope["path"] == "/" and self._is_right(asked.pop("token", "")):  # out of the address, which is passed on
            answer = RedirectResponse(f"/?{urlencode(asked)}" if asked else "/", 303)
            answer.set_cookie(cookie, self.token, httponly=True, samesite="lax")
            return answer
        # by hand: http.cookies drops all that follows a cookie of another server which it cannot read
        pairs = [pair.partition("=") for line in headers.getlist("cookie") for pair in line.split(";")]
        shown = [value.strip() for name, _, value in pairs if name.strip() == cookie]
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if any(self._is_right(token) for token in (*shown, bearer)):
            return None
        return _refuse(401, "open the address that avssl browse printed: it holds a token")

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())


def _refuse(status: int, why: str) -> Response:
    return JSONResponse({"detail": why}, status)
