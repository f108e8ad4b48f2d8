"""`POST /v1/chat/completions`."""

import asyncio
import logging
from contextlib import ExitStack
from time import monotonic

import msgspec

from tokprune.chat import Chat
from tokprune.control import CancelToken
from tokprune.running.stream import AnswerStream
from tokprune.serving.asgi import (
    Body,
    ClientGone,
    Receive,
    Scope,
    Send,
    header,
    send_error,
    send_head,
    send_json,
    told_when_gone,
)
from tokprune.serving.asking import Asked, asked_of, later
from tokprune.serving.refusals import HttpRefused, refusal
from tokprune.serving.replies import Reply
from tokprune.serving.state import Serving
from tokprune.serving.wire import chat_request

_log = logging.getLogger("tokprune.serving")
_END = b"data: [DONE]\n\n"


class Completions:
    """Answers, at once or piece by piece. A client that hangs up cancels its request."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._reading = asyncio.Lock()  # one request's pictures at a time: they are large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began_s = monotonic()
        body = Body(receive, self._serving.body_limit)
        try:
            with ExitStack() as stack:
                with self._serving.counting():
                    _check_type(scope)
                    token = stack.enter_context(self._serving.door.place())
                    data = await body.read()
                    async with self._reading:
                        asked, chat = await asyncio.to_thread(self._read, data, token)
                    del data
                    elapsed_s = monotonic() - began_s
                    asked = later(asked, elapsed_s)
                async with told_when_gone(receive, token):
                    await self._reply(asked, chat, 1000 * elapsed_s, send)
        except ClientGone:
            pass
        except Exception as error:
            _log_fault(error)
            await body.drain()
            await send_error(send, error)

    def _read(self, data: bytes, token: CancelToken) -> tuple[Asked, Chat]:
        """Read the request and its pictures; not on the event loop."""
        asked = asked_of(chat_request(data), self._serving.rules)
        asked.options["cancel"] = token
        chat = self._serving.vlm.chat(system=asked.system)
        for parts, answer in asked.earlier:
            chat.recall(parts, answer)
        return asked, chat

    async def _reply(self, asked: Asked, chat: Chat, received_ms: float, send: Send) -> None:
        stream = await chat.stream_async(
            asked.question, (), asked.budget, asked.selector, **asked.options
        )
        reply = Reply(self._serving.rules.model, received_ms, asked.include_usage)
        if asked.stream:
            await _send_events(stream, reply, send)
        else:
            await send_json(send, 200, reply.whole(await stream.result_async()))


async def _send_events(stream: AnswerStream, reply: Reply, send: Send) -> None:
    """Send an answer as it is written. Errors before its first piece are raised."""
    with stream:
        piece = await anext(stream, None)
        await send_head(send, 200, "text/event-stream; charset=utf-8")
        await _event(send, reply.first())
        try:
            while piece is not None:
                await _event(send, reply.piece(piece))
                piece = await anext(stream, None)
            for chunk in reply.last(stream.answer):
                await _event(send, chunk)
            await send({"type": "http.response.body", "body": _END})
        except Exception as error:  # too late for a status: clients know an event of this form
            _log_fault(error)
            await _event(send, refusal(error).body)
            await send({"type": "http.response.body", "body": b""})


async def _event(send: Send, data: object) -> None:
    body = b"data: " + msgspec.json.encode(data) + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _check_type(scope: Scope) -> None:
    """Refuse other bodies than JSON.

    Also what a web page may send anywhere without being asked first: forms and plain text.
    """
    given = (header(scope, "content-type") or "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise HttpRefused(
            415,
            "not_json",
            f"The body is {given or 'of no type'!r:.100}: send JSON, and the header "
            "'Content-Type: application/json'",
        )


def _log_fault(error: Exception) -> None:
    if refusal(error).body["error"]["code"] == "internal":
        _log.error("a request failed", exc_info=error)
