"""Who may ask the neighbour browser's server, and the headers of every answer.

What lives here: a layer around the server. A page of somewhere else must not read clips through the visitor's browser
(a name that leads to this machine, a form that is sent here), and nobody else on the network without the token.
"""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
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
            by one of its own names.
    """

    def __init__(self, app: ASGIApp, *, token: str | None = None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a socket: nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self.token is None and urlsplit(f"//{host}").hostname not in LOCAL_HOSTS:
            return _refuse(421, f"{host or 'no name'} is not a name of this machine")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            elsewhere = origin is not None and urlsplit(origin).netloc != host
            if elsewhere or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return _refuse(403, "only the page of this server may send something here")
        if self.token is None:
            return None
        return self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """What a visitor gets who has not shown the token yet, or shows it now; None = come in."""
        cookie = f"avssl-{scope['server'][1]}"  # cookies are shared by all servers of a machine
        try:
            shown = SimpleCookie(headers.get("cookie", "")).get(cookie)
        except CookieError:
            shown = None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_right(shown.value if shown else "") or self._is_right(bearer):
            return None
        asked = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if self._is_right(asked.pop("token", "")) and scope["path"] == "/":
            answer = RedirectResponse(f"/?{urlencode(asked)}" if asked else "/", 303)
            answer.set_cookie(cookie, self.token, httponly=True, samesite="lax")
            return answer
        return _refuse(401, "open the address that tools/browse.py printed: it holds a token")

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())


def _refuse(status: int, why: str) -> Response:
    return JSONResponse({"detail": why}, status)
