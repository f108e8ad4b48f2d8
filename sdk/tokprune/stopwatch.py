"""Timings by stage, wrapped around the steps of the flow from outside."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
MAX_SPANS = 512  # a long answer's later decode steps lengthen the last one


class Span(NamedTuple):
    """One run of a stage, stages within it included."""

    name: str
    start_ms: float  # since the request began
    duration_ms: float

    @property
    def end_ms(self) -> float:
        """When it was over, since the request began."""
        return self.start_ms + self.duration_ms


class Stopwatch:
    """Adds up wall time by stage. A stage inside another counts for itself alone."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self.began_s = monotonic()
        self._inner_ms: list[float] = [0.0]
        self._spans: list[Span] = []
        self._latest: dict[str, int] = {}  # stage -> where its latest span stands

    @property
    def spans(self) -> tuple[Span, ...]:
        """Every run of a stage that is over, in the order in which they began."""
        return tuple(span for span in self._spans if span.duration_ms >= 0)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a block, the time of stages within it excepted."""
        start_ms = self.elapsed_ms()
        place = self._place(name, start_ms)
        self._inner_ms.append(0.0)
        try:
            yield
        finally:
            whole = self.elapsed_ms() - start_ms
            own = whole - self._inner_ms.pop()
            self._inner_ms[-1] += whole
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + own
            first_ms = self._spans[place].start_ms
            self._spans[place] = Span(name, first_ms, start_ms + whole - first_ms)

    def add(self, name: str, start_ms: float) -> None:
        """Count the time from `start_ms` since the request began until now as a stage."""
        length_ms = self.elapsed_ms() - start_ms
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + length_ms
        self._spans[self._place(name, start_ms)] = Span(name, start_ms, length_ms)

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return `function`, its calls counted as a stage."""

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def elapsed_ms(self) -> float:
        """Wall time since the request began."""
        return (monotonic() - self.began_s) * 1000

    def _place(self, name: str, start_ms: float) -> int:
        """Return where the span of a stage that begins now will stand."""
        if len(self._spans) < MAX_SPANS or name not in self._latest:
            self._latest[name] = len(self._spans)
            self._spans.append(Span(name, start_ms, -1.0))  # until it is over
        return self._latest[name]
