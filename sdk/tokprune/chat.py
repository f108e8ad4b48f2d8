"""Conversations, and pictures that many questions are asked about.

Every question chooses its own vision tokens, from all pictures shown so far, which are encoded
once. Or pictures are pinned: their tokens are chosen once, whatever will be asked, so that what
the LLM has computed for them serves every later question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np
from typing_extensions import Unpack

from tokprune.budgets import BudgetLike, budget_of
from tokprune.errors import Busy, RequestInvalid
from tokprune.kv import KvOwner
from tokprune.model import Pictures, Seen, Shows, any_live, see
from tokprune.pinned import pinnable, pinning
from tokprune.prompting import Content, Conversation, Shown, Turn
from tokprune.running.asking import Ask, Layout
from tokprune.running.request import AskOptions, options_of
from tokprune.running.runtime import Runtime
from tokprune.running.stream import AnswerStream
from tokprune.selectors import Selector
from tokprune.types import Answer, Clip, FrameStamp, Medium, Prepared, Selection, VisionTokens

Part: TypeAlias = str | Shows  # words, or a picture or video (no path as a string)
Question: TypeAlias = str | Sequence[Part]


@dataclass(frozen=True)
class History:
    """What was said and shown. `seen`: the vision tokens of the media, as last encoded."""

    turns: tuple[Turn, ...] = ()
    media: tuple[Medium, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    seen: VisionTokens | None = None
    rule: tuple[object, object] | None = None  # budget and selector that chose of them, if pinned
    selection: Selection | None = None
    frames: tuple[FrameStamp, ...] = ()  # which pictures of cameras are among the media


class Said(NamedTuple):
    """A turn whose pictures were read."""

    turn: Turn
    media: tuple[Medium, ...]  # of the whole conversation
    frames: tuple[FrameStamp, ...]  # of the whole conversation


class Chat:
    """A conversation of several turns; made by `VLM.chat`.

    A question is answered from the vision tokens of all pictures so far, chosen for it. Where its
    prompt begins as the one before did, what was computed for that is used again (of rows that are
    equal to the bit; int8 rounds inputs run by run, so there an answer may differ from one that
    computes everything). A turn whose request failed leaves no trace; a partial answer (cancelled,
    deadline) is part of the conversation, `undo` takes it back.

    One question at a time: another one meanwhile is Busy.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        system: str | None,
        budget: BudgetLike,
        selector: str | Selector | None,
        pin: bool,
    ) -> None:
        """Begin with nothing said.

        Raises:
            RequestInvalid: pictures are pinned, and the selector reads the question.
        """
        self._runtime = runtime
        self._system = system
        self._budget = budget
        self._selector = pinning(selector) if pin else selector
        self._pin = pin
        self._owner = KvOwner()
        self._lock = Lock()
        self._before: list[History] = []  # what `undo` returns to
        self._history = History()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said so far."""
        return self._history.turns

    def ask(
        self,
        question: Question,
        image: Pictures = (),
        budget: BudgetLike | None = None,
        selector: str | Selector | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """Answer the next question.

        Args:
            question: what the user says; or a list of words and pictures in their order, where
                every string is words.
            image: pictures and videos that are shown before the words of this turn.
            budget: for all pictures so far (pinned: for each); None: the chat's.
            selector: None: the chat's.
            options: see `AskOptions`.

        Raises:
            Busy: this chat is still answering.
            ContextOverflow: the conversation has become too long; nothing is ever cut off.
            TokpruneError: as `VLM.ask`.
        """
        return self.stream(question, image, budget, selector, **options).result()

    def stream(
        self,
        question: Question,
        image: Pictures = (),
        budget: BudgetLike | None = None,
        selector: str | Selector | None = None,
        **options: Unpack[AskOptions],
    ) -> AnswerStream:
        """Like `ask`, as an iterator over pieces of text."""
        return self._runtime.submit(self._ask(question, image, budget, selector, options))

    async def ask_async(
        self,
        question: Question,
        image: Pictures = (),
        budget: BudgetLike | None = None,
        selector: str | Selector | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """Like `ask`, without holding up the event loop."""
        stream = await self.stream_async(question, image, budget, selector, **options)
        return await stream.result_async()

    async def stream_async(
        self,
        question: Question,
        image: Pictures = (),
        budget: BudgetLike | None = None,
        selector: str | Selector | None = None,
        **options: Unpack[AskOptions],
    ) -> AnswerStream:
        """Like `stream`, for `async for`."""
        ask = self._ask(question, image, budget, selector, options)
        return await self._runtime.submit_async(ask)

    def recall(self, question: Question, answer: str, image: Pictures = ()) -> None:
        """Add a turn that was answered elsewhere, such as before a restart."""
        with self._alone():
            said = self._turn(question, image)
            turns = (*self.turns, Turn(said.turn.content, answer))
            self._keep(History(turns, said.media, frames=said.frames))

    def undo(self) -> None:
        """Take the last turn back, with its pictures.

        Raises:
            RequestInvalid: nothing was said yet.
        """
        with self._alone():
            if not self._before:
                raise RequestInvalid("There is no turn to take back")
            self._history = self._before.pop()

    def _ask(
        self,
        question: Question,
        image: Pictures,
        budget: BudgetLike | None,
        selector: str | Selector | None,
        options: AskOptions,
    ) -> Ask:
        checked = options_of(options)
        chosen = self._budget if budget is None else budget
        if self._pin:
            pinnable(chosen)
        if self._pin and selector is not None:
            pinning(selector)
        if not self._lock.acquire(blocking=False):
            raise Busy("This chat is still answering: wait for it, cancel it, or begin another")
        by = self._selector if selector is None else selector
        rule = (budget_of(chosen), by) if self._pin else None
        made: list[Said] = []

        def layout() -> Layout:
            made.append(self._turn(question, image))
            return self._layout(made[0], rule, whole=checked.encode == "full")

        def done(answer: Answer, layout: Layout, vision: VisionTokens) -> None:
            (said,) = made
            turns = (*self.turns, Turn(said.turn.content, answer.text))
            seen = vision if answer.encode == "full" else None  # others may be parts, or copies
            shown = (said.media, layout.media, seen, rule, answer.selection, said.frames)
            self._keep(History(turns, *shown))

        return Ask(
            layout=layout,
            budget=chosen,
            selector=by,
            options=checked,
            owner=self._owner,
            each_alone=self._pin,
            late=any(any_live(part) for part in (image, *_shown(question))),
            done=done,
            ended=self._lock.release,
        )

    def _turn(self, question: Question, image: Pictures) -> Said:
        """Read what is new; return it as a turn, with all media so far."""
        parts: list[Part] = [question] if isinstance(question, str) else list(question)
        media, frames = list(self._history.media), list(self._history.frames)
        content: list[Content] = []

        def show(new: Seen) -> None:
            content.extend(Shown(len(media) + number) for number in range(len(new.media)))
            media.extend(_own(medium) for medium in new.media)
            frames.extend(new.stamps)

        show(see(image))
        for part in parts:
            if isinstance(part, str):
                content.append(part)
            else:
                show(see(part))
        return Said(Turn(tuple(content)), tuple(media), tuple(frames))

    def _layout(self, said: Said, rule: tuple[object, object] | None, *, whole: bool) -> Layout:
        history, model = self._history, self._runtime.model
        conversation = Conversation((*history.turns, said.turn), self._system)
        small = model.small(conversation, said.media)
        if history.prepared and len(said.media) == len(history.media):
            prompt = model.prompt(conversation, history.prepared)
            pinned = history.selection if rule is not None and rule == history.rule else None
            seen = history.seen if whole else None  # what the question points to may be unseen
            return Layout(prompt, history.prepared, seen, pinned, said.frames, small)
        prompt, prepared = model.prepare_conversation(conversation, said.media)
        return Layout(prompt, prepared, frames=said.frames, small=small)

    def _keep(self, history: History) -> None:
        before = self._history
        if len(before.media) < len(history.media):  # cut and encoded again if it is returned to
            before = replace(before, prepared=(), seen=None)
        self._before.append(before)
        self._history = history

    def _alone(self) -> "_Alone":
        return _Alone(self._lock)


def _shown(question: Question) -> list[Shows]:
    """Return the pictures among the parts of a question."""
    return [] if isinstance(question, str) else [p for p in question if not isinstance(p, str)]


def _own(medium: Medium) -> Medium:
    """Copy arrays that their owner may write over: a chat looks at them again."""
    if isinstance(medium, Clip):
        return replace(medium, frames=np.array(medium.frames))
    return np.array(medium)


class _Alone:
    """Holds a chat's lock for a block, or says that it is answering."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise Busy("This chat is still answering: wait for it, or cancel it")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
