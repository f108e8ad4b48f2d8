"""Trying many hostile inputs in a forked child with limits, so that crashes and hangs are seen.

The child has a bound on its memory and an alarm for every case. When it dies, the case is noted
and another child goes on with the next one.
"""

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

SECONDS_A_CASE = 5
_MEMORY_BYTES = 1 << 30  # above what the process has already

Trial = Callable[[int], str]  # case number -> outcome; anything that it raises is a crash


@dataclass
class Outcomes:
    """What became of the cases."""

    tried: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    crashed: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)


def try_all(trial: Trial, cases: range) -> Outcomes:
    """Run `trial` on every case."""
    outcomes = Outcomes()
    waiting = list(cases)
    while waiting:
        lines, status = _child(trial, waiting)
        for case, line in zip(waiting, lines, strict=False):
            if line.startswith("raised "):
                outcomes.crashed.append(f"case {case} {line}")
            else:
                outcomes.codes[line] += 1
        done = len(lines)
        if done < len(waiting):
            signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            dead = outcomes.hung if signalled == signal.SIGALRM else outcomes.crashed
            dead.append(f"case {waiting[done]} ended with status {status}")
            done += 1
        outcomes.tried += done
        waiting = waiting[done:]
    return outcomes


def _child(trial: Trial, cases: list[int]) -> tuple[list[str], int]:
    """Fork, run cases until one kills the child, and return the outcomes that it told."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _run(trial, cases, send)
    os.close(send)
    with os.fdopen(receive) as stream:
        lines = stream.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return lines, status


def _run(trial: Trial, cases: list[int], send: int) -> NoReturn:
    code = 1
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case in cases:
            signal.alarm(SECONDS_A_CASE)
            line = _outcome(trial, case)
            signal.alarm(0)
            os.write(send, f"{line}\n".encode())
        code = 0
    finally:
        os._exit(code)


def _outcome(trial: Trial, case: int) -> str:
    try:
        return trial(case)
    except BaseException as error:
        return f"raised {type(error).__name__}: {str(error)[:200]!r}"
