"""Run as a program: watch a fake camera with a slow VLM, and tell all that came of it.

`watch_camera.py ADDRESS SECONDS MODEL_S [PLANT]` prints JSON. PLANT "frames" keeps every frame that
was asked about, which must be found out. Times are seconds since the camera was
opened, by the monotonic clock. Another thread reads the camera's state every few milliseconds: so
a state that comes too late has been seen, however busy the machine is.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Thread
from threading import enumerate as threads
from time import monotonic
from typing import Any

from stub_model import Stub, a_vlm

from tokprune import Camera, TokpruneError, Watcher, open_camera
from tokprune.watching import Observation
from tokprune_runtimes import Interrupt

POLL_S = 0.004
TIMEOUT_S = 0.3  # of each call
SAMPLE_S = 0.25  # between two measurements of memory
WARM_UP = 0.25
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Notes:
    """What is written down meanwhile."""

    began_s: float
    states: list[list[Any]] = field(default_factory=list[list[Any]])  # state, from, to
    arrivals: dict[int, float] = field(default_factory=dict[int, float])
    answers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failures: list[list[Any]] = field(default_factory=list[list[Any]])  # code, when, seconds
    memory: list[int] = field(default_factory=list[int])
    counts: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def now_s(self) -> float:
        return monotonic() - self.began_s

    def state(self, camera: Camera) -> None:
        """Read the state: it was that at some moment between two times."""
        before_s, state, after_s = self.now_s(), camera.state, self.now_s()
        if self.states and self.states[-1][0] == state:
            self.states[-1][2] = before_s
        else:
            self.states.append([state, after_s, before_s])

    def arrived(self, camera: Camera) -> None:
        shot = camera.held()
        if shot is not None:
            self.arrivals[shot.stamp.number] = shot.stamp.captured_s - self.began_s

    def answered(self, seen: Observation) -> None:
        answer = seen.answer
        looking = next(span for span in answer.spans if span.name == "preprocess")
        captured_s = seen.frame.captured_s - self.began_s
        self.answers.append(
            {
                "frame": seen.frame.number,
                "captured_s": captured_s,
                "looked_s": answer.began_s + looking.start_ms / 1000 - self.began_s,
                "age_s": seen.age_s,
                "drops": seen.drops,
                "total": answer.total,
            }
        )

    def measure(self) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * PAGE)
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path keeps the folder open
        self.counts.append((len(threads()), files))


@contextmanager
def polled(notes: Notes, camera: Camera) -> Iterator[None]:
    """Read the camera's state all the time."""
    over = Event()

    def poll() -> None:
        while not over.wait(POLL_S):
            notes.state(camera)

    thread = Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def slow(model_s: float) -> Callable[[str, Interrupt | None], None]:
    """Return what makes an answer take so long."""

    def at(graph: str, interrupt: Interrupt | None) -> None:
        del interrupt
        if graph == "prefill":
            Event().wait(model_s)

    return at


def watch(notes: Notes, watcher: Watcher, seconds: float) -> None:
    """Ask for so long."""
    measured_s = 0.0
    while (now_s := notes.now_s()) < seconds:
        try:
            notes.answered(watcher.next(timeout_s=TIMEOUT_S))
        except TokpruneError as error:
            notes.failures.append([error.code, now_s, notes.now_s() - now_s])
        if now_s - measured_s > SAMPLE_S:
            notes.measure()
            measured_s = now_s


def main(address: str, seconds: float, model_s: float, fault: str = "") -> dict[str, Any]:
    """Watch, and tell."""
    kept: list[Any] = []
    listener = kept.append if fault == "frames" else None
    with a_vlm(Stub(at=slow(model_s)), vision_cache_bytes=50_000) as vlm:
        notes = Notes(monotonic())
        with open_camera(address) as camera:
            opened_s = notes.now_s()  # failures are counted from a moment before this
            camera.listen(lambda: notes.arrived(camera))
            asking = Watcher(vlm, camera, "a?", budget=0.1, listener=listener)
            with asking as watcher, polled(notes, camera):
                watch(notes, watcher, seconds)
            limit_s = camera.status().max_frame_age_s
    warm = int(len(notes.memory) * WARM_UP)
    tail = max(len(notes.memory) // 10, 1)
    before, after = median(notes.memory[warm : warm + tail]), median(notes.memory[-tail:])
    return {
        "states": notes.states,
        "arrivals": notes.arrivals,
        "answers": notes.answers,
        "failures": notes.failures,
        "limit_s": limit_s,
        "opened_s": opened_s,
        "before": before,
        "growth": after - before,
        "share": (after - before) / before,
        "threads": [min(c for c, _ in notes.counts[warm:]), max(c for c, _ in notes.counts[warm:])],
        "files": [min(c for _, c in notes.counts[warm:]), max(c for _, c in notes.counts[warm:])],
    }


if __name__ == "__main__":
    address, seconds, model_s, *fault = sys.argv[1:]
    sys.stdout.write(json.dumps(main(address, float(seconds), float(model_s), *fault)) + "\n")
