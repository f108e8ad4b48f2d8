"""Engine errors as ours, and runs that are stopped."""

from collections.abc import Sequence

import numpy as np
import pytest

from tokprune import Cancelled, CancelToken, DeadlineExceeded, EngineFailed, OutOfMemory
from tokprune.control import Control
from tokprune.guarding import GuardedGraph, guarded
from tokprune_runtimes import Array, Carry, Feeds, Interrupt, Loop
from tokprune_runtimes import errors as engines


class Graph:
    """Raises what it is told, and remembers the interrupt it was given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.interrupts = error, list[Interrupt | None]()

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        self.interrupts.append(interrupt)
        if self.error is not None:
            raise self.error
        return dict(feeds)

    def loop(self, carries: Sequence[Carry]) -> Loop:
        self.run({})
        raise AssertionError("no loop here")


FEEDS = {"x": np.zeros(1)}


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (engines.MemoryExhausted("no room for llm"), OutOfMemory, "no room for llm. Ask with a"),
        (MemoryError("numpy's"), OutOfMemory, "numpy's. Ask with a smaller budget"),
        (engines.FeedsInvalid("llm:\n  wrong\trank"), EngineFailed, "llm: wrong rank"),
        (engines.EngineFailed("broken"), EngineFailed, "broken"),
    ],
)
@pytest.mark.parametrize("call", ["run", "loop"])
def test_errors_of_an_engine_are_ours_and_say_what_it_said(
    error: BaseException, expected: type[EngineFailed], message: str, call: str
) -> None:
    graph = GuardedGraph(Graph(error), Control())
    with pytest.raises(expected) as caught:
        graph.run(FEEDS) if call == "run" else graph.loop([])
    assert message in str(caught.value)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is error


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        GuardedGraph(Graph(ZeroDivisionError()), Control()).run(FEEDS)


def test_a_run_gets_the_requests_interrupt_unless_it_has_its_own() -> None:
    graph, control, own = Graph(), Control(), Interrupt()
    assert GuardedGraph(graph, control).run(FEEDS) == FEEDS
    GuardedGraph(graph, control).run(FEEDS, own)
    assert graph.interrupts == [control.interrupt, own]


def test_nothing_runs_once_the_request_is_stopped() -> None:
    graph, token = Graph(), CancelToken()
    control = Control(None, token)
    token.cancel()
    with pytest.raises(Cancelled):
        GuardedGraph(graph, control).run(FEEDS)
    with pytest.raises(Cancelled):
        GuardedGraph(graph, control).loop([])
    assert not graph.interrupts


def test_a_run_that_was_interrupted_says_why() -> None:
    now = [0.0]
    control = Control(1.0, clock=lambda: now[0])

    def run() -> None:
        with guarded(control) as interrupt:
            now[0] = 2.0
            assert control.expire()
            assert interrupt.is_set
            raise engines.EngineInterrupted("llm")

    with pytest.raises(DeadlineExceeded):
        run()


def test_a_run_that_came_to_its_end_counts_though_it_was_stopped_meanwhile() -> None:
    token = CancelToken()
    control = Control(None, token)
    with guarded(control):
        token.cancel()
    with pytest.raises(Cancelled):
        control.check()
