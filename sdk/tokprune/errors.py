"""Every error that tokprune raises on purpose, as one tree with stable codes.

TokpruneError                  "tokprune"
├── BundleInvalid              "bundle_invalid.<reason>"
├── PictureInvalid             "picture_invalid"
├── RequestInvalid             "request_invalid"     (also a ValueError)
│   └── BudgetImpossible       "budget_impossible"
├── ContextOverflow            "context_overflow"
│   └── EngineTooSmall         "engine_too_small"
├── SelectorUnavailable        "selector_unavailable"
├── NotCalibrated              "not_calibrated"
├── BackendUnavailable         "backend_unavailable"
│   └── EnginesStale           "engines_stale"
├── BuildRefused               "build_refused"
├── Busy                       "busy"
├── Cancelled                  "cancelled"
├── DeadlineExceeded           "deadline_exceeded"   (also a TimeoutError)
├── CameraUnusable             "camera_unusable"
│   ├── CameraLost             "camera_lost"
│   ├── CameraFrozen           "camera_frozen"
│   └── FrameTooOld            "frame_too_old"
├── Closed                     "closed"
├── ForkDetected               "fork_detected"
└── EngineFailed               "engine_failed"
    └── OutOfMemory            "out_of_memory"       (also a MemoryError)
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


class BudgetImpossible(RequestInvalid):
    """No number of vision tokens meets the time that was asked for. Says what would."""

    code = "budget_impossible"


class ContextOverflow(TokpruneError):
    """The prompt and the answer do not fit the bundle's limits. Raised before prefill."""

    code = "context_overflow"


class EngineTooSmall(ContextOverflow):
    """The request is larger than what the engines were built for. Raised before they run."""

    code = "engine_too_small"


class SelectorUnavailable(TokpruneError):
    """This bundle lacks what the selector reads."""

    code = "selector_unavailable"


class NotCalibrated(TokpruneError):
    """A budget in milliseconds needs this device's latencies, which were not measured."""

    code = "not_calibrated"


class BackendUnavailable(TokpruneError):
    """The engine or library that is needed is not installed, or cannot run this bundle."""

    code = "backend_unavailable"


class EnginesStale(BackendUnavailable):
    """This bundle's engines are missing, or of another graph, version or GPU. None was opened."""

    code = "engines_stale"


class BuildRefused(TokpruneError):
    """No engine can be built: disk, memory or target do not allow it, or the builder refused."""

    code = "build_refused"


class Busy(TokpruneError):
    """No room for another request, or a newer one took this one's place."""

    code = "busy"


class Cancelled(TokpruneError):
    """The request was cancelled before its first token. Later, the answer has what was written."""

    code = "cancelled"


class DeadlineExceeded(TokpruneError, TimeoutError):
    """The deadline passed before the first token. Later, the answer has what was written."""

    code = "deadline_exceeded"


class CameraUnusable(TokpruneError):
    """A camera has no picture that a question may be asked about now. It may have one later."""

    code = "camera_unusable"


class CameraLost(CameraUnusable):
    """The camera cannot be reached; it is tried again and again."""

    code = "camera_lost"


class CameraFrozen(CameraUnusable):
    """The camera repeats one picture."""

    code = "camera_frozen"


class FrameTooOld(CameraUnusable):
    """The newest picture is older than the limit."""

    code = "frame_too_old"


class Closed(TokpruneError):
    """The VLM was closed, before or during this request."""

    code = "closed"


class ForkDetected(TokpruneError):
    """The process was forked after loading; the engine's threads did not come along."""

    code = "fork_detected"


class EngineFailed(TokpruneError):
    """An engine did not do what was asked. It was not the request's fault as far as known."""

    code = "engine_failed"


class OutOfMemory(EngineFailed, MemoryError):
    """There is not enough memory for this, on the host or the GPU. The VLM stays usable."""

    code = "out_of_memory"


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
