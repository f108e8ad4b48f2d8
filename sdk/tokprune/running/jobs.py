"""What the worker runs: requests, and errands between them."""

import asyncio
from collections.abc import Callable
from threading import Event
from traceback import clear_frames
from typing import Generic, TypeVar

from tokprune.control import Control
from tokprune.errors import Cancelled, TokpruneError
from tokprune.guarding import memory_guarded
from tokprune.model import Model
from tokprune.running.answering import State, answer
from tokprune.running.asking import Ask, Ready
from tokprune.running.stream import Channel
from tokprune.stopwatch import Stopwatch
from tokprune.types import Answer

T = TypeVar("T")


def code_of(error: BaseException) -> str:
    """Return the code that statistics count an error under."""
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
        return Cancelled.code
    return error.code if isinstance(error, TokpruneError) else "internal"


class Errand(Generic[T]):
    """Something else than a request on the worker."""

    def __init__(self, errand: Callable[[], T]) -> None:
        self._errand = errand
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.over = Event()

    def run(self) -> None:
        """Do it, and keep what came of it."""
        try:
            self._results.append(self._errand())
        except BaseException as error:
            self._error = error
        self.over.set()

    def fail(self, error: TokpruneError) -> None:
        """Say that it was not done."""
        self._error = error
        self.over.set()

    def result(self) -> T:
        """Return what came of it, or raise why nothing did."""
        if self._error is not None:
            raise self._error
        return self._results[0]


def _empty_frames(error: BaseException) -> None:
    """Free what was on the stack when an error was raised, pictures among it; keep its lines.

    Or it would be there for as long as anybody keeps the error, which the first frame does.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # that frame still runs
    each: BaseException | None = error
    while each is not None:
        clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__


class Job:
    """A request on the worker."""

    def __init__(
        self,
        model: Model,
        state: State,
        ask: Ask,
        prepare: Callable[[], Ready],
        control: Control,
        watch: Stopwatch,
        channel: Channel,
    ) -> None:
        self._model, self._state = model, state
        self._ask = ask
        self._prepare = prepare  # reads the pictures, or has them
        self._control = control
        self._watch = watch
        self._channel = channel
        self._queued_ms = watch.elapsed_ms()
        self._wanted = False  # nobody can give the answer up any more

    def run(self) -> None:
        """Answer, and hand everything to the channel."""
        self._watch.add("wait", self._queued_ms)
        try:
            made = self._answered()
        except BaseException as error:  # a fault of ours too: whoever waits must hear of it
            self._end(error)
        else:
            self._state.stats.record(made)
            if self._wanted:
                self._ask.ended()
            self._channel.finish(made)

    def _answered(self) -> Answer:
        self._control.check()
        ready = self._prepare()
        with memory_guarded():
            made, vision = answer(
                self._model,
                ready.task,
                self._state,
                self._control,
                self._watch,
                self._channel.give,
            )
        self._wanted = self._channel.claim()
        if self._wanted:
            self._ask.done(made, ready.layout, vision)
        return made

    def fail(self, error: TokpruneError) -> None:
        """Hand over why it was not done."""
        self._end(error)

    def _end(self, error: BaseException) -> None:
        _empty_frames(error)
        self._state.stats.record_error(code_of(error))
        if self._wanted or self._channel.claim():
            self._ask.ended()
        del self._ask, self._prepare  # the frames know where they were called from
        self._channel.fail(error)
