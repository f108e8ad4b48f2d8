"""Every error that tokprune raises on purpose, as one tree with stable codes.

TokpruneError                  "tokprune"
├── BundleInvalid              "bundle_invalid.<reason>"
├── PictureInvalid             "picture_invalid"
├── RequestInvalid             "request_invalid"     (also a ValueError)
├── ContextOverflow            "context_overflow"
│   └── EngineTooSmall         "engine_too_small"
├── SelectorUnavailable        "selector_unavailable"
├── BackendUnavailable         "backend_unavailable"
│   └── EnginesStale           "engines_stale"
└── BuildRefused               "build_refused"
"""

from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class TokpruneError(Exception):
    """The root. `code` is stable: programs may compare it."""

    code = "tokprune"


class BundleInvalid(TokpruneError):
    """The exported folder is not one that can be trusted: nothing of it was opened by an engine."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = f"bundle_invalid.{reason}"


class PictureInvalid(TokpruneError):
    """A picture or video that cannot or must not be decoded, or has not what was asked of it."""

    code = "picture_invalid"


class RequestInvalid(TokpruneError, ValueError):
    """A question, budget or option that makes no sense."""

    code = "request_invalid"


class ContextOverflow(TokpruneError):
    """The prompt and the answer do not fit the bundle's limits. Raised before prefill."""

    code = "context_overflow"


class EngineTooSmall(ContextOverflow):
    """The request is larger than what the engines were built for. Raised before they run."""

    code = "engine_too_small"


class SelectorUnavailable(TokpruneError):
    """This bundle lacks what the selector reads."""

    code = "selector_unavailable"


class BackendUnavailable(TokpruneError):
    """The engine or library that is needed is not installed, or cannot run this bundle."""

    code = "backend_unavailable"


class EnginesStale(BackendUnavailable):
    """This bundle's engines are missing, or of another graph, version or GPU. None was opened."""

    code = "engines_stale"


class BuildRefused(TokpruneError):
    """No engine can be built: disk, memory or target do not allow it, or the builder refused."""

    code = "build_refused"


def unknown(kind: str, name: str, known: "list[str]") -> str:
    """Return the message for a name that is in no table, with the nearest one that is."""
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(known))}."


def lookup(table: "dict[str, T]", name: str, kind: str) -> T:
    """Return `table[name]`, or raise RequestInvalid that says which names exist."""
    if name in table:
        return table[name]
    raise RequestInvalid(unknown(kind, name, list(table)))
