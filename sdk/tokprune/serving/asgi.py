"""The few lines of ASGI that are needed to read a body and to answer.

Follows https://asgi.readthedocs.io/en/stable/specs/www.html.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec

from tokprune.control import CancelToken
from tokprune.serving.refusals import HttpRefused, refusal
from tokprune.waiting import within

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Sequence[tuple[str, str]]

BODY_TIMEOUT_S = 30.0
_DRAIN_TIMEOUT_S = 5.0


class ClientGone(Exception):
    """The client has hung up: nobody is left to be answered."""


class Body:
    """The body of one request: bounded in bytes and in time."""

    def __init__(
        self, receive: Receive, limit_bytes: int, timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s
        self._ended = False

    async def read(self) -> bytes:
        """Return all of it.

        Raises:
            HttpRefused: it is too large, or comes too slowly.
            ClientGone: it will never be whole.
        """
        try:
            return await within(self._read(), self._timeout_s)
        except asyncio.TimeoutError:
            self._ended = True
            message = f"The body did not arrive within {self._timeout_s:g} s"
            raise HttpRefused(408, "body_too_slow", message) from None

    async def drain(self) -> None:
        """Pass over what has not been read, so that a client that still sends hears the answer.

        Gives up after as much again as is taken, or some seconds.
        """
        left = 2 * self._limit_bytes

        async def pass_over() -> None:
            nonlocal left
            while left > 0 and (piece := await self._next()) is not None:
                left -= len(piece)

        try:
            await within(pass_over(), _DRAIN_TIMEOUT_S)
        except (asyncio.TimeoutError, ClientGone):
            self._ended = True

    async def _read(self) -> bytes:
        data = bytearray()
        while (piece := await self._next()) is not None:
            if len(data) + len(piece) > self._limit_bytes:
                raise HttpRefused(
                    413,
                    "body_too_large",
                    f"The body has more than {self._limit_bytes} bytes: send smaller pictures, or "
                    "start the server with a larger --body-limit",
                )
            data += piece
        return bytes(data)

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._ended = True
            raise ClientGone
        self._ended = not message.get("more_body", False)
        return message.get("body", b"")


@asynccontextmanager
async def told_when_gone(receive: Receive, token: CancelToken) -> AsyncGenerator[None]:
    """Cancel `token` if the client hangs up within the block. The body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        token.cancel()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def header(scope: Scope, name: str) -> str | None:
    """Return a header of the request, None where it has none of that name."""
    for key, value in scope["headers"]:
        if key == name.encode():
            return value.decode("latin-1")
    return None


async def send_head(send: Send, status: int, media_type: str, headers: Headers = ()) -> None:
    """Begin an answer."""
    fields = [("content-type", media_type), ("cache-control", "no-store"), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields],
        }
    )


async def send_bytes(
    send: Send, status: int, data: bytes, media_type: str, headers: Headers = ()
) -> None:
    """Answer with bytes."""
    length = ("content-length", str(len(data)))
    await send_head(send, status, media_type, (length, *headers))
    await send({"type": "http.response.body", "body": data})


async def send_json(send: Send, status: int, body: object, headers: Headers = ()) -> None:
    """Answer with JSON."""
    await send_bytes(send, status, msgspec.json.encode(body), "application/json", headers)


async def send_error(send: Send, error: BaseException) -> None:
    """Answer with why there is no answer."""
    refused = refusal(error)
    await send_json(send, refused.status, refused.body, refused.headers)
