"""What runs requests: a model, what outlives a request, and the worker that owns both."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from traceback import clear_frames
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from tokprune.budgets import BudgetLike, budget_of
from tokprune.control import Control
from tokprune.errors import Cancelled, RequestInvalid, TokpruneError
from tokprune.guarding import memory_guarded
from tokprune.kv import KvOwner
from tokprune.llm import check_text
from tokprune.looking import Small
from tokprune.model import Model
from tokprune.running.answering import State, answer
from tokprune.running.request import Options
from tokprune.running.stream import AnswerStream, Channel, wake
from tokprune.running.task import Task, check_fits
from tokprune.running.worker import Ticket, Worker
from tokprune.selectors import Selector
from tokprune.stopwatch import Stopwatch
from tokprune.text.choices import choice_tree
from tokprune.types import Answer, FrameStamp, Prepared, Prompt, Selection, VisionTokens


@dataclass(frozen=True)
class Layout:
    """A prompt, its pictures cut, and their vision tokens where they were encoded before."""

    prompt: Prompt
    media: tuple[Prepared, ...]
    seen: VisionTokens | None = None
    pinned: Selection | None = None  # what was chosen of them before, by the same rule
    frames: tuple[FrameStamp, ...] = ()  # which pictures of cameras are among them
    small: Callable[[], Small] | None = None  # the same at half their size, where the family can


T = TypeVar("T")
Done: TypeAlias = Callable[[Answer, Layout, VisionTokens], None]


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Ask:
    """A request before its pictures are read."""

    layout: Callable[[], Layout]  # reads them; runs on the caller's thread, or the worker's
    budget: BudgetLike
    selector: str | Selector | None
    options: Options
    owner: KvOwner | None = None  # who will ask again about the same rows
    each_alone: bool = False  # the budget is for each picture, whatever is beside it
    late: bool = False  # read them when the request's turn has come: a camera's newest
    done: Done = _nothing  # called on the worker's thread with the answer, before it is handed out
    ended: Callable[[], None] = _nothing  # called once, answered or not


@dataclass(frozen=True)
class Runtime:
    """Takes requests from any thread or event loop, and answers one after another."""

    model: Model
    state: State
    worker: Worker

    def submit(self, ask: Ask) -> AnswerStream:
        """Admit a request, read its pictures, and queue it.

        Raises:
            Busy: there is no room, and requests do not wait.
            TokpruneError: the request makes no sense, or was stopped meanwhile.
        """
        try:
            watch, control = _begin(ask)
            ticket = self.worker.admit(control)
        except BaseException as error:
            self._refused(ask, error)
            raise
        return self._start(ask, ticket, watch)

    async def submit_async(self, ask: Ask) -> AnswerStream:
        """Like `submit`, without holding up the event loop."""
        loop = asyncio.get_running_loop()
        admitted: asyncio.Future[None] = loop.create_future()
        ticket: Ticket | None = None
        try:
            watch, control = _begin(ask)
            ticket = self.worker.admit_later(control, partial(wake, loop, admitted))
            await admitted
            self.worker.admitted(ticket)
        except BaseException as error:  # the task's cancellation among them
            if ticket is not None:
                self.worker.release(ticket)
            self._refused(ask, error)
            raise
        return await self._start_async(ask, ticket, watch)

    async def _start_async(self, ask: Ask, ticket: Ticket, watch: Stopwatch) -> AnswerStream:
        """Prepare on another thread. There may be none free for long: the task may end before."""
        begun = Lock()  # whoever takes it sees to the end of the request

        def start() -> AnswerStream:
            if begun.acquire(blocking=False):
                return self._start(ask, ticket, watch)
            raise Cancelled("The task was cancelled before its pictures were read")

        try:
            return await asyncio.to_thread(start)
        except BaseException as error:  # the task's cancellation among them
            ticket.control.cancel()
            if begun.acquire(blocking=False):
                self.worker.release(ticket)
                self._refused(ask, error)
            raise

    def alone(self, errand: Callable[[], T]) -> T:
        """Run something on the worker, between requests, and wait for it.

        Raises:
            Busy, Closed, ForkDetected: as a request.
        """
        ticket = self.worker.admit(Control())
        job = _Errand(errand)
        self.worker.start(ticket, job)
        job.over.wait()
        return job.result()

    def _start(self, ask: Ask, ticket: Ticket, watch: Stopwatch) -> AnswerStream:
        watch.add("wait", 0.0)
        try:
            ready = None if ask.late else self.prepared(ask, watch)
        except BaseException as error:
            self.worker.release(ticket)
            self._refused(ask, error)
            raise
        channel = Channel()
        job = _Job(self, ask, ready, ticket.control, watch, channel)
        self.worker.start(ticket, job)
        return AnswerStream(channel, ticket.control, ask.ended)

    def prepared(self, ask: Ask, watch: Stopwatch) -> "Ready":
        """Read the pictures of a request, and refuse what cannot be answered."""
        with memory_guarded(), watch.stage("preprocess"):
            layout = ask.layout()
            check_text(layout.prompt, self.model.llm.limits)
            self.model.vision.check_all(layout.media)
            task = self._task(ask, layout)
            check_fits(task, self.model.llm.limits)
        return Ready(layout, task)

    def _refused(self, ask: Ask, error: BaseException) -> None:
        """Count a request that never came to the worker."""
        ask.ended()
        if not self.worker.forked:
            self.state.stats.record_error(code_of(error))

    def _task(self, ask: Ask, layout: Layout) -> Task:
        name, make = self.model.selector(ask.selector)
        manifest, options = self.model.bundle.manifest, ask.options
        if ask.each_alone and options.encode not in ("full", "auto"):
            raise RequestInvalid(
                f"Got encode={options.encode!r} for pinned pictures, whose tokens are chosen "
                "whatever will be asked: leave it out"
            )
        self.model.check_encode(options.encode, ask.selector)
        tree = None
        if options.choices is not None:
            tree = choice_tree(
                options.choices,
                manifest.chat,
                manifest.tokens,
                self.model.tokenizer,
                options.max_new_tokens,
            )
        return Task(
            prompt=layout.prompt,
            media=layout.media,
            budget=budget_of(ask.budget),
            selector_name=name,
            make_selector=make,
            options=options,
            tree=tree,
            owner=ask.owner,
            each_alone=ask.each_alone,
            seen=layout.seen,
            pinned=layout.pinned,
            frames=layout.frames,
            small=layout.small,
        )


class Ready(NamedTuple):
    """A request whose pictures were read."""

    layout: Layout
    task: Task


def _begin(ask: Ask) -> tuple[Stopwatch, Control]:
    """Start the clocks, and refuse what needs no picture to be refused."""
    watch = Stopwatch()
    options = ask.options
    budget_of(ask.budget)
    options.check()
    return watch, Control(options.deadline_s, options.cancel)


def code_of(error: BaseException) -> str:
    """Return the code that statistics count an error under."""
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
        return Cancelled.code
    return error.code if isinstance(error, TokpruneError) else "internal"


class _Errand(Generic[T]):
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


class _Job:
    """A request on the worker."""

    def __init__(
        self,
        runtime: Runtime,
        ask: Ask,
        ready: Ready | None,
        control: Control,
        watch: Stopwatch,
        channel: Channel,
    ) -> None:
        self._runtime = runtime
        self._ask = ask
        self._ready = ready  # None: not before its turn
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
            self._runtime.state.stats.record(made)
            if self._wanted:
                self._ask.ended()
            self._channel.finish(made)

    def _answered(self) -> Answer:
        self._control.check()
        runtime = self._runtime
        ready = self._ready or runtime.prepared(self._ask, self._watch)
        with memory_guarded():
            made, vision = answer(
                runtime.model,
                ready.task,
                runtime.state,
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
        self._runtime.state.stats.record_error(code_of(error))
        if self._wanted or self._channel.claim():
            self._ask.ended()
        del self._ask, self._ready  # the frames know where they were called from
        self._channel.fail(error)
