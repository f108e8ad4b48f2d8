"""Timings by stage, wrapped around the steps of the flow from outside."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import perf_counter
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Stopwatch:
    """Adds up wall time by stage. A stage inside another counts for itself alone."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self._started = perf_counter()
        self._inner_ms: list[float] = [0.0]

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a block, the time of stages within it excepted."""
        start = perf_counter()
        self._inner_ms.append(0.0)
        try:
            yield
        finally:
            whole = (perf_counter() - start) * 1000
            own = whole - self._inner_ms.pop()
            self._inner_ms[-1] += whole
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + own

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return `function`, its calls counted as a stage."""

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def elapsed_ms(self) -> float:
        """Wall time since the request began."""
        return (perf_counter() - self._started) * 1000
