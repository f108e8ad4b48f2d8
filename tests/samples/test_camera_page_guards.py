"""Who may open the camera page: strangers' pages, other machines, other methods and paths."""

import asyncio
from typing import Any

import camera_pages
import pytest
from camera_page.guards import HEADERS, PageGuard

TOKEN = "a-token-of-the-start-line"
HOME = "127.0.0.1:8000"


class Inside:
    """What the guard guards; knows who came in."""

    def __init__(self) -> None:
        self.came: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.came.append(scope["type"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"page"})
        else:
            await send({"type": "websocket.accept"})


def visit(
    guard: Any, kind: str = "http", query: str = "", method: str = "GET", **headers: str
) -> list[dict[str, Any]]:
    """Ask with these headers; return all that was sent back."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": kind,
        "method": method,
        "path": "/live" if kind == "websocket" else "/",
        "query_string": query.encode(),
        "headers": [
            (name.encode(), value.encode()) for name, value in {"host": HOME, **headers}.items()
        ],
    }
    if kind == "websocket":
        del scope["method"]

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def headers_of(sent: list[dict[str, Any]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "http://localhost:8000"},
    ],
)
def test_pages_of_strangers_get_nothing_by_request_or_by_websocket(
    kind: str, headers: dict[str, str]
) -> None:
    inside = Inside()
    sent = visit(PageGuard(inside), kind, **headers)
    assert inside.came == []
    if kind == "http":
        assert sent[0]["status"] == 403
    else:
        assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": f"http://{HOME}"}, {"host": "localhost:8000"}, {"host": "[::1]:8000"}],
)
def test_this_machine_s_own_page_is_let_in(headers: dict[str, str]) -> None:
    inside = Inside()
    assert visit(PageGuard(inside), **headers)[0]["status"] == 200
    assert visit(PageGuard(inside), "websocket", **headers)[0]["type"] == "websocket.accept"
    assert inside.came == ["http", "websocket"]


def test_the_token_opens_the_page_once_and_its_cookie_from_then_on() -> None:
    inside = Inside()
    guard = PageGuard(inside, token=TOKEN, port=8000)
    for query in ("", "token=", "token=wrong", f"token={TOKEN}x", f"token={TOKEN[:-1]}", "token=ü"):
        sent = visit(guard, query=query)
        assert sent[0]["status"] == 403
        assert b"token" in sent[1]["body"]
        assert "set-cookie" not in headers_of(sent)
        assert visit(guard, "websocket", query=query)[0]["type"] == "websocket.close"
    assert visit(guard, "websocket", query=f"token={TOKEN}")[0]["type"] == "websocket.close"
    assert inside.came == []
    cookie = headers_of(visit(guard, query=f"token={TOKEN}"))["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    crumb = cookie.partition(";")[0]
    assert crumb == f"tokprune-camera-8000={TOKEN}"
    assert visit(guard, cookie=f"other=1; {crumb}")[0]["status"] == 200
    assert visit(guard, "websocket", cookie=crumb)[0]["type"] == "websocket.accept"
    wrong = {"cookie": f"tokprune-camera-8000={TOKEN[:-1]}"}
    assert visit(guard, **wrong)[0]["status"] == 403
    assert visit(guard, "websocket", **wrong)[0]["type"] == "websocket.close"
    assert visit(guard, cookie=f"tokprune-camera-8001={TOKEN}")[0]["status"] == 403
    stranger = {"cookie": crumb, "origin": "http://evil.example"}
    assert visit(guard, "websocket", **stranger)[0]["type"] == "websocket.close"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_get_is_answered(method: str) -> None:
    inside = Inside()
    assert visit(PageGuard(inside), method=method)[0]["status"] == 405
    assert inside.came == []


def test_every_answer_forbids_what_the_page_does_not_need() -> None:
    guard = PageGuard(Inside(), token=TOKEN)
    for sent in (
        visit(guard),
        visit(guard, query=f"token={TOKEN}"),
        visit(guard, method="POST"),
        visit(guard, host="evil.example"),
    ):
        assert HEADERS.items() <= headers_of(sent).items()
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


def test_the_scripts_set_no_html_and_load_nothing_from_elsewhere() -> None:
    static = camera_pages.FOLDER / "static"
    forbidden = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
        "https://",
        "//cdn",
        "@import",
        " style=",
        " onclick=",
    )
    sizes: dict[str, int] = {}
    for path in static.iterdir():
        content = path.read_text(encoding="utf-8")
        sizes[path.name] = content.count("\n")
        found = [word for word in forbidden if word in content]
        assert not found, path.name
        assert content.count("http://") == content.count("http://www.w3.org/2000/svg")
    assert max(sizes.values()) <= 300
    assert len(sizes) > 10
