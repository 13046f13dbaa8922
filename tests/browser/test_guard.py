"""Who may ask the browser's server."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from avssl.browser.guard import HEADERS, Guard


def client(token: str | None = None, base: str = "http://127.0.0.1:8300") -> TestClient:
    def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("in")

    app = Starlette(routes=[Route(path, answer, methods=["GET", "POST"]) for path in ("/", "/media/1")])
    return TestClient(Guard(app, token=token, names=["My-Machine"]), base_url=base, follow_redirects=False)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8300", "localhost:1", "[::1]:80", "LOCALHOST", "localhost.", "127.0.1.1:8300", "my-machine"]
)
def test_this_machine_may_ask_by_its_own_names(host: str) -> None:
    answer = client().get("/", headers={"host": host})
    assert (answer.status_code, answer.text) == (200, "in")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8300",
        "127.0.0.1.evil.example",
        "",
        "localhost.evil",
        "[zz]",
        "[::1",
        "[::2]",
        "evil@127.0.0.1",
        "127.0.0.1:abc",
        "10.0.0.1",
    ],
)
def test_a_foreign_name_that_leads_here_is_refused(host: str) -> None:
    assert client().get("/media/1", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"origin": "http://[bad"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_elsewhere_cannot_send(headers: dict[str, str]) -> None:
    assert client().post("/", headers=headers).status_code == 403
    assert client().post("/").status_code == 200
    assert client().post("/", headers={"origin": "http://127.0.0.1:8300", "sec-fetch-site": "same-origin"}).text == "in"


def test_pages_of_elsewhere_cannot_make_this_machine_work_but_may_link_to_it() -> None:
    foreign = {"sec-fetch-site": "cross-site"}
    assert client().get("/media/1", headers=foreign | {"sec-fetch-mode": "no-cors"}).status_code == 403
    assert client().get("/media/1", headers=foreign | {"sec-fetch-mode": "navigate"}).text == "in"
    assert client().post("/", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 403


def test_every_answer_has_the_headers_also_a_refusal() -> None:
    for answer in (client().get("/"), client().get("/nothing"), client().get("/", headers={"host": "evil.example"})):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_token_is_shown_once_and_then_held_in_a_cookie() -> None:
    visitor = client("secret", "http://10.0.0.5:8300")
    assert visitor.get("/").status_code == 401
    assert visitor.get("/media/1?token=secret").status_code == 401  # the page is where one enters
    for wrong in ("", "secre", "secrett", "s%C3%A9cret"):
        assert visitor.get(f"/?token={wrong}").status_code == 401
    answer = visitor.get("/?token=secret&view=map&query=3")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?view=map&query=3")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert visitor.get("/media/1").text == "in"


def test_a_bearer_may_ask_and_a_broken_cookie_may_not() -> None:
    visitor = client("secret", "http://10.0.0.5:8300")
    assert visitor.get("/media/1", headers={"authorization": "Bearer secret"}).text == "in"
    assert (
        visitor.get("/?token=secret", headers={"authorization": "Bearer secret"}).status_code == 303
    )  # out of the address
    for others in ('other={"a":1}; ', "user name=x; ", "y=[1, 2]; ", "avssl-8300=old; "):
        assert visitor.get("/media/1", headers={"cookie": f"{others}avssl-8300=secret"}).text == "in"
    visitor.cookies.clear()
    for headers in ({"authorization": "Bearer no"}, {"authorization": "secret2"}, {"cookie": "a;;=b\x7f; avssl-8300"}):
        assert visitor.get("/media/1", headers=headers).status_code == 401


def test_sockets_are_closed() -> None:
    with pytest.raises(WebSocketDisconnect) as closed, client().websocket_connect("/"):
        pass
    assert closed.value.code == 1008
