"""Errors as HTTP says them: a status, and a body like OpenAI's with our stable codes."""

from typing import Any, NamedTuple

from tokprune.errors import (
    BackendUnavailable,
    Busy,
    Cancelled,
    Closed,
    ContextOverflow,
    DeadlineExceeded,
    NotCalibrated,
    OutOfMemory,
    PictureInvalid,
    RequestInvalid,
    SelectorUnavailable,
    TokpruneError,
)

_STATUS: tuple[tuple[type[TokpruneError], int], ...] = (
    (RequestInvalid, 400),
    (PictureInvalid, 400),
    (ContextOverflow, 400),
    (SelectorUnavailable, 400),
    (NotCalibrated, 400),
    (Busy, 503),
    (Closed, 503),
    (Cancelled, 503),  # while the server ends; whoever hung up does not hear of it
    (DeadlineExceeded, 504),
    (BackendUnavailable, 501),  # an extra is not installed
)
_RETRY_AFTER_S = 1
_LONGEST = 2000  # characters: a message may quote the request


class HttpRefused(Exception):
    """A request that is refused before the VLM hears of it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Refusal(NamedTuple):
    """What a client gets."""

    status: int
    body: dict[str, Any]
    headers: tuple[tuple[str, str], ...]


def refusal(error: BaseException) -> Refusal:
    """Return the answer for an error. What was not raised on purpose keeps its text to the log."""
    match error:
        case HttpRefused():
            status, code, message = error.status, error.code, str(error)
        case TokpruneError():
            known = (status for kind, status in _STATUS if isinstance(error, kind))
            status, code, message = next(known, 500), error.code, str(error)
        case MemoryError():
            status, code = 500, OutOfMemory.code
            message = "There is no memory left to read this request: send smaller pictures"
        case _:
            status, code = 500, "internal"
            message = "The server failed in a way that it does not know; its log has the details"
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": message[:_LONGEST], "type": kind, "param": None, "code": code}
    retry = (("retry-after", str(_RETRY_AFTER_S)),) if isinstance(error, Busy) else ()
    return Refusal(status, {"error": body}, retry)


def code_of(error: BaseException) -> str:
    """Return the code that a refusal is counted under."""
    return str(refusal(error).body["error"]["code"])
