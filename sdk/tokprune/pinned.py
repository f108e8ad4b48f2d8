"""Pictures that many questions are asked about, their vision tokens chosen once."""

from typing_extensions import Unpack

from tokprune.budgets import BudgetLike, KeepCount, KeepRatio, budget_of
from tokprune.errors import RequestInvalid
from tokprune.kv import KvOwner
from tokprune.model import Pictures, see
from tokprune.prompting import Conversation, Shown, Turn
from tokprune.running.asking import Ask, Layout
from tokprune.running.request import AskOptions, options_of
from tokprune.running.runtime import Runtime
from tokprune.running.stream import AnswerStream
from tokprune.selectors import AGNOSTIC, Selector
from tokprune.types import Answer, Selection, VisionTokens

PIN_SELECTOR = "spread"


class Pinned:
    """Pictures that many questions are asked about, each on its own; made by `VLM.pin`.

    Their vision tokens are chosen once, whatever will be asked. The first question encodes them
    and runs the LLM over them; later ones run their own words alone.
    """

    def __init__(
        self,
        runtime: Runtime,
        image: Pictures,
        *,
        system: str | None,
        budget: BudgetLike,
        selector: str | Selector | None,
    ) -> None:
        """Read the pictures.

        Raises:
            PictureInvalid: one cannot be decoded.
            RequestInvalid: there is none, or the selector reads the question.
        """
        media, self._frames = see(image)
        if not media:
            raise RequestInvalid("There is nothing to pin: give one picture or more")
        self._runtime = runtime
        self._system = system
        self._budget = budget
        self._selector = pinning(selector)
        pinnable(budget)
        self._owner = KvOwner()
        self._shown = tuple(Shown(index) for index in range(len(media)))
        self._prepared = runtime.model.processor.prepare(media)
        self._seen: VisionTokens | None = None
        self._selection: Selection | None = None

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Answer a question about the pictures. Raises what `VLM.ask` does."""
        return self.stream(question, **options).result()

    def stream(self, question: str, **options: Unpack[AskOptions]) -> AnswerStream:
        """Like `ask`, as an iterator over pieces of text."""
        return self._runtime.submit(self._ask(question, options))

    async def ask_async(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Like `ask`, without holding up the event loop."""
        stream = await self.stream_async(question, **options)
        return await stream.result_async()

    async def stream_async(self, question: str, **options: Unpack[AskOptions]) -> AnswerStream:
        """Like `stream`, for `async for`."""
        return await self._runtime.submit_async(self._ask(question, options))

    def _ask(self, question: str, options: AskOptions) -> Ask:
        def layout() -> Layout:
            conversation = Conversation((Turn((*self._shown, question)),), self._system)
            prompt = self._runtime.model.prompt(conversation, self._prepared)
            return Layout(prompt, self._prepared, self._seen, self._selection, self._frames)

        def done(answer: Answer, layout: Layout, vision: VisionTokens) -> None:
            del layout
            self._seen, self._selection = vision, answer.selection

        return Ask(
            layout=layout,
            budget=self._budget,
            selector=self._selector,
            options=options_of(options),
            owner=self._owner,
            each_alone=True,
            done=done,
        )


def pinning(selector: str | Selector | None) -> str | Selector:
    """Return the selector of pinned pictures.

    Raises:
        RequestInvalid: it reads the question, by its name. A function is believed.
    """
    if selector is None:
        return PIN_SELECTOR
    if isinstance(selector, str) and selector not in AGNOSTIC:
        raise RequestInvalid(
            f"Pinned pictures are for many questions, and the selector {selector!r} reads the "
            f"question: choose one of {', '.join(sorted(AGNOSTIC))}"
        )
    return selector


def pinnable(budget: BudgetLike) -> None:
    """Refuse a budget that depends on the question or the moment.

    Raises:
        RequestInvalid: it is no share or count.
    """
    if not isinstance(budget_of(budget), (KeepRatio, KeepCount)):
        raise RequestInvalid(
            "Pinned pictures are for many questions, and this budget depends on the question or "
            f"the moment: give a share or a count, not {budget!r}"
        )
