"""What runs requests: a model, what outlives a request, and the worker that owns both."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TypeVar

from tokprune.budgets import budget_of
from tokprune.control import Control
from tokprune.errors import Cancelled, RequestInvalid
from tokprune.guarding import memory_guarded
from tokprune.llm import check_text
from tokprune.model import Model
from tokprune.running.answering import State
from tokprune.running.asking import Ask, Layout, Ready
from tokprune.running.jobs import Errand, Job, code_of
from tokprune.running.stream import AnswerStream, Channel, wake
from tokprune.running.task import Task, check_fits
from tokprune.running.worker import Ticket, Worker
from tokprune.stopwatch import Stopwatch
from tokprune.text.choices import choice_tree

T = TypeVar("T")


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
        job = Errand(errand)
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
        prepare = partial(self.prepared, ask, watch) if ready is None else lambda: ready
        channel = Channel()
        job = Job(self.model, self.state, ask, prepare, ticket.control, watch, channel)
        self.worker.start(ticket, job)
        return AnswerStream(channel, ticket.control, ask.ended)

    def prepared(self, ask: Ask, watch: Stopwatch) -> Ready:
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


def _begin(ask: Ask) -> tuple[Stopwatch, Control]:
    """Start the clocks, and refuse what needs no picture to be refused."""
    watch = Stopwatch()
    options = ask.options
    budget_of(ask.budget)
    options.check()
    return watch, Control(options.deadline_s, options.cancel)
