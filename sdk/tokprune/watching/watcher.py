"""A question about a camera, asked again and again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from threading import Event
from time import monotonic
from types import TracebackType

from typing_extensions import Unpack

from tokprune.budgets import BudgetLike, KeepRatio, budget_of
from tokprune.camera.camera import Camera
from tokprune.running.request import AskOptions
from tokprune.selectors import Selector
from tokprune.types import Frame
from tokprune.vlm import VLM
from tokprune.waiting import until_told
from tokprune.watching.events import Observation, Piece, WatchEvent
from tokprune.watching.eye import Eye
from tokprune.watching.gate import ChangeGate
from tokprune.watching.listening import listen
from tokprune.watching.pacing import Pacing
from tokprune.watching.rounds import Rounds
from tokprune.watching.settings import Changes, Mode, Settings
from tokprune.watching.window import Window

AFTER_FAILURE_S = 0.05  # before the next attempt, where one failed at once


class Watcher:
    """Asks about a camera's newest frame, as soon as the last answer is there, or when told.

    `for seen in watcher` gives an `Observation` a question, and goes on through outages of the
    camera and through answers that failed. It ends when the watcher is closed or a file has ended.
    One thread, or one event loop, iterates; everything else may be called from any thread. It has
    no thread of its own: nothing is asked while nobody iterates.
    """

    def __init__(
        self,
        vlm: VLM,
        camera: Camera,
        question: str,
        *,
        mode: Mode = "continuous",
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        system: str | None = None,
        window: int = 1,
        window_fps: float | None = None,
        gate: ChangeGate | bool | None = True,
        every_s: float = 0.0,
        listener: Callable[[WatchEvent], object] | None = None,
        **options: Unpack[AskOptions],
    ) -> None:
        """Prepare to watch.

        Args:
            vlm: answers; others may ask it too.
            camera: what is watched. Closing it is the caller's.
            question: what is asked.
            mode: "continuous": about the newest frame as soon as the last answer is there;
                "on_change": when it has changed; "on_demand": when `ask` is called.
            budget: how many vision tokens may enter the LLM.
            selector: how they are chosen; None: as the bundle says.
            system: a system message.
            window: ask about the last so many frames, as a video; only new ones are encoded.
            window_fps: frames of the window a second; None: all that come.
            gate: gives a frame that has not changed the pixels of an earlier one, which need not
                be encoded again. True: one with the measured threshold; None or False: none.
                While `encode` is a `Following`, which compares frames itself, none is given any.
            every_s: at most one question in so many seconds; of a file, seconds of its own time.
            listener: called with all that happens: `Asked` on the thread that runs the model, all
                else on the one that iterates. What it raises is logged.
            options: of every question; see `AskOptions`. `deadline_s` counts from each question.

        Raises:
            RequestInvalid, SelectorUnavailable: something makes no sense.
        """
        self._vlm = vlm
        self._camera = camera
        asked = (question, budget_of(budget), selector, system, mode, every_s, options)
        settings = Settings(*asked, window=window)
        settings.check(vlm.model)
        changes = gate if isinstance(gate, ChangeGate) else ChangeGate()
        gated = isinstance(gate, ChangeGate) or gate is True
        self._window: Window | None = None
        if window != 1:
            self._window = Window(
                camera,
                window,
                fps=window_fps,
                together=vlm.model.processor.together,
                gate=changes if gated else None,
            )
        pacing = Pacing(camera, changes, self._take)
        make_eye = partial(Eye, camera, changes, self._window)
        self._rounds = Rounds(camera, pacing, settings, listener, make_eye, gated=gated)
        self._news = Event()
        self._wakers: list[Callable[[], object]] = []
        self._unlisten = listen(camera, self._wake)

    @property
    def settings(self) -> Settings:
        """What is asked from the next frame on."""
        return self._rounds.settings

    @property
    def paused(self) -> bool:
        """Whether it asks only when told to."""
        return self._rounds.paused

    def update(self, **changes: Unpack[Changes]) -> None:
        """Change what is asked, or when, from the next frame on. All of it or nothing.

        Raises:
            RequestInvalid, SelectorUnavailable: a value makes no sense.
            TypeError: there is no keyword of that name.
        """
        model = self._vlm.model
        self._rounds.change(lambda before: before.changed(model, **changes))
        self._wake()

    def ask(self, question: str | None = None) -> None:
        """Ask about the next frame, whatever the mode, also while paused.

        Args:
            question: from now on; None: as before.
        """
        if question is not None:
            self.update(question=question)
        self._rounds.demand()
        self._wake()

    def pause(self) -> None:
        """Ask no more by itself. The running answer goes on."""
        self._rounds.paused = True

    def resume(self) -> None:
        """Ask by itself again."""
        self._rounds.paused = False
        self._wake()

    def cancel(self) -> None:
        """End the running answer."""
        running = self._rounds.running
        if running is not None:
            running.cancel()

    def close(self) -> None:
        """End the running answer and the iteration. The camera and the VLM stay."""
        self._rounds.closed = True
        self._unlisten()
        if self._window is not None:
            self._window.close()
        self.cancel()
        self._wake()

    def next(self, timeout_s: float | None = None) -> Observation:
        """Return the next observation.

        Args:
            timeout_s: until the question begins; `deadline_s` bounds the answer.

        Raises:
            CameraLost, CameraFrozen, FrameTooOld: the camera had no frame in time, or has ended.
            DeadlineExceeded: there was no reason to ask in time (mode, `every_s`, `pause`).
            Closed: the watcher was closed.
            TokpruneError: there is no answer, as from `VLM.ask`.
        """
        due_s = None if timeout_s is None else monotonic() + timeout_s
        while (left_s := self._rounds.wait_s(due_s)) is not None:
            self._news.wait(left_s)
            self._news.clear()
        settings, token, eye = self._rounds.begin()
        options = settings.asked(token)
        try:
            with self._vlm.stream(eye, settings.question, **options) as stream:
                for piece in stream:
                    self._rounds.tell(Piece(piece))
                return self._rounds.answered(stream.answer, settings, eye)
        except BaseException as error:
            self._rounds.failed(error, eye)
            raise

    async def next_async(self, timeout_s: float | None = None) -> Observation:
        """Like `next`, without holding up the event loop."""
        await self._wait_async(None if timeout_s is None else monotonic() + timeout_s)
        settings, token, eye = self._rounds.begin()
        options = settings.asked(token)
        try:
            with await self._vlm.stream_async(eye, settings.question, **options) as stream:
                async for piece in stream:
                    self._rounds.tell(Piece(piece))
                return self._rounds.answered(stream.answer, settings, eye)
        except BaseException as error:
            self._rounds.failed(error, eye)
            raise

    def __iter__(self) -> Iterator[Observation]:
        return self

    def __next__(self) -> Observation:
        while True:
            try:
                return self.next()
            except Exception as error:  # noqa: PERF203
                if self._rounds.ends(error):
                    raise StopIteration from None
                self._news.wait(AFTER_FAILURE_S)

    def __aiter__(self) -> AsyncIterator[Observation]:
        return self

    async def __anext__(self) -> Observation:
        while True:
            try:
                return await self.next_async()
            except Exception as error:  # noqa: PERF203
                if self._rounds.ends(error):
                    raise StopAsyncIteration from None
                await asyncio.sleep(AFTER_FAILURE_S)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _wait_async(self, due_s: float | None) -> None:
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any longer
                loop.call_soon_threadsafe(news.set)

        self._wakers.append(wake)
        try:
            while (left_s := self._rounds.wait_s(due_s)) is not None:
                await until_told(news, left_s)
                news.clear()
        finally:
            self._wakers.remove(wake)

    def _take(self, frame: Frame) -> None:
        """Take a frame of a file into the window; those of a live camera come by themselves."""
        if self._window is not None:
            self._window.add(frame)

    def _wake(self) -> None:
        self._news.set()
        for wake in list(self._wakers):
            wake()
