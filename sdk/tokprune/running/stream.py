"""An answer as it is written, on its way from the worker to whoever asked."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from threading import Lock
from types import TracebackType

from tokprune.control import Control
from tokprune.running.news import News
from tokprune.types import Answer


class Channel:
    """Pieces of text from the worker's thread to another, or to an event loop.

    One event loop reads it, or threads. Nothing here needs a lock, as a signal handler of the
    reader's thread, or its garbage collector, may end the request in the middle of it.
    """

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._news = News()  # of each piece, and of the end
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._wake: Callable[[], object] | None = None
        self._outcome = Lock()  # taken once: the answer counts, or nobody wants it any more

    def claim(self) -> bool:
        """Take the right to say how it ended; it is gone where `abandon` came first."""
        return self._outcome.acquire(blocking=False)

    def abandon(self) -> bool:
        """Give the answer up; it is too late where `claim` came first."""
        return self._outcome.acquire(blocking=False)

    def give(self, piece: str) -> None:
        """Hand over a piece."""
        self._pieces.append(piece)
        self._notify()

    def finish(self, answer: Answer) -> None:
        """Hand over the answer; nothing comes after it."""
        self._answer = answer
        self._notify()

    def fail(self, error: BaseException) -> None:
        """Hand over why there is no answer; nothing comes after it."""
        self._error = error
        self._notify()

    @property
    def answer(self) -> Answer | None:
        """The answer, once it is there and all pieces were taken."""
        return None if self._pieces else self._answer

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._answer is not None or self._error is not None

    def take(self) -> str | None:
        """Wait for the next piece; None after the last.

        Raises:
            TokpruneError: there is no answer, and why.
        """
        while True:
            ended = self.ended  # looked at first: no piece comes after it
            if self._pieces:
                with suppress(IndexError):  # another thread may read too
                    return self._pieces.popleft()
            elif ended:
                self._news.tell()  # and wait
                return self._end()
            else:
                self._news.wait()

    async def take_async(self) -> str | None:
        """Wait for the next piece without holding up the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            woken = loop.create_future()
            self._wake = partial(wake, loop, woken)  # before looking, so that nothing is missed
            ended = self.ended
            if self._pieces:
                return self._pieces.popleft()
            if ended:
                return self._end()
            await woken

    def _end(self) -> None:
        if self._error is not None:
            raise self._error

    def _notify(self) -> None:
        self._news.tell()
        if self._wake is not None:
            self._wake()


class AnswerStream:
    """Iterates over pieces of valid Unicode text; `answer` is there once it is exhausted.

    `for piece in stream` waits; `async for piece in stream` lets an event loop go on. The worker
    does not: it writes on while nobody reads. The pieces make up the answer's text, unless the
    model emits bytes that are no UTF-8 behind a character given out already: `answer.text` is then
    what all bytes decode to. Leaving a `with` block early, `close()`, or letting go of the stream
    stops the work; no answer is made then.
    """

    def __init__(
        self, channel: Channel, control: Control, ended: Callable[[], None] = lambda: None
    ) -> None:
        """Read a channel.

        Args:
            channel: what the worker writes to.
            control: stops it.
            ended: called if the answer is given up.
        """
        self._channel = channel
        self._control = control
        self._ended = ended
        self._closed = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = None if self._closed else self._channel.take()
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        piece = None if self._closed else await self._channel.take_async()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __enter__(self) -> "AnswerStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop the work, unless it is done."""
        if self._channel.abandon():
            self._closed = True
            self._control.cancel()
            self._ended()

    @property
    def answer(self) -> Answer:
        """The whole answer, after the last piece.

        Raises:
            RuntimeError: the stream is not exhausted.
        """
        answer = self._channel.answer
        if answer is None or self._closed:
            raise RuntimeError("The answer is not finished: iterate over the stream to its end")
        return answer

    def result(self) -> Answer:
        """Wait for the whole answer; pieces not yet taken are passed over.

        Raises:
            TokpruneError: there is none, and why.
        """
        try:
            for _ in self:
                pass
        except BaseException:  # Ctrl-C among them: nobody waits any longer
            self.close()
            raise
        return self.answer

    async def result_async(self) -> Answer:
        """Like `result`, without holding up the event loop."""
        try:
            async for _ in self:
                pass
        except BaseException:  # the task's cancellation among them
            self.close()
            raise
        return self.answer


def wake(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> None:
    """Wake who waits for a future, from any thread. In a loop that is closed nobody does."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
