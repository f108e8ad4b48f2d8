"""Answers as a trace for Perfetto (https://ui.perfetto.dev) or chrome://tracing.

Follows the Trace Event Format
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): the JSON Object
Format, with complete events ("X") for requests and stages, and metadata events ("M") for names.
Not opened in either viewer here; the tests check every field against that document.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tokprune.files import atomic_write
from tokprune.stopwatch import Span
from tokprune.types import Answer

__all__ = ["Span", "trace_events", "write_trace"]

Event: TypeAlias = dict[str, Any]


def write_trace(path: str | Path, answers: Sequence[Answer]) -> None:
    """Write when each stage of each answer ran, replacing the file whole or not at all.

    Requests that overlap, because some waited, stand in lanes below each other. Times are those of
    the monotonic clock, so that traces of one machine can be laid over each other.

    Args:
        path: ends in `.json` for viewers' sake.
        answers: of this process, in any order.

    Raises:
        OSError: the file cannot be written.
    """
    trace = {"traceEvents": trace_events(answers), "displayTimeUnit": "ms"}
    atomic_write(Path(path), json.dumps(trace, separators=(",", ":")).encode() + b"\n")


def trace_events(answers: Sequence[Answer]) -> list[Event]:
    """Return the events: names of process and lanes, then request after request."""
    process = os.getpid()
    busy_until: list[int] = []  # by lane
    events: list[Event] = []
    for answer in sorted(answers, key=lambda answer: answer.began_s):
        began, ended = _microseconds(answer, 0.0), _microseconds(answer, _length_ms(answer))
        free = (lane for lane, until in enumerate(busy_until) if until <= began)
        lane = next(free, len(busy_until))
        busy_until[lane:] = [ended, *busy_until[lane + 1 :]]
        place = {"pid": process, "tid": lane + 1}
        events.append(
            {**_complete("request", "request", began, ended), **place, "args": _about(answer)}
        )
        for span in answer.spans:
            start, end = (_microseconds(answer, ms) for ms in (span.start_ms, span.end_ms))
            events.append({**_complete(span.name, "stage", start, end), **place})
    names = [_name("process_name", "tokprune", process, 0)]
    for lane in range(len(busy_until)):
        label = f"requests {lane + 1}" if lane else "requests"
        names.append(_name("thread_name", label, process, lane + 1))
    return [*names, *events]


def _about(answer: Answer) -> dict[str, Any]:
    selection = answer.selection
    return {
        "kept": answer.kept,
        "total": answer.total,
        "encode": answer.encode,
        "encoded": answer.encoded,
        "budget": {"reason": selection.reason, "need": selection.need, "cap": selection.cap},
        "selector": answer.selector,
        "tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "ttft_ms": answer.ttft_ms,
    }


def _length_ms(answer: Answer) -> float:
    return max((answer.ttft_ms, *(span.end_ms for span in answer.spans)))


def _microseconds(answer: Answer, since_began_ms: float) -> int:
    """Return a time on the monotonic clock. Whole numbers nest where the times did."""
    return round(answer.began_s * 1e6 + since_began_ms * 1e3)


def _complete(name: str, category: str, start: int, end: int) -> Event:
    return {"name": name, "cat": category, "ph": "X", "ts": start, "dur": end - start}


def _name(kind: str, name: str, process: int, thread: int) -> Event:
    return {"name": kind, "ph": "M", "ts": 0, "pid": process, "tid": thread, "args": {"name": name}}
