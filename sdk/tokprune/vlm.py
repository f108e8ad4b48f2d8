"""A loaded bundle that answers questions about pictures and videos."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np
from typing_extensions import Unpack

from tokprune.budgets import Auto, BudgetLike, Deadline, KeepRatio, budget_of
from tokprune.bundle import Bundle
from tokprune.calibrating import SECONDS, calibrate, plan_calibration
from tokprune.chat import Chat
from tokprune.model import Model, Pictures, any_live, one_question, see
from tokprune.pinned import Pinned
from tokprune.running.answering import State
from tokprune.running.asking import Ask, Layout
from tokprune.running.request import AskOptions, options_of
from tokprune.running.runtime import Runtime
from tokprune.running.stream import AnswerStream
from tokprune.running.worker import Admission, Worker
from tokprune.selectors import Selector
from tokprune.stats import Stats, StatsRecorder
from tokprune.timing.calibrations import Calibration, save_calibration
from tokprune.timing.latency import Latency
from tokprune.types import Answer
from tokprune.vision_cache import VISION_CACHE_BYTES, VisionCache
from tokprune_runtimes import Backend

HealthState = Literal["ready", "busy", "closed"]
KV_SLOTS = 2  # one for single questions, one for a chat


@dataclass(frozen=True)
class Health:
    """Whether a VLM can be asked, for watchdogs and load balancers."""

    state: HealthState
    backend: Backend
    waiting: int  # requests before their turn
    bundle: str  # name of its folder


class VLM:
    """One bundle on one backend; made by `tokprune.load`. Use it from any thread.

    One worker thread runs the graphs, one request after another.
    """

    def __init__(
        self,
        model: Model,
        *,
        backends_refused: Mapping[Backend, str] | None = None,
        latency: Latency | None = None,
        admission: Admission = "wait",
        max_waiting: int = 16,
        vision_cache_bytes: int = VISION_CACHE_BYTES,
        kv_slots: int = KV_SLOTS,
    ) -> None:
        """Start the worker; see `tokprune.load` for the arguments."""
        state = State(
            VisionCache(vision_cache_bytes),
            model.llm.pool(kv_slots),
            latency or Latency(None),
            StatsRecorder(),
        )
        self.model = model
        self.backends_refused = dict(backends_refused or {})  # faster ones "auto" could not take
        self._runtime = Runtime(model, state, Worker(admission, max_waiting))
        # Not of this object: streams, chats and pinned pictures go on when it is let go of.
        self._closing = weakref.finalize(self._runtime, self._runtime.worker.close)

    @property
    def backend(self) -> Backend:
        """What runs the graphs."""
        return self.model.backend

    @property
    def bundle(self) -> Bundle:
        """The exported folder."""
        return self.model.bundle

    def ask(
        self,
        image: Pictures,
        question: str,
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        *,
        system: str | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """Answer a question about one or several pictures.

        Args:
            image: a path, PIL picture, uint8 array [h, w, 3] RGB (numpy, or any that offers
                `__dlpack__` or `__cuda_array_interface__`) or `Clip` (the frames of a video), or a
                list of these. They stand before the question, in order. Or a `Frame` of a camera,
                or a camera: its newest frame is taken when the request's turn has come, and
                `answer.frames` says which one that was.
            question: what the user says.
            budget: how many vision tokens may enter the LLM: a share (0.5), a count (128),
                or any of `tokprune.budgets`.
            selector: a name of `tokprune.selectors.SELECTORS`, any function of that type, or the
                bundle's default.
            system: a system message, where the chat template takes one.
            options: length, sampling, stop strings, choices, deadline, cancel: see `AskOptions`.

        Raises:
            PictureInvalid: a picture cannot be decoded.
            CameraLost, CameraFrozen, FrameTooOld: a camera has no picture to be asked about.
            RequestInvalid: a budget, selector or text makes no sense.
            SelectorUnavailable: the bundle lacks what the selector reads.
            ContextOverflow: prompt and answer do not fit; nothing is ever cut off.
            EngineTooSmall: TensorRT engines were built for smaller pictures or shorter questions.
            Busy: others wait already, and the VLM was loaded with admission="reject" or "latest".
            Cancelled, DeadlineExceeded: stopped before the first token. Later, the answer has
                what was written, and says so in `finish_reason`.
            OutOfMemory, EngineFailed: an engine gave up; the VLM stays usable.
            Closed, ForkDetected: this VLM cannot be asked any more, or not in this process.
        """
        return self.stream(image, question, budget, selector, system=system, **options).result()

    def stream(
        self,
        image: Pictures,
        question: str,
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        *,
        system: str | None = None,
        **options: Unpack[AskOptions],
    ) -> AnswerStream:
        """Like `ask`, as an iterator over pieces of text; `.answer` is there at its end.

        The request is checked and the pictures are read before this returns (a camera's when the
        request's turn has come); the worker goes on by itself.
        """
        ask = self._ask(image, question, budget, selector, system, options)
        return self._runtime.submit(ask)

    async def ask_async(
        self,
        image: Pictures,
        question: str,
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        *,
        system: str | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """Like `ask`, without holding up the event loop. Cancelling the task stops the request."""
        ask = self._ask(image, question, budget, selector, system, options)
        return await (await self._runtime.submit_async(ask)).result_async()

    async def stream_async(
        self,
        image: Pictures,
        question: str,
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        *,
        system: str | None = None,
        **options: Unpack[AskOptions],
    ) -> AnswerStream:
        """Like `stream`, for `async for piece in await vlm.stream_async(...)`."""
        ask = self._ask(image, question, budget, selector, system, options)
        return await self._runtime.submit_async(ask)

    def chat(
        self,
        *,
        system: str | None = None,
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        pin: bool = False,
    ) -> Chat:
        """Begin a conversation: `chat.ask(question, image)`, then `chat.ask(question)` and so on.

        Args:
            system: a system message, where the chat template takes one.
            budget: of every question; one question may have its own.
            selector: of every question; one question may have its own.
            pin: choose the vision tokens of a picture once, when it is shown, whatever will be
                asked; later questions then run the LLM over their own words alone. The selector
                is then "spread", "uniform" or "random", and the budget is for each picture.
        """
        return Chat(self._runtime, system=system, budget=budget, selector=selector, pin=pin)

    def pin(
        self,
        image: Pictures,
        *,
        budget: BudgetLike = KeepRatio(0.5),
        selector: str | Selector | None = None,
        system: str | None = None,
    ) -> Pinned:
        """Prepare pictures for many questions, each on its own: `pinned.ask(question)`.

        Args:
            image: as in `ask`.
            budget: for each picture.
            selector: "spread" (if not given), "uniform" or "random": the question is not known.
            system: a system message, where the chat template takes one.
        """
        return Pinned(self._runtime, image, system=system, budget=budget, selector=selector)

    def warmup(self, budgets: Sequence[BudgetLike], image: Pictures | None = None) -> None:
        """Ask once with each budget, so that the first real question is as fast as later ones.

        A budget in time on a device that was not measured yet measures it first (`calibrate`).

        Args:
            budgets: those that will be used.
            image: like those that will be asked about: engines allocate for their sizes. If not
                given, a grey picture of 448 x 448 pixels.
        """
        shown = np.full((448, 448, 3), 128, np.uint8) if image is None else image
        chosen = [budget_of(budget) for budget in budgets]
        timed = any(isinstance(budget, (Deadline, Auto)) for budget in chosen)
        if timed and self._runtime.state.latency.calibration is None:
            self.calibrate()
        for budget in chosen:
            if isinstance(budget, (Deadline, Auto)):
                budget = replace(budget, best_effort=True)  # the engines are cold
            self.ask(shown, "what is this?", budget, max_new_tokens=2)
            self._runtime.state.vision_cache.clear()  # or the next would not run the encoder

    def calibrate(self, seconds: float | int = SECONDS, *, save: bool = True) -> Calibration:
        """Measure how long each stage takes on this device, for budgets in time.

        Takes about so many seconds, longer for large models; no request is answered meanwhile.

        Args:
            seconds: to be spent.
            save: keep it in the bundle's device folder, as `tokprune calibrate` does.
        """

        def measure() -> Calibration:
            plan = plan_calibration(self.model, seconds=seconds)
            return calibrate(self.model, plan, threads=self.model.threads)

        made = self._runtime.alone(measure)
        self._runtime.state.latency.adopt(made)
        if save:
            save_calibration(self.bundle, made)
        return made

    def health(self) -> Health:
        """Tell whether it can be asked, and what it does now. Never waits for the worker's job."""
        worker = self._runtime.worker
        state: HealthState = "closed" if worker.closed else "busy" if worker.running else "ready"
        return Health(state, self.backend, worker.waiting, self.model.bundle.path.name)

    def stats(self) -> Stats:
        """Return what it has done since it was loaded."""
        return self._runtime.state.stats.snapshot()

    def close(self) -> None:
        """Stop what runs, refuse what waits, and free caches. Also at the end of a `with` block."""
        self._closing()
        if self._runtime.worker.forked:
            return  # a lock of the caches may be held for ever
        self._runtime.state.vision_cache.clear()
        self._runtime.state.kv.clear()

    def __enter__(self) -> "VLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(
        self,
        image: Pictures,
        question: str,
        budget: BudgetLike,
        selector: str | Selector | None,
        system: str | None,
        options: AskOptions,
    ) -> Ask:
        def layout() -> Layout:
            media, frames = see(image)
            conversation = one_question(media, question, system)
            prompt, prepared = self.model.prepare_conversation(conversation, media)
            small = self.model.small(conversation, media)
            return Layout(prompt, prepared, frames=frames, small=small)

        late = any_live(image)
        return Ask(layout, budget, selector, options_of(options), late=late)
