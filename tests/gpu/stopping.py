"""Is a request that is cancelled between two decode steps over, and the VLM as good as before?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from setting import Row, endless

from tokprune import Cancelled, CancelToken
from tokprune.scenes.suite import Sample
from tokprune.types import Answer, Array
from tokprune.vlm import VLM
from tokprune_runtimes import Carry, Feeds, Graph, Interrupt, Loop

NEW_TOKENS = 16
AFTER = 4  # runs of the LLM: the prefill and three steps


class Plan:
    """After how many runs of the LLM a token is cancelled."""

    def __init__(self) -> None:
        self.token = CancelToken()
        self.left = 0  # 0: never

    def ran(self) -> None:
        """One run is done; the next has not begun."""
        self.left -= 1
        if self.left == 0:
            self.token.cancel()


class CancellingGraph:
    """An LLM's graph; between two of its loop's steps a plan may cancel the request."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self._graph, self._plan = graph, plan

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once."""
        return self._graph.run(feeds, interrupt)

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop."""
        return CancellingLoop(self._graph.loop(carries), self._plan)


class CancellingLoop:
    """The loop of such a graph."""

    def __init__(self, loop: Loop, plan: Plan) -> None:
        self._loop, self._plan = loop, plan

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once more, then do what is planned."""
        outputs = self._loop.step(feeds, interrupt)
        self._plan.ran()
        return outputs

    def rewind(self, length: int) -> None:
        """Forget everything after `length`."""
        self._loop.rewind(length)


def cancelled(vlm: VLM, sample: Sample) -> Iterator[Row]:
    """Yield what becomes of a request that is cancelled, and of the same one asked again.

    Its graphs are those of `vlm`; answers do not end by themselves, so that there are steps to be
    cancelled between. Before the first token it must be Cancelled, later what was written.
    """
    plan = Plan()
    llm = replace(vlm.model.llm, graph=CancellingGraph(vlm.model.llm.graph, plan))
    with endless(replace(vlm.model, llm=llm)) as watched:
        before = tuple(_asked(watched, sample).token_ids)
        plan.left = AFTER
        answer = _asked(watched, sample, plan.token)
        ended = _refusal(watched, sample, plan.token)
        after = tuple(_asked(watched, sample).token_ids)
    written = tuple(answer.token_ids)
    yield {
        "cancelled_after_steps": AFTER - 1,
        "finish_reason": answer.finish_reason,
        "tokens_written": len(written),
        "before_the_first_token": ended,
        "same_answer_afterwards": before == after,
        "ok": answer.finish_reason == "cancelled"
        and 1 <= len(written) <= AFTER
        and written == before[: len(written)]
        and ended == "Cancelled"
        and before == after,
    }


def _refusal(vlm: VLM, sample: Sample, token: CancelToken) -> str:
    """Ask with a token that is cancelled already, and return what is raised."""
    try:
        _asked(vlm, sample, token)
    except Cancelled:
        return "Cancelled"
    return "an answer"


def _asked(vlm: VLM, sample: Sample, token: CancelToken | None = None) -> Answer:
    return vlm.ask(
        list(sample.pictures),
        sample.question,
        0.5,
        max_new_tokens=NEW_TOKENS,
        cancel=token,
        repetition_guard=False,
    )
