"""A loaded bundle that answers questions about pictures and videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TypeAlias, cast

from tokenizers import Tokenizer

from tokprune.budgets import Budget, KeepRatio, budget_of
from tokprune.bundle import Bundle
from tokprune.errors import RequestInvalid, SelectorUnavailable, lookup
from tokprune.families import Processor
from tokprune.graphs import FirstLayerGraph, ScorerGraph, VisionEncoder
from tokprune.llm import Generation, LanguageModel
from tokprune.pictures import PictureSource, load_picture
from tokprune.pipeline import Pipeline
from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.sampling import Sampling
from tokprune.selection import keep_all, select
from tokprune.selectors import LEARNED, SELECTORS, Scorer, Selector
from tokprune.stopwatch import Stopwatch
from tokprune.stream import AnswerStream
from tokprune.types import Answer, Clip, First, Prepared, Prompt, Ranking, VisionTokens
from tokprune_runtimes import Backend

Shows: TypeAlias = PictureSource | Clip  # one picture or video
Pictures: TypeAlias = Shows | Sequence[Shows]
MakeSelector: TypeAlias = Callable[[Scorer], Selector]


@dataclass(frozen=True)
class VLM:
    """One bundle on one backend. Safe to use from several threads; made by `tokprune.load`."""

    bundle: Bundle
    processor: Processor
    tokenizer: Tokenizer
    vision: VisionEncoder
    first_layer: FirstLayerGraph
    scorer: ScorerGraph
    llm: LanguageModel
    backend: Backend = "cpu"
    backends_refused: Mapping[Backend, str] = field(  # faster ones that "auto" could not take
        default_factory=dict[Backend, str]
    )

    def ask(
        self,
        image: Pictures,
        question: str,
        budget: Budget | float | int = KeepRatio(0.5),
        selector: str | Selector | None = None,
        *,
        max_new_tokens: int = 128,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Answer:
        """Answer a question about one or several pictures.

        Args:
            image: a path, PIL picture, uint8 array [h, w, 3] RGB (numpy, or any that offers
                `__dlpack__` or `__cuda_array_interface__`) or `Clip` (the frames of a video), or a
                list of these. They stand before the question, in order.
            question: what the user says.
            budget: how many vision tokens may enter the LLM: a share (0.5), a count (128),
                `KeepRatio` or `KeepCount`.
            selector: a name of `tokprune.selectors.SELECTORS`, any function of that type, or the
                bundle's default.
            max_new_tokens: bound of the answer's length.
            system: a system message, where the chat template takes one.
            temperature: 0 is greedy; above, tokens are drawn.
            top_p: draw from the smallest set of tokens that holds this probability.
            seed: equal seeds draw equal answers.

        Raises:
            PictureInvalid: a picture cannot be decoded.
            RequestInvalid: a budget, selector or text makes no sense.
            SelectorUnavailable: the bundle lacks what the selector reads.
            ContextOverflow: prompt and answer do not fit; nothing is ever cut off.
            EngineTooSmall: TensorRT engines were built for smaller pictures or shorter questions.
        """
        stream = self.stream(
            image,
            question,
            budget,
            selector,
            max_new_tokens=max_new_tokens,
            system=system,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        image: Pictures,
        question: str,
        budget: Budget | float | int = KeepRatio(0.5),
        selector: str | Selector | None = None,
        *,
        max_new_tokens: int = 128,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> "AnswerStream":
        """Like `ask`, as an iterator over pieces of text; `.answer` is there at its end.

        The request is checked and the pictures are read before this returns; encoding starts with
        the first piece.
        """
        watch = Stopwatch()
        name, make = self.selector(selector)
        chosen = make(watch.timed("scorer", self.scorer))
        wanted = budget_of(budget)
        generation = Generation(max_new_tokens, Sampling(temperature, top_p, seed))
        with watch.stage("preprocess"):
            prompt, media = self.prepare(image, question, system=system)
            self.vision.check_all(media)
        pipeline = Pipeline(
            vision_graph=watch.timed("vision", self.vision),
            first_layer=partial(_timed_first, self.first_layer, watch),
            selector=watch.timed("select", unless_all(chosen, wanted)),
            select=watch.timed("select", select),
            llm=partial(self.llm.generate, generation=generation),
        )
        flow = partial(pipeline.answer, prompt, media, wanted)
        return AnswerStream(flow, self.tokenizer, watch, name)

    def prepare(
        self, image: Pictures, question: str, *, system: str | None = None
    ) -> tuple[Prompt, tuple[Prepared, ...]]:
        """Read pictures and videos and lay out the prompt; no engine runs."""
        several = isinstance(image, Sequence) and not isinstance(image, (str, bytes))
        sources = list(cast(Sequence[Shows], image if several else [image]))
        if not sources:
            raise RequestInvalid("A question needs one picture or more, got an empty list")
        media = self.processor.prepare(
            [source if isinstance(source, Clip) else load_picture(source) for source in sources]
        )
        content = (*(Shown(index) for index in range(len(media))), question)
        conversation = Conversation((Turn(content),), system)
        manifest = self.bundle.manifest
        prompt = build_prompt(
            conversation, media, manifest.chat, manifest.tokens, self.tokenizer, self.processor
        )
        return prompt, media

    def selector(self, selector: str | Selector | None) -> tuple[str, MakeSelector]:
        """Return a selector's name, and what builds it from a scorer.

        Raises:
            RequestInvalid: no selector has that name.
            SelectorUnavailable: it reads a trained scorer, and this bundle has none.
        """
        if selector is not None and not isinstance(selector, str):
            given = selector
            return getattr(given, "__name__", type(given).__name__), lambda _: given
        name = selector or self.bundle.manifest.default_selector
        make = lookup(SELECTORS, name, "selector")
        if name in LEARNED and not self.bundle.manifest.scorer.trained:
            raise SelectorUnavailable(
                f"The selector {name!r} needs a trained scorer, and this bundle was exported "
                "without one. Train it with `tokprune-train MODEL DATA.jsonl scorer.safetensors`, "
                "then `tokprune-export MODEL OUTPUT --scorer scorer.safetensors`"
            )
        return name, make


def unless_all(selector: Selector, budget: Budget) -> Selector:
    """Return a selector that does not run where the budget keeps everything."""

    def ranked(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        total = len(vision.embeds)
        if budget.plan(total).keep == total:
            return keep_all(total)
        return selector(prompt, vision, first)

    return ranked


def _timed_first(
    graph: FirstLayerGraph, watch: Stopwatch, prompt: Prompt, vision: VisionTokens
) -> First:
    return cache(watch.timed("first_layer", partial(graph.run, prompt, vision)))
