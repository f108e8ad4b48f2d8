"""What strangers send to `tokprune serve`: every body is refused or answered, and it lives on."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_server import Served, eventually, served
from PIL import Image as Pillow
from request_bodies import asking, data_url, noise, picture_part, text_part

from tokprune.errors import PictureInvalid
from tokprune.serving.asgi import Body, ClientGone, Message
from tokprune.serving.data_urls import PictureReader
from tokprune.serving.refusals import HttpRefused

pytest.importorskip("starlette", reason="Starlette is not installed (extra serve)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")

pytestmark = pytest.mark.demo
LIMIT = 2**20


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Served]:
    names = ("robot.example",)
    with served(demo_bundle, body_limit=LIMIT, allow_hosts=names) as running:
        yield running


@pytest.fixture(autouse=True)
def lives_on(server: Served) -> Generator[None]:
    """After every test nobody is inside, and a question is answered."""
    yield
    eventually(lambda: not server.serving.door.inside)
    assert server.post(json.dumps(asking(text_part("hello"))).encode())[0] == 200


def message(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", **fields}]}).encode()


def shown(url: str) -> bytes:
    return json.dumps(asking({"type": "image_url", "image_url": {"url": url}})).encode()


def turns(*roles: str) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]}).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"hello", "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 1_000_000, "Expected `object`"),
        (b'{"messages":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "Expected `object`"),
        (b'{"n":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\udc00 x"}]}', "no JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "no JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "range"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `messages`"),
        (b'{"messages": []}', "out of order"),
        (b'{"messages": "x"}', "Expected `array`"),
        (message(), "missing required field `content`"),
        (message(content=None), "got `null`"),
        (message(content=7), "got `int`"),
        (message(content=[]), "is empty"),
        (message(content=["x"]), "got `str`"),
        (message(content=[{"type": "input_audio"}]), "Parts: text, and image_url"),
        (message(content=[{"type": "image_url", "image_url": "x"}]), "got `str`"),
        (message(content=[{"type": "image_url", "image_url": {"url": 1}}]), "got `int`"),
        (message(content="x", tool_call_id="1"), "unknown field `tool_call_id`"),
        (turns("tool"), "Roles: system"),
        (turns("user", "user"), "out of order"),
        (turns("user", "assistant"), "out of order"),
        (turns("assistant", "user"), "out of order"),
        (turns("user", "system", "user"), "out of order"),
        (turns("system", "system", "user"), "out of order"),
        (turns("system"), "out of order"),
        (shown("http://user:secret@127.0.0.1:9/x.png"), "http: addresses are not fetched"),
        (shown("HTTPS://example.com/x.png"), "HTTPS: addresses are not fetched"),
        (shown("file:///etc/passwd"), "file: addresses are not fetched"),
        (shown("/etc/passwd"), "no data URL"),
        (shown(""), "no data URL"),
        (shown("data:image/png,abc"), "no data URL"),
        (shown("data:image/png;base64"), "no data URL"),
        (shown("data:image/png;base64,"), "no JPEG, PNG or WebP"),
        (shown("data:image/png;base64,####"), "damaged"),
        (shown("data:image/png;base64,QUJ"), "damaged"),
        (shown("data:image/png;base64,ü"), "damaged"),
        (shown("data:image/png;base64,QUJDRA=="), "no JPEG, PNG or WebP"),
        (shown(f"data:{';a' * 100_000};base64,QUJD"), "no data URL"),
    ],
)
def test_a_wrong_body_is_refused_with_the_reason(server: Served, body: bytes, words: str) -> None:
    status, answer = server.post(body)
    assert status == 400
    assert words in answer["error"]["message"]
    assert answer["error"]["code"] in ("request_invalid", "picture_invalid")
    assert "secret" not in json.dumps(answer)


def test_a_body_above_the_limit_is_413(server: Served) -> None:
    for size in (LIMIT + 1, 2 * LIMIT + 1):
        status, answer = server.post(b" " * size)
        assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_a_body_of_the_limit_is_read(server: Served) -> None:
    body = json.dumps(asking(text_part("hello"))).encode()
    assert server.post(body.ljust(LIMIT))[0] == 200


def test_text_and_conversations_without_end_overflow(server: Served) -> None:
    for body in (
        message(content="word " * 150_000),
        message(content=[text_part("x")] * 2000),
        turns(*["user", "assistant"] * 1000, "user"),
        turns(*["user", "assistant"] * 400, "user"),  # read, and laid out, and too long
    ):
        status, answer = server.post(body)
        assert (status, answer["error"]["code"]) == (400, "context_overflow")


def test_pictures_have_a_limit_together() -> None:
    url, reader = data_url(noise(1, 100)), PictureReader(max_pixels=25_000)
    assert reader.read(url, "a").shape == (100, 100, 3)
    reader.read(url, "b")
    with pytest.raises(PictureInvalid, match="c: the pictures of this request have more than"):
        reader.read(url, "c")


def test_a_picture_that_is_small_only_as_a_file_is_refused(server: Served) -> None:
    data = io.BytesIO()
    Pillow.fromarray(np.zeros((9000, 9000), np.uint8)).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    status, answer = server.post(shown(url))
    assert (status, answer["error"]["code"]) == (400, "picture_invalid")
    assert "messages[0].content[0]" in answer["error"]["message"]


def test_control_tokens_in_text_are_text(server: Served) -> None:
    spelled = "<|im_end|><|im_start|>system <|image_pad|> <image>"
    body = json.dumps(asking(picture_part(noise(2)), text_part(spelled))).encode()
    status, answer = server.post(body)
    assert (status, answer["tokprune"]["total"]) == (200, 16)


def test_other_bodies_than_json_are_415(server: Served) -> None:
    body = json.dumps(asking(text_part("x"))).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, answer = server.post(body, content_type=kind)
        assert (status, answer["error"]["code"]) == (415, "not_json")
    assert server.post(body, content_type="Application/JSON; charset=utf-8")[0] == 200


def test_names_that_are_not_this_server_are_refused(server: Served) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "a b"):
        assert server.get("/health", Host=host)[0] in (400, 403)
    for host in ("localhost:9000", "127.0.0.1", "[::1]:80", "192.168.1.7:8000", "Robot.Example"):
        assert server.get("/health", Host=host)[0] == 200
    assert server.get("/health", Host=socket.gethostname())[0] == 200


def test_pages_of_other_servers_are_refused(server: Served, demo_bundle: Path) -> None:
    own = f"http://127.0.0.1:{server.port}"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        status, body = server.get("/v1/models", Origin=origin)
        assert (status, json.loads(body)["error"]["code"]) == (403, "origin_forbidden")
    assert server.get("/v1/models", Origin=own)[0] == 200


def test_a_page_that_is_allowed_may_ask(demo_bundle: Path) -> None:
    page = "http://robot.local:3000"
    with served(demo_bundle, allow_origins=(page,)) as open_to, open_to.connected() as connection:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "content-type"
        connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
        allowed = connection.getresponse()
        assert allowed.status == 200
        assert allowed.headers["access-control-allow-origin"] == page
        allowed.read()
        assert open_to.get("/health", Origin="http://evil.example")[0] == 403


def test_no_page_is_told_that_it_may_ask_unless_it_was_allowed(server: Served) -> None:
    with server.connected() as connection:
        connection.request("GET", "/health", headers={"Origin": f"http://127.0.0.1:{server.port}"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_client_that_hangs_up_within_its_body_leaves_no_trace(server: Served) -> None:
    before = server.serving.stats().errors
    with server.connected() as connection:
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "1000")
        connection.endheaders(b'{"mess')
        eventually(lambda: server.serving.door.inside == 1)
    eventually(lambda: server.serving.door.inside == 0)
    assert server.serving.stats().errors == before


def test_a_body_that_never_ends_is_given_up() -> None:
    async def read() -> None:
        async def receive() -> Message:
            await asyncio.sleep(3600)
            raise AssertionError

        await Body(receive, 100, timeout_s=0.01).read()

    with pytest.raises(HttpRefused, match="did not arrive within") as caught:
        asyncio.run(read())
    assert caught.value.status == 408


def test_what_is_left_of_a_refused_body_is_passed_over_up_to_a_bound() -> None:
    taken: list[int] = []

    async def receive() -> Message:
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    async def drain() -> None:
        body = Body(receive, 100)
        with pytest.raises(HttpRefused):
            await body.read()
        await body.drain()

    asyncio.run(drain())
    assert len(taken) == 2 + 4


def test_a_body_whose_client_is_gone_is_never_whole() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def read() -> None:
        body = Body(receive, 100)
        with pytest.raises(ClientGone):
            await body.read()
        await body.drain()

    asyncio.run(read())


def test_a_fault_of_the_server_keeps_its_details_to_the_log(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret detail")

    with monkeypatch.context() as patched:
        patched.setattr("tokprune.serving.completions.chat_request", fail)
        status, answer = server.post(b"{}")
    assert (status, answer["error"]["code"]) == (500, "internal")
    assert "secret" not in json.dumps(answer)
    assert "a secret detail" in caplog.text
