"""Errors of the export side, one line each for the user. The tree is in `tokprune.errors`."""

from collections.abc import Iterator
from contextlib import contextmanager

from tokprune.errors import (
    BackendUnavailable,
    ContextOverflow,
    PictureInvalid,
    RequestInvalid,
    TokpruneError,
)


class ExportRefused(TokpruneError):
    """The checkpoint, the options or this machine do not allow the export."""

    code = "export_refused"


class ParityFailed(TokpruneError):
    """The graphs do not say what the checkpoint says."""

    code = "parity_failed"


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Let what is refused of one question among many say which it is."""
    try:
        yield
    except (BackendUnavailable, ContextOverflow, PictureInvalid, RequestInvalid) as error:
        raise type(error)(f"{place}: {error}") from None
